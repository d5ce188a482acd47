"""Ask other libraries for the scores of `cases.py` and write their answers to `scores.json`.

They pin versions that this project does not, so they have a virtual environment of their own:

    python3.11 -m venv peers
    peers/bin/pip install -r tests/oracles/requirements.txt
    peers/bin/pip install --no-deps -r tests/oracles/requirements-alone.txt
    peers/bin/python tests/oracles/make_oracles.py

Not asked, because known to be wrong: MAPIE and Fortuna about calibration errors (their bins are others than they say),
uncertainty-toolbox about quantile proportions as it has them (its residuals have the wrong sign, see below),
torch-uncertainty about mixtures (it averages their parameters). netcal's ACE is the unweighted error here. The rest of
verif's requirements is for maps and windows, so it is installed without them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import arviz_stats.base as arviz
import calibration as kumar
import numpy as np
import properscoring
import relplot
import scoringrules
import torch
import uncertainty_toolbox as uct
import verif.metric
from cases import CLASSIFIED, DOUBTED, DRAWN, Classified, Doubted, Drawn
from netcal.metrics import ACE, ECE, MCE
from relplot.kernels import ReflectedGaussianKernel
from scipy import optimize
from sklearn import metrics as sklearn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torchmetrics.functional import auroc
from torchmetrics.functional.classification import multiclass_calibration_error

HERE = Path(__file__).parent
BINS, LEVEL, BRIER_BINS = 15, 0.9, 10
Figures = dict[str, float]


def torch_uncertainty(path: str) -> ModuleType:
    """Load one file or folder of torch-uncertainty, which as a whole asks for much that no score needs."""
    package = importlib.util.find_spec("torch_uncertainty")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "metrics" / "classification" / path
    inside = [str(file.parent)] if file.name == "__init__.py" else None
    name = f"torch_uncertainty_{file.parent.name if inside else file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tu_errors = torch_uncertainty("calibration/__init__.py")
tu_risk = torch_uncertainty("risk_coverage.py")
tu_false_positives = torch_uncertainty("fpr.py")


def of_probabilities(case: Classified) -> dict[str, Figures]:
    p, y = case.probabilities, case.labels
    tp, ty, classes = torch.tensor(p), torch.tensor(y), p.shape[1]
    confidence, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(float)
    netcal = (p, y) if classes > 2 else (confidence, correct)  # of two classes it would take the second alone
    adaptive = tu_errors.AdaptiveCalibrationError(task="multiclass", num_classes=classes, num_bins=BINS, norm="l1")
    classwise = tu_errors.ClasswiseCalibrationError(num_classes=classes, num_bins=BINS)
    adaptive.update(tp, ty)
    classwise.update(tp, ty)

    def torchmetrics(norm: str) -> float:
        return float(multiclass_calibration_error(tp, ty, num_classes=classes, n_bins=BINS, norm=norm))

    return {
        "accuracy": {"scikit-learn": sklearn.accuracy_score(y, p.argmax(axis=1))},
        "negative_log_likelihood": {"scikit-learn": sklearn.log_loss(y, p, labels=range(classes))},
        "brier_score": {
            "scikit-learn": sklearn.brier_score_loss(y, p, labels=list(range(classes)), scale_by_half=False),
            "scoringrules": sum(scoringrules.brier_score((y == k) * 1.0, p[:, k]).mean() for k in range(classes)),
        },
        **of_brier(p, y),
        "expected_calibration_error": {
            "netcal": ECE(BINS).measure(*netcal),
            "torchmetrics": torchmetrics("l1"),
            "uncertainty-calibration": kumar.get_ece(p, y, num_bins=BINS),
        },
        "adaptive_expected_calibration_error": {
            "torch-uncertainty": float(adaptive.compute()),
            "uncertainty-calibration": kumar.get_ece_em(p, y, num_bins=BINS),
        },
        "unweighted_calibration_error": {"netcal": ACE(BINS).measure(*netcal)},
        "classwise_expected_calibration_error": {
            "torch-uncertainty": float(classwise.compute()),
            "uncertainty-calibration": kumar.get_ece(p, y, num_bins=BINS, mode="marginal"),
        },
        "maximum_calibration_error": {"netcal": MCE(BINS).measure(*netcal), "torchmetrics": torchmetrics("max")},
        "root_mean_squared_calibration_error": {
            "torchmetrics": torchmetrics("l2"),
            "uncertainty-calibration": kumar.lower_bound_scaling_top_ce(
                p, y, p=2, debias=False, num_bins=BINS, binning_scheme=kumar.get_equal_prob_bins
            ),
        },
        "debiased_calibration_error": {
            "uncertainty-calibration": kumar.lower_bound_scaling_top_ce(p, y, p=2, debias=True, num_bins=BINS)
        },
        **of_kernels(confidence, correct),
    }


def of_brier(p: np.ndarray, y: np.ndarray) -> dict[str, Figures]:
    """verif measures reliability from each forecast, not from its bin's mean: the variance within bins is in it."""
    parts = {"reliability_and_variance": 0.0, "resolution": 0.0, "uncertainty": 0.0}
    for k in range(p.shape[1]):
        outcome, forecast = (y == k).astype(float), p[:, k]
        parts["reliability_and_variance"] += verif.metric.BsRel(BRIER_BINS + 1).compute_from_obs_fcst(outcome, forecast)
        parts["resolution"] += verif.metric.BsRes(BRIER_BINS + 1).compute_from_obs_fcst(outcome, forecast)
        parts["uncertainty"] += verif.metric.BsUnc().compute_from_obs_fcst(outcome, forecast)
    return {f"brier_{name}": {"verif": value} for name, value in parts.items()}


class Fine(ReflectedGaussianKernel):
    """relplot's kernel on a finer grid than it takes by itself."""

    def apply(self, f: np.ndarray, y: np.ndarray, x_eval: np.ndarray, eval_points: int | None = None) -> np.ndarray:
        return super().apply(f, y, x_eval, 40_000)


def of_kernels(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Figures]:
    """relplot's error where it equals the kernel's deviation; its own search ends when that is known to 1e-3.

    Not asked where its kernel, which ends .5 away, is cut, nor near 1, where its reflection loses half of a residual.
    """
    relplot.metrics._get_default_kernel = lambda: Fine
    relplot.config.smECE_mesh_pts = 1_000_000

    def excess(sigma: float) -> float:
        return float(relplot.smECE_sigma(confidence, correct, sigma)) - sigma

    if confidence.max() > 1 - 1e-3 or excess(0.08) > 0:
        return {}
    return {"smooth_calibration_error": {"relplot": optimize.brentq(excess, 0.005, 0.08, xtol=1e-9)}}


def of_draws(case: Drawn) -> dict[str, Figures]:
    mean, deviation, y = case.mean, np.sqrt(case.variance), case.targets
    means, deviations = case.means.T, np.sqrt(case.variances).T  # (N, S), as the others have it
    mixture = MixtureSameFamily(
        Categorical(torch.ones(means.shape, dtype=torch.float64)), Normal(torch.tensor(means), torch.tensor(deviations))
    )
    low, high = case.intervals.T
    shortest = np.stack([arviz.array_stats.hdi(row, prob=inclusive(len(row))) for row in means])
    return {
        "root_mean_squared_error": {"scikit-learn": sklearn.root_mean_squared_error(y, mean)},
        "mean_absolute_error": {"scikit-learn": sklearn.mean_absolute_error(y, mean)},
        "gaussian_negative_log_likelihood": {
            "scoringrules": scoringrules.logs_normal(y, mean, deviation).mean(),
            "uncertainty-toolbox": uct.nll_gaussian(mean, deviation, y),
        },
        "mixture_negative_log_likelihood": {
            "scoringrules": scoringrules.logs_mixnorm(y, means, deviations).mean(),
            "torch": -float(mixture.log_prob(torch.tensor(y)).mean()),
        },
        "mixture_cdf": {"torch": float(mixture.cdf(torch.tensor(y)).mean())},
        "gaussian_crps": {
            "properscoring": properscoring.crps_gaussian(y, mean, deviation).mean(),
            "scoringrules": scoringrules.crps_normal(y, mean, deviation).mean(),
            "uncertainty-toolbox": uct.crps_gaussian(mean, deviation, y),
        },
        "ensemble_crps": {
            "properscoring": properscoring.crps_ensemble(y, means).mean(),
            "scoringrules": scoringrules.crps_ensemble(y, means, estimator="nrg").mean(),
        },
        "fair_ensemble_crps": {"scoringrules": scoringrules.crps_ensemble(y, means, estimator="fair").mean()},
        "mixture_crps": {"scoringrules": scoringrules.crps_mixnorm(y, means, deviations).mean()},
        "interval_score": {"scoringrules": scoringrules.interval_score(y, low, high, 1 - LEVEL).mean()},
        "interval_miscalibration_area": {
            # Predictions and targets change places, which gives the residuals their right sign.
            "uncertainty-toolbox": uct.miscalibration_area(y, deviation, mean, num_bins=100, prop_type="quantile")
        },
        "sharpness": {"uncertainty-toolbox": uct.sharpness(deviation)},
        "highest_density_interval": {"arviz-stats": float((shortest[:, 1] - shortest[:, 0]).mean())},
    }


def inclusive(count: int) -> float:
    """Return the level at which ArviZ, which goes floor(level S) places on, ends on the ceil(.9 S)-th draw."""
    return (np.ceil(LEVEL * count) - 1 + 0.5) / count


def of_doubt(case: Doubted) -> dict[str, Figures]:
    confidence = torch.tensor(1 - case.uncertainty / 2)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    wrong = torch.tensor(case.losses).long()  # class 0 is predicted throughout
    risks = {name: kind() for name, kind in (("aurc", tu_risk.AURC), ("augrc", tu_risk.AUGRC))}
    scores = np.concatenate([case.inside, case.outside])
    shares = torch.tensor(scores / 20 + 0.5)  # torchmetrics takes numbers beyond [0, 1] for logits
    outside = np.repeat([0, 1], [len(case.inside), len(case.outside)])
    found = tu_false_positives.FPRx(0.95, 1)
    for risk in risks.values():
        risk.update(probabilities, wrong)
    found.update(torch.tensor(scores), torch.tensor(outside))
    false_positives, true_positives, _ = sklearn.roc_curve(outside, scores, drop_intermediate=False)
    right = 1 - case.losses
    accurate, ranked = right.mean(), sklearn.roc_auc_score(case.losses, case.uncertainty)
    return {
        "area_under_risk_coverage_curve": {
            "uncertainty-calibration": 1 - kumar.utils.get_selective_stats(1 - case.uncertainty, right)[0]
        },
        "trapezoidal_area_under_risk_coverage_curve": {"torch-uncertainty": float(risks["aurc"].compute())},
        "area_under_generalized_risk_coverage_curve": {
            "scikit-learn": (1 - ranked) * accurate * (1 - accurate) + (1 - accurate) ** 2 / 2
        },
        "trapezoidal_area_under_generalized_risk_coverage_curve": {
            "torch-uncertainty": float(risks["augrc"].compute())
        },
        "area_under_roc": {
            "scikit-learn": sklearn.roc_auc_score(outside, scores),
            "torchmetrics": float(auroc(shares, torch.tensor(outside), task="binary")),
        },
        "false_positive_rate_at": {
            "scikit-learn": false_positives[np.argmax(true_positives >= 0.95)],
            "torch-uncertainty": float(found.compute()),
        },
    }


def figures() -> dict[str, dict[str, Figures]]:
    """Return each library's figure by score and case."""
    asked: tuple[tuple[Mapping[str, object], Callable[..., dict[str, Figures]]], ...] = (
        (CLASSIFIED, of_probabilities),
        (DRAWN, of_draws),
        (DOUBTED, of_doubt),
    )
    told: dict[str, dict[str, Figures]] = {}
    for cases, scores in asked:
        for name, case in cases.items():
            for score, peers in scores(case).items():
                told.setdefault(score, {})[name] = {peer: float(value) for peer, value in sorted(peers.items())}
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = json.dumps(figures(), indent=1, sort_keys=True)
    (HERE / "scores.json").write_text(text + "\n", encoding="utf-8")
