"""Calibration maps of a classification: found where draws are spoilt, harmless where they are not, right at edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from calibrations import read_back
from dubito_models.calibration.choosing import best_of
from dubito_models.calibration.class_maps import (
    Beta,
    ClassMap,
    Dirichlet,
    Isotonic,
    LogMeanTemperature,
    Temperature,
    VectorScaling,
    sum_of_others,
)
from dubito_models.calibration.fitting_classes import (
    LabelledDraws,
    beta_loss,
    choose_class_map,
    dirichlet_loss,
    fit_beta,
    fit_dirichlet,
    fit_isotonic,
    fit_log_mean,
    fit_temperature_map,
    fit_vector,
    label_draws,
    row_losses,
    summed_loss,
    vector_loss,
)
from dubito_models.calibration.temperature import fit_temperature
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import negative_log_likelihood

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

MAPS: list[ClassMap] = [
    Temperature(1.7),
    LogMeanTemperature(0.6),
    VectorScaling((1.2, 0.7, -0.1), (0.1, 0.0, -0.3)),
    Dirichlet(((1.1, 0.2, 0.0), (-0.1, 0.8, 0.1), (0.0, 1 / 3, 1.0)), (0.1, -0.2, 0.0)),
    Isotonic(((0.1, 0.5), (0.2,), (0.0, 0.3, 1.0)), ((0.2, 0.9), (0.4,), (0.1, 0.1, 0.7))),
    Beta((1.0, 0.0, 2.0), (0.5, 1.0, 0.0), (0.1, -0.1, 3.0)),
]
KINDS = [found.kind for found in MAPS]


def drawn(
    rows: int = 2000, classes: int = 4, count: int = 20, seed: int = 0, spoil: Callable[[Array], Array] | None = None
) -> tuple[Array, Labels]:
    """Make draws (S, N, K) whose labels follow mean_s softmax(z_s); `spoil` then changes the log-probabilities."""
    generator = np.random.default_rng(seed)
    logits = 2.0 * generator.normal(size=(1, rows, classes)) + 0.5 * generator.normal(size=(count, rows, classes))
    logs = special.log_softmax(logits, -1)
    truth = np.exp(logs).mean(0)
    labels = (truth.cumsum(-1) > generator.random((rows, 1))).argmax(-1)
    return special.log_softmax(logs if spoil is None else spoil(logs), -1), labels


def calibrated(found: ClassMap | None, logs: Array) -> Array:
    if found is None:
        return np.exp(logs).mean(0)
    if found.per_draw:
        mapped: Array = found.apply(torch.tensor(logs)).exp().mean(0).numpy()
        return mapped
    return found.apply_mean(np.exp(logs).mean(0))


def nll(found: ClassMap | None, logs: Array, labels: Labels) -> float:
    return negative_log_likelihood(calibrated(found, logs), labels)


def fitted(kind: str, draws: LabelledDraws) -> ClassMap:
    per_draw, of_mean = fit_temperature_map(draws), fit_log_mean(draws)
    match kind:
        case "temperature":
            return per_draw
        case "log_mean_temperature":
            return of_mean
        case "vector_scaling":
            return fit_vector(draws, per_draw.temperature)
        case "dirichlet":
            return fit_dirichlet(draws, per_draw.temperature, 300.0)
        case "isotonic":
            return fit_isotonic(draws)
        case _:
            return fit_beta(draws, of_mean.temperature)


# --- What is found ---


@pytest.mark.parametrize("kind", KINDS)
def test_draws_that_are_calibrated_are_left_about_as_they_are(kind: str) -> None:
    """A fit gains about half a nat per parameter over all rows, and loses as much on new ones; 4 times that is allowed.

    Isotonic maps have no fixed number of parameters: about 40 blocks here.
    """
    parameters = {"vector_scaling": 8, "dirichlet": 20, "isotonic": 40, "beta": 12}.get(kind, 1)
    found = fitted(kind, label_draws(*drawn()))
    logs, labels = drawn(rows=20_000, seed=1)
    assert nll(found, logs, labels) - nll(None, logs, labels) < 4 * parameters / 2 / 2000


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_that_spoilt_draws_is_found_as_the_old_fit_finds_it(temperature: float) -> None:
    logs, labels = drawn(spoil=lambda logs: logs * temperature)
    found = fit_temperature_map(label_draws(logs, labels)).temperature
    assert found == pytest.approx(fit_temperature(logs, labels).value, rel=1e-6)
    assert abs(np.log(found / temperature)) < 0.15


def test_weights_and_biases_that_spoilt_draws_are_undone() -> None:
    """The likelihood of what is found is within 3 nats, over all rows, of that of the exact inverse (8 parameters)."""
    weights, biases = np.array([1.0, 2.0, 1.5, 0.7]), np.array([0.0, 0.5, -0.5, 0.2])
    logs, labels = drawn(rows=4000, spoil=lambda logs: logs * weights + biases)
    draws = label_draws(logs, labels)
    found = fitted("vector_scaling", draws)
    # What was lost by normalising stays lost: the inverse is exact only up to it, so the fit may do better.
    inverse = VectorScaling(tuple((1 / weights).tolist()), tuple((-biases / weights).tolist()))
    assert nll(found, logs, labels) - nll(inverse, logs, labels) < 3 / 4000
    assert nll(None, logs, labels) - nll(found, logs, labels) > 100 / 4000


def test_a_matrix_that_spoilt_draws_is_undone_by_dirichlet_and_by_nothing_simpler() -> None:
    """Its rows have the sum 1, so that nothing is lost by normalising, and the inverse is a map of the same kind."""
    matrix = np.array([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, -0.4, 1.4]])

    def spoil(logs: Array) -> Array:
        return logs @ matrix.T + np.array([0.0, 0.0, 0.4])

    logs, labels = drawn(rows=2000, classes=3, count=8, spoil=spoil)
    assert getattr(choose_class_map(logs, labels).map, "kind", None) == "dirichlet"
    draws = label_draws(logs, labels)
    test = drawn(rows=10_000, classes=3, count=8, seed=1, spoil=spoil)
    free = fit_dirichlet(draws, 1.0, 1.0)
    worth = {kind: nll(fitted(kind, draws), *test) for kind in KINDS}
    assert nll(free, *test) < worth.pop("dirichlet") < min(worth.values()) - 0.01
    assert nll(free, *test) < nll(None, *drawn(rows=10_000, classes=3, count=8, seed=1)) + 0.01  # before the matrix


def test_the_parameters_of_a_beta_map_are_found() -> None:
    """Two classes, 20000 rows: the parameters' own deviations are below .05 (from 40 seeds), 4 of them are allowed."""
    generator = np.random.default_rng(0)
    p = generator.beta(1.0, 1.0, 20_000)
    truth = special.expit(0.6 * np.log(p) - 1.8 * np.log1p(-p) + 0.5)
    labels = (generator.random(20_000) < truth).astype(np.int64)
    found = fit_beta(label_draws(np.log(np.column_stack([1 - p, p]))[None], labels), 1.0)
    np.testing.assert_allclose((found.a[0], found.b[0], found.c[0]), (0.6, 1.8, 0.5), atol=0.2)


def test_an_isotonic_map_follows_any_rising_curve() -> None:
    """Two classes, 20000 rows: blocks hold hundreds of rows, so that their values' deviations are below .03."""
    generator = np.random.default_rng(0)
    p = generator.random(20_000)
    labels = (generator.random(20_000) < p**3).astype(np.int64)
    found = fit_isotonic(label_draws(np.log(np.column_stack([1 - p, p]))[None], labels))
    grid = np.linspace(0.02, 0.98, 49)
    mapped = found.apply_mean(np.column_stack([1 - grid, grid]))
    np.testing.assert_allclose(mapped[:, 1], grid**3, atol=0.1)


# --- Peers ---


def test_isotonic_blocks_are_scikit_learns() -> None:
    """With ties, which scikit-learn pools too; and clipped to 1 / (2 n) of 0 and 1."""
    generator = np.random.default_rng(0)
    p = generator.integers(0, 21, 300) / 20
    labels = (generator.random(300) < p).astype(np.int64)
    with np.errstate(divide="ignore"):
        found = fit_isotonic(label_draws(np.log(np.column_stack([1 - p, p]))[None], labels))
    peer = IsotonicRegression(y_min=1 / 600, y_max=1 - 1 / 600).fit(p, labels)
    blocks = np.unique(peer.predict(np.unique(p)))
    np.testing.assert_allclose(np.unique(found.values[0]), blocks, rtol=1e-12)
    # Between the middles of blocks it is linear; at one it is the block.
    mapped = found.apply_mean(np.column_stack([1 - np.array(found.knots[0]), found.knots[0]]))
    np.testing.assert_allclose(mapped[:, 1], found.values[0], rtol=1e-12)


def test_temperature_and_beta_are_scikit_learns_logistic_regressions() -> None:
    """Of two classes, a single draw, and so many copies of 200 rows that no prior tells."""
    logs, labels = drawn(rows=200, classes=2, count=1, spoil=lambda logs: logs * 2.0)
    many = label_draws(np.tile(logs, (1, 500, 1)), np.tile(labels, 500))
    odds = logs[0, :, 1] - logs[0, :, 0]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-9).fit(odds[:, None], labels).coef_[0, 0]
    assert fit_temperature_map(many).temperature == pytest.approx(1 / slope, rel=1e-3)
    assert fit_log_mean(many).temperature == pytest.approx(1 / slope, rel=1e-3)
    features = np.column_stack([logs[0, :, 1], -logs[0, :, 0]])
    peer = LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000).fit(features, labels)
    found = fit_beta(many, 1 / slope)
    expected = [*peer.coef_[0], peer.intercept_[0]]
    assert min(expected[:2]) > 0  # else the bound would tell
    np.testing.assert_allclose([found.a[0], found.b[0], found.c[0]], expected, atol=5e-3)


def test_fits_are_the_optima_that_a_search_without_gradients_or_coordinates_finds() -> None:
    logs, labels = drawn(rows=60, classes=3, count=4, spoil=lambda logs: logs * np.array([1.0, 2.0, 1.5]))
    draws = label_draws(logs, labels)
    temperature = fit_temperature_map(draws).temperature
    vector = fit_vector(draws, temperature)
    loss = vector_loss(draws.scores / temperature, labels)
    at = np.concatenate([np.array(vector.weights) * temperature, vector.biases])
    peer = optimize.minimize(lambda x: loss(x)[0], np.array([1.0] * 3 + [0.0] * 3), method="Powell", tol=1e-10)
    assert loss(at)[0] - peer.fun < 1e-5  # nats, over all rows
    matrix = fit_dirichlet(draws, temperature, 10.0)
    whole = dirichlet_loss(draws.scores / temperature, labels, 10.0)
    at = np.column_stack([np.array(matrix.weights) * temperature, matrix.biases]).ravel()
    peer = optimize.minimize(whole, np.eye(3, 4).ravel(), jac=True, method="BFGS", options={"gtol": 1e-6})
    assert whole(at)[0] - peer.fun < 1e-5


@pytest.mark.parametrize("name", ["scores", "vector", "dirichlet", "beta"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logs, labels = drawn(rows=12, classes=3, count=3)
    scores = label_draws(logs, labels).scores
    features = np.column_stack([logs[0, :, 0], -np.log(sum_of_others(np.exp(logs[0]))[:, 0]), np.ones(12)])
    cases: dict[str, tuple[Callable[[Array], tuple[float, Array]], int]] = {
        "scores": (
            lambda at: (lambda found: (found[0], found[1].ravel()))(summed_loss(at.reshape(3, 3, 12), labels)),
            108,
        ),
        "vector": (vector_loss(scores, labels), 6),
        "dirichlet": (dirichlet_loss(scores, labels, 3.0), 12),
        "beta": (beta_loss(features, labels == 0, np.array([1.0, 1.0, 0.0])), 3),
    }
    loss, size = cases[name]
    at = np.random.default_rng(1).normal(size=size)
    numeric = optimize.approx_fprime(at, lambda x: loss(x)[0], 1e-7)
    np.testing.assert_allclose(loss(at)[1], numeric, rtol=1e-4, atol=1e-4)


def test_what_is_fitted_is_what_is_applied() -> None:
    """Losses in the layout of fitting are the likelihood of what the maps, applied to draws, give."""
    logs, labels = drawn(rows=50)
    draws = label_draws(logs, labels)
    np.testing.assert_allclose(row_losses(draws.scores / 2.0, labels).mean(), nll(Temperature(2.0), logs, labels))
    np.testing.assert_allclose(row_losses(draws.scores, labels).mean(), nll(None, logs, labels))
    assert summed_loss(draws.scores, labels)[0] == pytest.approx(row_losses(draws.scores, labels).sum())


# --- Symmetries ---


@settings(deadline=None)
@given(logits=st.lists(st.floats(-900, 900), min_size=3, max_size=3, unique=True), temperature=st.floats(0.02, 50))
def test_a_temperature_leaves_every_draws_first_class_in_place(logits: list[float], temperature: float) -> None:
    logs = torch.log_softmax(torch.tensor([logits], dtype=torch.float64), -1)
    mapped = Temperature(temperature).apply(logs)
    best = int(logs.argmax())
    assert mapped[0, best] == mapped.max()


@pytest.mark.parametrize("kind", KINDS)
def test_classes_in_another_order_and_rows_and_draws_too_give_the_same_map(kind: str) -> None:
    logs, labels = drawn(rows=200, classes=3, count=4, spoil=lambda logs: logs * np.array([1.0, 2.0, 1.5]))
    generator = np.random.default_rng(0)
    rows, draws, classes = generator.permutation(200), generator.permutation(4), np.array([2, 0, 1])
    found = fitted(kind, label_draws(logs, labels))
    other = fitted(kind, label_draws(logs[draws][:, rows][..., classes], classes.argsort()[labels][rows]))
    test, _ = drawn(rows=100, classes=3, count=4, seed=1)
    np.testing.assert_allclose(calibrated(other, test[..., classes]), calibrated(found, test)[:, classes], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_two_classes_by_another_name_give_the_same_map(kind: str) -> None:
    logs, labels = drawn(rows=200, classes=2, count=4, spoil=lambda logs: logs * np.array([1.0, 2.0]))
    found = fitted(kind, label_draws(logs, labels))
    other = fitted(kind, label_draws(logs[..., ::-1], 1 - labels))
    test, _ = drawn(rows=100, classes=2, count=4, seed=1)
    mapped = calibrated(found, test)
    np.testing.assert_allclose(calibrated(other, test[..., ::-1].copy()), mapped[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(mapped.sum(-1), 1, rtol=1e-12)


# --- Edges ---


@st.composite
def saturated(draw: st.DrawFn) -> Array:
    """Make probabilities (S, N, K), many of them exactly 0 or 1, or so small that they are hardly numbers."""
    classes = draw(st.integers(2, 4))
    weights = st.sampled_from([0.0, 0.0, 1e-320, 1e-40, 1e-12, 0.1, 1.0])
    rows = draw(st.lists(st.lists(weights, min_size=classes, max_size=classes), min_size=24, max_size=24))
    values = np.array(rows)
    values[values.sum(1) == 0, 0] = 1.0
    return (values / values.sum(1, keepdims=True)).reshape(2, 12, classes)


@settings(max_examples=20, deadline=None)
@given(probabilities=saturated(), seed=st.integers(0, 9))
def test_probabilities_of_exactly_0_and_1_give_numbers(probabilities: Array, seed: int) -> None:
    """Fitted and applied, every map gives probabilities: finite, not negative, of sum 1."""
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    labels = np.random.default_rng(seed).integers(0, probabilities.shape[-1], 12)
    draws = label_draws(logs, labels)
    for kind in KINDS:
        found = fitted(kind, draws)
        mapped = calibrated(found, logs)
        assert np.isfinite(mapped).all()
        assert mapped.min() >= 0
        np.testing.assert_allclose(mapped.sum(-1), 1, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("found", [each for each in MAPS if each.per_draw], ids=lambda found: found.kind)
def test_maps_of_draws_keep_dtype_and_normalise(found: Any, dtype: torch.dtype) -> None:
    logs = torch.tensor([[0.0, -torch.inf, -torch.inf], [-1000.0, -0.5, -0.93], [-1.1, -1.1, -1.1]], dtype=dtype)
    mapped = found.apply(logs)
    assert mapped.dtype is dtype
    torch.testing.assert_close(mapped.exp().sum(-1), torch.ones(3, dtype=dtype))
    assert found.apply(logs.expand(4, 2, 3, 3)).shape == (4, 2, 3, 3)
    assert found.apply(logs.to("meta")).device.type == "meta"  # nothing is left behind on another device


def test_a_complement_has_all_its_digits() -> None:
    probabilities = np.array([[1 - 1e-16, 1e-20, 3e-20], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
    expected = [[4e-20, 1.0, 1.0], [1.0, 1.0, 0.0], [0.8, 0.7, 0.5]]
    np.testing.assert_allclose(sum_of_others(probabilities), expected, rtol=1e-12)


def test_blocks_whose_middles_rounding_joins_share_a_knot() -> None:
    """Five blocks of neighbouring numbers, the middles of two of which are the same in float64."""
    counts, right = [1, 7, 4, 5, 6, 3, 8, 1], [0, 0, 1, 2, 3, 3, 8, 1]
    p = np.repeat(0.8050029237453802 + np.arange(8) * np.spacing(0.8), counts)
    labels = np.concatenate([np.arange(count) < some for count, some in zip(counts, right, strict=True)]).astype(
        np.int64
    )
    found = fit_isotonic(LabelledDraws(np.zeros((2, 1, len(p))), np.column_stack([1 - p, p]), labels))
    assert len(found.knots[0]) == 4


def test_a_class_that_no_row_has_keeps_a_chance() -> None:
    logs, labels = drawn(rows=100, classes=3)
    labels = np.minimum(labels, 1)
    draws = label_draws(logs, labels)
    for kind in KINDS:
        mapped = calibrated(fitted(kind, draws), logs)
        assert (mapped[:, 2] > 0).all()
        assert np.isfinite(mapped).all()


@pytest.mark.parametrize("found", MAPS, ids=lambda found: found.kind)
def test_a_map_and_its_document_are_the_same(found: ClassMap) -> None:
    assert read_back(ClassMap, asdict(found)) == found


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"kind": "temperature", "temperature": 0.0}, "temperature: got 0.0"),
        ({"kind": "temperature", "temperature": float("nan")}, "temperature: got"),
        ({"kind": "vector_scaling", "weights": [1.0], "biases": []}, "biases: got 0 numbers"),
        ({"kind": "dirichlet", "weights": [[1.0, 0.0], [1.0]], "biases": [0.0, 0.0]}, "weights: got 1 of them"),
        ({"kind": "dirichlet", "weights": [], "biases": []}, "biases: got 0 numbers"),
        ({"kind": "isotonic", "knots": [[0.5, 0.5]], "values": [[0.1, 0.2]]}, "knots: got numbers that do not rise"),
        ({"kind": "isotonic", "knots": [[0.1, 0.5]], "values": [[0.3, 0.2]]}, "values: got numbers that do not rise"),
        ({"kind": "isotonic", "knots": [[0.1]], "values": [[0.0]]}, "values: got 0..0"),
        ({"kind": "isotonic", "knots": [[0.1]] * 2, "values": [[0.1]] * 2}, "knots: got 2 of them"),
        ({"kind": "isotonic", "knots": [], "values": []}, "knots: got 0 of them"),
        ({"kind": "beta", "a": [-1.0], "b": [1.0], "c": [0.0]}, "a, b: got -1.0"),
        ({"kind": "beta", "a": [1.0], "b": [1.0, 1.0], "c": [0.0]}, "b: got 2 of them"),
    ],
)
def test_a_document_that_is_no_map_is_refused(document: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read_back(ClassMap, document)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"kind": "platt"},
        {"kind": "temperature"},
        {"kind": "temperature", "temperature": [1.0]},
        {"kind": "vector_scaling", "weights": 1.0, "biases": [0.0]},
        {"kind": "vector_scaling", "weights": ["much"], "biases": [0.0]},
    ],
)
def test_a_document_of_another_shape_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        read_back(ClassMap, document)


@pytest.mark.parametrize("found", MAPS[2:], ids=lambda found: found.kind)
def test_a_map_of_other_classes_is_refused(found: ClassMap) -> None:
    with pytest.raises(InvalidArgument, match="classes: got 4 of them; accepted: 3"):
        calibrated(found, drawn(rows=10)[0])


# --- Choosing ---


@pytest.mark.parametrize("kind", KINDS)
def test_each_map_helps_draws_that_are_too_sure(kind: str) -> None:
    """On rows that it was not fitted to, and by about as much as cross-validation says (deviations below .03 here)."""
    logs, labels = drawn(rows=500, spoil=lambda logs: logs * 3.0)
    chosen = choose_class_map(logs, labels, methods=[kind])
    assert chosen.map is not None
    assert chosen.map.kind == kind
    assert chosen.tried == ((kind, chosen.nll_after),)
    test, truth = drawn(rows=5000, seed=1, spoil=lambda logs: logs * 3.0)
    gain = nll(None, test, truth) - nll(chosen.map, test, truth)
    assert gain > 0.2
    assert chosen.nll_after is not None
    assert chosen.nll_before - chosen.nll_after == pytest.approx(gain, abs=0.15)


def test_cross_validation_is_what_five_fits_say_of_the_others_rows() -> None:
    logs, labels = drawn(rows=57, spoil=lambda logs: logs * 2.0)
    chosen = choose_class_map(logs, labels, methods=["beta", "temperature"], seed=3)
    expected = dict.fromkeys(("temperature", "beta"), 0.0)
    for fold in np.array_split(np.random.default_rng(3).permutation(57), 5):
        rest = np.setdiff1d(np.arange(57), fold)
        for kind in expected:
            found = fitted(kind, label_draws(logs[:, rest], labels[rest]))
            expected[kind] += nll(found, logs[:, fold], labels[fold]) * len(fold) / 57
    assert dict(chosen.tried) == pytest.approx(expected, rel=1e-6)
    assert chosen.nll_before == pytest.approx(nll(None, logs, labels), rel=1e-12)
    assert chosen.nll_after == min(nll for _, nll in chosen.tried)
    assert chosen.map == fitted(min(expected, key=expected.__getitem__), label_draws(logs, labels))


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_that_are_noise_do_not_mislead_far(classes: int) -> None:
    """Twenty seeds, 60 calibrated rows: what is chosen costs at most .1 nats a row, and on the average less than .02.

    Labels are drawn from what the draws say, so that there is nothing to learn.
    """
    test, truth = drawn(rows=5000, classes=classes, count=5, seed=99)
    before = nll(None, test, truth)
    costs = []
    for seed in range(20):
        chosen = choose_class_map(*drawn(rows=60, classes=classes, count=5, seed=seed))
        costs.append(nll(chosen.map, test, truth) - before)
    assert max(costs) < 0.1
    assert np.mean(costs) < 0.02


def test_labels_that_have_nothing_to_do_with_the_rows_flatten_the_answer() -> None:
    """Then what is chosen helps: held-out NLL falls to that of the classes' shares, log 3, within 5 %."""
    logs, _ = drawn(rows=400, classes=3, count=5)
    labels = np.random.default_rng(5).integers(0, 3, 400)
    chosen = choose_class_map(logs[:, :200], labels[:200])
    assert chosen.map is not None
    assert nll(chosen.map, logs[:, 200:], labels[200:]) < 1.05 * np.log(3) < nll(None, logs[:, 200:], labels[200:])


def test_a_map_must_gain_more_than_half_its_standard_error_and_be_finite() -> None:
    before = np.array([1.0, 2.0, 3.0, 2.0])
    assert best_of(before, np.stack([before - [0.1, -0.05, 0.1, -0.1], before])) is None  # gain .01, error .05
    assert best_of(before, np.stack([before, before - [0.1, 0.2, 0.1, 0.2]])) == 1
    assert best_of(before, np.stack([before - 1.0, np.array([0.0, 0.0, 0.0, np.inf])])) == 0
    assert best_of(before, np.full((1, 4), np.inf)) is None
    assert best_of(np.array([np.inf, 0.0, 0.0, 0.0]), np.stack([before, before + 1])) == 0
    assert best_of(np.full(4, np.inf), np.full((2, 4), np.inf)) is None


def test_a_head_that_gave_the_label_no_chance_gets_a_map_that_does() -> None:
    logs = np.log(np.array([[0.999, 0.001, 1e-300]] * 40))[None]
    logs[0, :, 2] = -np.inf
    chosen = choose_class_map(logs, np.array([0] * 36 + [2] * 4))
    assert chosen.nll_before == np.inf
    assert chosen.map is not None
    assert chosen.nll_after is not None
    assert chosen.nll_after < 5


def test_maps_of_the_mean_are_tried_where_rows_are_many_or_where_asked_for() -> None:
    logs, labels = drawn(rows=1000, classes=2, count=1)
    assert {kind for kind, _ in choose_class_map(logs, labels).tried} == set(KINDS)
    few = choose_class_map(logs[:, :100], labels[:100])
    assert [kind for kind, _ in few.tried] == ["temperature", "vector_scaling", "dirichlet"]
    asked = choose_class_map(logs[:, :100], labels[:100], methods=["isotonic", "beta"])
    assert [kind for kind, _ in asked.tried] == ["beta", "isotonic"]


def test_many_classes_are_not_given_a_matrix() -> None:
    logs, labels = drawn(rows=30, classes=51, count=2)
    assert [kind for kind, _ in choose_class_map(logs, labels).tried] == ["temperature", "vector_scaling"]
    with pytest.raises(InvalidArgument, match="methods: got \\['dirichlet'\\]"):
        choose_class_map(logs, labels, methods=["dirichlet"])


def test_what_cannot_be_calibrated_is_refused() -> None:
    logs, labels = drawn(rows=20)
    with pytest.raises(InvalidArgument, match="at least 10 rows"):
        choose_class_map(logs[:, :9], labels[:9])
    with pytest.raises(InvalidArgument, match=r"labels: got 0\.\.4; accepted: class numbers 0\.\.3"):
        choose_class_map(logs, np.arange(20) % 5)
    with pytest.raises(InvalidArgument, match="labels: got float64"):
        choose_class_map(logs, labels.astype(np.float64))
    with pytest.raises(InvalidArgument, match="labels: got int64 of shape"):
        choose_class_map(logs, labels[:-1])
    with pytest.raises(InvalidArgument, match="methods: got \\[\\]"):
        choose_class_map(logs, labels, methods=[])
    with pytest.raises(InvalidArgument, match="methods: got \\['platt'\\]"):
        choose_class_map(logs, labels, methods=["platt"])
    with pytest.raises(InvalidArgument, match="log_probabilities: got NaN"):
        choose_class_map(np.full_like(logs, np.nan), labels)
    with pytest.raises(InvalidArgument, match="log_probabilities: got shape"):
        choose_class_map(logs[0], labels)
