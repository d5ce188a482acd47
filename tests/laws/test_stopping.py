"""Law 6: stopping rules keep what they promise, row by row; law 2 holds for rows that stop early, too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from dubito_models.data import digits
from dubito_models.engine import Engine, Run, wants
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Decoded, Task
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Classification, Moments, Regression, StopReason, classify, gather, spread
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import (
    ErrorRatios,
    Quantity,
    Stopping,
    StoppingRule,
    count_looks,
    measure_error_ratios,
    next_look,
    settled,
    standard_error,
)
from dubito_models.thinning import Design
from networks import sample
from trained import train_on_digits

Packed = Callable[[str], ModelVersion]
LOOKS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
G = 10


def classes(draws: NDArray[np.float64]) -> Decoded:
    return Decoded(torch.log(torch.as_tensor(draws)), None, None)


def numbers(draws: NDArray[np.float64]) -> Decoded:
    return Decoded(None, torch.as_tensor(draws), None)


def kept(decoded: Decoded) -> Moments:
    return gather(decoded, [G] * 128, keep_draws=True)


def run(
    stopping: Stopping,
    draws: NDArray[np.float64],
    decoded: Callable[[Any], Decoded] = classes,
    *,
    balanced: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return after how many of the draws (S, B, K) each row stops, S where it does not, and whether it does."""
    used, done = np.full(draws.shape[1], len(draws)), np.zeros(draws.shape[1], dtype=bool)
    for look, groups in enumerate((n for n in LOOKS if stopping.least_groups <= n <= len(draws) // G), start=1):
        moments = gather(decoded(draws[: groups * G]), [G] * groups, keep_draws=True)
        fresh = settled(stopping, moments, look, balanced) & ~done
        used[fresh], done = groups * G, done | fresh
    return used, done


def softmax_draws(
    rows: int, spread: float, gap: float, seed: int, draws: int = 320, *, cancelling: bool = False
) -> NDArray[np.float64]:
    """Return probabilities (S, B, 3) of draws: normal logits, the first two classes `gap` apart.

    Independent, or such that those of a group all but cancel.
    """
    random = np.random.default_rng(seed)
    middle, normal = np.array([gap, 0.0, -1.0]), random.normal(size=(draws, rows, 3))
    if cancelling:
        half = random.normal(size=(draws // G, G // 2, rows, 3))
        normal = (0.3 * normal + np.concatenate([half, -half], 1).reshape(normal.shape)) / np.sqrt(1.09)
    return special.softmax(middle + spread * normal, axis=-1)


def test_looks_come_less_and_less_often() -> None:
    looks = [next_look(0)]
    while looks[-1] < 32:
        looks.append(next_look(looks[-1]))
    assert looks == LOOKS
    assert [count_looks(n) for n in looks] == list(range(1, 11))
    assert [next_look(n) for n in (5, 7, 9, 13)] == [6, 8, 12, 16]


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("spread", [0.3, 1.5])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_decision_is_seldom_wrong_where_it_is_hard(level: float, spread: float, balanced: bool) -> None:
    """4,000 rows, ten looks: the share settled for the wrong class stays below 1 - level (P(false alarm) < 1e-4)."""
    draws = softmax_draws(4000, spread, 0.02, seed=1, cancelling=balanced)
    used, done = run(Stopping(StoppingRule.DECISION, level=level), draws, balanced=balanced)
    if balanced:  # groups tell what the formula for independent draws does not
        assert done.sum() > 2 * run(Stopping(StoppingRule.DECISION, level=level), draws)[1].sum()
    lead = np.stack([draws[:n, row].mean(0) for row, n in enumerate(used)])
    wrong = int((done & (lead.argmax(1) != 0)).sum())
    assert wrong <= stats.binom.ppf(1 - 1e-4, 4000, 1 - level)


def test_a_decision_that_is_plain_takes_one_group() -> None:
    draws = softmax_draws(500, 0.5, 4.0, seed=2)
    used, done = run(Stopping(StoppingRule.DECISION), draws)
    assert done.all()
    assert (used == G).mean() > 0.99


def test_a_tie_is_never_settled() -> None:
    draws = np.full((40, 3, 2), 0.5)
    _, done = run(Stopping(StoppingRule.DECISION), draws)
    assert not done.any()


@pytest.mark.parametrize(("quantity", "target"), [
    (Quantity.MEAN, 0.02), (Quantity.PREDICTIVE_ENTROPY, 0.04), (Quantity.MUTUAL_INFORMATION, 0.02),
])  # fmt: skip
def test_the_error_at_the_end_is_what_was_tolerated(quantity: Quantity, target: float) -> None:
    """Over 3,000 rows of independent draws the root mean square error is within 10 % of the target, or below."""
    draws = softmax_draws(3000, 0.8, 0.5, seed=3)
    used, done = run(Stopping(StoppingRule.TOLERANCE, quantity, target), draws)
    assert done.all()
    assert 20 < used.mean() < 320
    truth = softmax_draws(200_000, 0.8, 0.5, seed=4, draws=1)[0]
    mean = np.stack([draws[:n, row].mean(0) for row, n in enumerate(used)])
    expected = np.array([special.entr(draws[:n, row]).sum(-1).mean() for row, n in enumerate(used)])
    if quantity is Quantity.MEAN:
        error = (mean - truth.mean(0)).T
    else:
        total = special.entr(truth.mean(0)).sum()
        whole = total - (special.entr(truth).sum(-1).mean() if quantity is Quantity.MUTUAL_INFORMATION else 0.0)
        error = special.entr(mean).sum(-1) - (expected if quantity is Quantity.MUTUAL_INFORMATION else 0.0) - whole
        error = error[None] - error.mean()  # the plain estimate's bias is the jackknife's business
    assert np.sqrt((error**2).mean(1)).max() < 1.1 * target


def measure(quantity: Quantity, moments: Moments, balanced: bool) -> NDArray[np.float64]:
    answer = classify(moments, spread(moments, balanced))
    found = answer.probabilities.max(-1) if quantity is Quantity.MEAN else getattr(answer, quantity.value)
    assert found is not None
    return found


@pytest.mark.parametrize(("quantity", "balanced", "off"), [
    (Quantity.MEAN, False, 0.04),
    (Quantity.MEAN, True, 0.02),
    (Quantity.PREDICTIVE_ENTROPY, False, 0.03),
    (Quantity.PREDICTIVE_ENTROPY, True, 0.015),
    (Quantity.MUTUAL_INFORMATION, False, 0.02),
    (Quantity.MUTUAL_INFORMATION, True, 0.02),
])  # fmt: skip
def test_a_threshold_is_seldom_on_the_wrong_side(quantity: Quantity, balanced: bool, off: float) -> None:
    """3,000 rows: the share settled on the wrong side stays below 1 - level (P(false alarm) < 1e-4)."""
    draws = softmax_draws(3000, 0.8, 0.5, seed=5, cancelling=balanced)
    [truth] = measure(quantity, gather(classes(softmax_draws(1, 0.8, 0.5, 4, 400_000)), [400_000], True), False)
    for bound in (truth - off, truth + off):
        used, done = run(Stopping(StoppingRule.THRESHOLD, quantity, bound, level=0.9), draws, balanced=balanced)
        wrong = 0
        for count in np.unique(used[done]):
            moments = gather(classes(draws[:count, done & (used == count)]), [G] * (count // G), True)
            wrong += int(((measure(quantity, moments, balanced) > bound) != (truth > bound)).sum())
        assert done.mean() > 0.3
        assert wrong <= stats.binom.ppf(1 - 1e-4, 3000, 0.1)


def test_decisions_of_a_trained_network_are_those_of_4096_draws(tmp_path: Path) -> None:
    """Labels differ for .25 % of the digits at most, and what chance adds in so few (P(false alarm) < 1e-4)."""
    rows = np.concatenate([part.inputs for part in (digits().validation, digits().test)])
    example = torch.tensor(rows[:2])
    version = pack(train_on_digits(), example, repository=tmp_path, name="digits", task="classification", head="logits")
    ours = version.predict(rows, SamplingSpec(1024, stopping=Stopping(StoppingRule.DECISION)))
    truth = version.predict(rows, SamplingSpec(4096, seed=10**6, design=Design.INDEPENDENT)).answer
    assert isinstance(truth, Classification)
    assert isinstance(ours.answer, Classification)
    assert ours.draws.mean() < 100
    assert (ours.answer.label != truth.label).sum() <= stats.binom.ppf(1 - 1e-4, len(rows), 0.0025)


def test_rules_for_regression_look_at_every_target() -> None:
    random = np.random.default_rng(6)
    draws = random.normal([3.0, 0.0], [0.1, 1.0], size=(320, 50, 2))
    used, done = run(Stopping(StoppingRule.TOLERANCE, target=0.1), draws, numbers)
    assert done.all()
    assert 80 <= used.mean() <= 200  # the second target needs about 100
    used, done = run(Stopping(StoppingRule.THRESHOLD, target=-2.0), draws, numbers)
    assert (used == G).mean() > 0.9


def test_the_error_between_groups_sees_what_balance_gains() -> None:
    """Draws of a group that cancel out: the formula for independent draws does not see it, that between groups does."""
    random = np.random.default_rng(7)
    half = random.normal(size=(8, G // 2, 40))
    values = np.concatenate([half, -half], 1).reshape(8 * G, 40) + 0.01 * random.normal(size=(8 * G, 40))
    counts = [G] * 8
    assert (standard_error(values, counts, True) < 0.1 * standard_error(values, counts, False)).all()
    few, formula = (standard_error(values[:20], counts[:2], balanced) for balanced in (True, False))
    assert (few > 0.5 * formula).all()


def test_a_known_ratio_is_pooled_with_what_groups_say() -> None:
    random = np.random.default_rng(8)
    values, counts = random.normal(size=(80, 6)), [G] * 8
    plain, between = standard_error(values, counts, False), standard_error(values, counts, True)
    for groups in (1, 2, 3):
        few, own = values[: groups * G], counts[:groups]
        np.testing.assert_allclose(standard_error(few, own, True, 0.5), 0.5 * standard_error(few, own, True))
    pooled = standard_error(values, counts, True, 0.5)
    unbiased = values.var(0) / 80 + between**2 / 80
    np.testing.assert_allclose(pooled**2, (2 * 0.25 * unbiased + 7 * between**2) / 9)
    assert np.array_equal(standard_error(values, counts, False, 0.5), plain)


def test_ratios_of_draws_that_cancel_are_small_and_of_independent_ones_one() -> None:
    """128 groups: the ratio's own standard error is 1 / sqrt(2 x 127) = .06; 4 of them."""
    random = np.random.default_rng(9)
    half = random.normal(size=(128, G // 2, 30, 2))
    cancelling = np.concatenate([half, -half], 1).reshape(128 * G, 30, 2) + 0.1 * random.normal(size=(128 * G, 30, 2))
    assert measure_error_ratios(kept(numbers(cancelling)), Task.REGRESSION).mean == pytest.approx(0.1, rel=0.25)
    draws = softmax_draws(30, 0.8, 0.5, seed=3, draws=128 * G)
    ratios = measure_error_ratios(kept(classes(draws)), Task.CLASSIFICATION)
    for quantity in Quantity:
        assert ratios.of(quantity) == pytest.approx(1.0, abs=0.25)
    same = np.ones((128 * G, 30, 2))
    assert measure_error_ratios(kept(numbers(same)), Task.REGRESSION) == ErrorRatios(1.0, 1.0, 1.0)


def test_a_calibrated_version_tolerates_earlier_at_no_more_error(packed: Packed, tmp_path: Path) -> None:
    """The ratio measured at calibration spares draws; errors over 24 seeds stay what was tolerated (within 15 %)."""
    version = load_version(shutil.copytree(packed("mlp").folder, tmp_path / "mlp" / "1"))
    rows, inputs = sample("mlp", 200, seed=9)["input"].numpy(), sample("mlp", 16)
    calibration = version.calibrate(rows, np.arange(200) % 4)
    assert calibration.error_ratios is not None
    assert calibration.error_ratios.mean < 0.8
    assert version.calibration == load_version(version.folder).calibration == calibration
    truth = version.engine.predict(inputs, SamplingSpec(max_draws=8000, seed=1000), calibration).answer
    assert isinstance(truth, Classification)
    usual = version.engine.predict(inputs, SamplingSpec(max_draws=30, design=Design.INDEPENDENT), calibration)
    assert usual.standard_error is not None
    target = float(np.median(usual.standard_error.max(1)))
    used: dict[bool, list[float]] = {True: [], False: []}
    errors = []
    for known, ratio in ((True, calibration), (False, replace(calibration, error_ratios=None))):
        for seed in range(24):
            spec = SamplingSpec(max_draws=640, seed=seed, stopping=Stopping(StoppingRule.TOLERANCE, target=target))
            found = version.engine.predict(inputs, spec, ratio)
            assert isinstance(found.answer, Classification)
            used[known].append(found.draws.mean())
            assert found.standard_error is not None
            tolerated = np.array([reason is StopReason.TOLERANCE for reason in found.stop_reason])
            assert (found.standard_error[tolerated] <= target * (1 + 1e-5)).all()  # the reply says what was judged
            if known:
                errors.append(found.answer.probabilities - truth.probabilities)
    assert np.mean(used[True]) < 0.9 * np.mean(used[False])
    assert np.sqrt((np.stack(errors) ** 2).mean(0)).max() < 1.15 * target


def rule_for(
    rule: StoppingRule, engine: Engine, inputs: Mapping[str, torch.Tensor], design: Design = Design.BALANCED
) -> Stopping:
    """Return a rule that settles some of these rows early and others late."""
    answer = engine.predict(inputs, SamplingSpec(max_draws=40, design=design))
    assert isinstance(answer.answer, Classification)
    assert answer.standard_error is not None
    if rule is StoppingRule.TOLERANCE:
        return Stopping(rule, target=float(np.median(answer.standard_error.max(1))))
    if rule is StoppingRule.THRESHOLD:
        return Stopping(rule, Quantity.PREDICTIVE_ENTROPY, float(np.median(answer.answer.predictive_entropy)))
    return Stopping(rule)


@pytest.mark.parametrize("rule", [rule for rule in StoppingRule if rule is not StoppingRule.NONE])
@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
@pytest.mark.parametrize("name", ["mlp", "encoder-sequence-first", "weighted-attention"])
def test_each_row_is_answered_as_with_its_own_number_of_draws_alone(
    packed: Packed, name: str, design: Design, rule: StoppingRule
) -> None:
    engine, inputs = packed(name).engine, sample(name, 12)
    stopping = rule_for(rule, engine, inputs, design)
    spec = SamplingSpec(max_draws=160, seed=5, design=design, stopping=stopping, raw_draws=True)
    whole = engine.predict(inputs, spec)
    assert isinstance(whole.answer, Classification)
    assert whole.raw_draws is not None
    assert len(set(whole.draws.tolist())) > 1 or name != "mlp"
    for row, used in enumerate(whole.draws.tolist()):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        alone = engine.predict(one, SamplingSpec(max_draws=used, min_draws=used, seed=5, design=design))
        assert isinstance(alone.answer, Classification)
        for field in ("probabilities", "mutual_information", "predictive_entropy", "standard_deviation"):
            ours, theirs = getattr(whole.answer, field)[row], getattr(alone.answer, field)[0]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        assert np.isfinite(whole.raw_draws[:used, row]).all()
        assert np.isnan(whole.raw_draws[used:, row]).all()
        assert whole.stop_reason[row] is (stopping.reason if used < 160 else whole.stop_reason[row])


def test_neighbours_do_not_decide_when_a_row_stops(packed: Packed) -> None:
    engine = packed("mlp").engine
    stopping = rule_for(StoppingRule.TOLERANCE, engine, sample("mlp", 10))
    plan = engine.plan(SamplingSpec(max_draws=640, stopping=stopping))
    requests = [(sample("mlp", rows, seed=rows), plan) for rows in (3, 1, 6)]
    runs = engine.start(requests, None)
    while any(map(wants, runs)):
        key = next(run.tile_key for run in runs if wants(run))
        places = [place for place, run in enumerate(runs) if wants(run) and run.tile_key == key]
        together = [runs[place] for place in places]
        for place, moved in zip(places, engine.advance(together, min(map(wants, together))), strict=True):
            runs[place] = moved
    for (inputs, _), answer in zip(requests, engine.finish(runs), strict=True):
        alone = engine.predict(inputs, plan.spec)
        assert answer.draws.tolist() == alone.draws.tolist()
        assert answer.stop_reason == alone.stop_reason


def test_settled_rows_leave_the_pass(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 12)
    rows: list[int] = []
    advance = type(engine).advance

    def noted(self: Engine, runs: Sequence[Run], draws: int) -> list[Run]:
        rows.append(runs[0].rows)
        return advance(self, runs, draws)

    monkeypatch.setattr(type(engine), "advance", noted)
    stopping = rule_for(StoppingRule.TOLERANCE, engine, inputs)
    rows.clear()
    answer = engine.predict(inputs, SamplingSpec(max_draws=640, stopping=stopping))
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 12
    assert rows[-1] < 12
    assert sum(reason == StopReason.TOLERANCE for reason in answer.stop_reason) >= 6


def test_least_and_most_draws_bound_a_rule(packed: Packed) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 6)
    easy = Stopping(StoppingRule.TOLERANCE, target=10.0)
    assert set(engine.predict(inputs, SamplingSpec(stopping=easy)).draws) == {engine.masks.group_size}
    assert set(engine.predict(inputs, SamplingSpec(stopping=easy, min_draws=25)).draws) == {30}
    assert set(engine.predict(inputs, SamplingSpec(stopping=easy, min_draws=45)).draws) == {60}
    hard = Stopping(StoppingRule.TOLERANCE, target=1e-9)
    answer = engine.predict(inputs, SamplingSpec(stopping=hard, max_draws=50))
    assert set(answer.draws) == {50}
    assert set(answer.stop_reason) == {StopReason.MAX_DRAWS}
    assert engine.plan(SamplingSpec(stopping=hard)).max_draws == 16 * engine.defaults.draws
    assert engine.plan(SamplingSpec(stopping=hard), affordable=100).max_draws == 100
    assert engine.plan(SamplingSpec(stopping=hard), affordable=3).max_draws == engine.defaults.draws


def test_uncalibrated_answers_and_calibrations_go_along(packed: Packed, tmp_path: Path) -> None:
    version = load_version(shutil.copytree(packed("mlp").folder, tmp_path / "mlp" / "1"))
    rows = sample("mlp", 60, seed=9)["input"].numpy()
    calibration = version.calibrate(rows, np.arange(60) % 4)
    inputs = sample("mlp", 8)
    stopping = rule_for(StoppingRule.TOLERANCE, version.engine, inputs)
    spec = SamplingSpec(max_draws=200, stopping=stopping, uncalibrated=True)
    answer = version.engine.predict(inputs, spec, calibration)
    for row, used in enumerate(answer.draws.tolist()):
        one = {"input": inputs["input"][row : row + 1]}
        alone = version.engine.predict(one, SamplingSpec(max_draws=used, uncalibrated=True), calibration)
        assert isinstance(alone.uncalibrated, Classification)
        assert isinstance(answer.uncalibrated, Classification)
        np.testing.assert_allclose(
            answer.uncalibrated.probabilities[row], alone.uncalibrated.probabilities[0], rtol=0, atol=1e-5
        )


def test_regressions_stop_by_row(packed: Packed) -> None:
    engine, inputs = packed("two-inputs").engine, sample("two-inputs", 10)
    usual = engine.predict(inputs, SamplingSpec(max_draws=40)).standard_error
    assert usual is not None
    target = float(np.median(usual))
    stopping = Stopping(StoppingRule.TOLERANCE, target=target)
    answer = engine.predict(inputs, SamplingSpec(max_draws=80, stopping=stopping))
    assert isinstance(answer.answer, Regression)
    assert answer.standard_error is not None
    stopped = np.array([reason is StopReason.TOLERANCE for reason in answer.stop_reason])
    assert stopped.sum() > 0
    assert len(set(answer.draws.tolist())) > 1
    assert (answer.standard_error[stopped] <= target * (1 + 1e-6)).all()


@pytest.mark.parametrize(("wrong", "field"), [
    ({"rule": StoppingRule.TOLERANCE}, "target"),
    ({"rule": StoppingRule.TOLERANCE, "target": 0.0}, "target"),
    ({"rule": StoppingRule.TOLERANCE, "target": float("nan")}, "target"),
    ({"rule": StoppingRule.THRESHOLD, "quantity": Quantity.MUTUAL_INFORMATION, "target": -0.1}, "target"),
    ({"rule": StoppingRule.DECISION, "target": 0.1}, "target"),
    ({"target": 0.1}, "target"),
    ({"rule": StoppingRule.DECISION, "level": 1.0}, "level"),
])  # fmt: skip
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Stopping(**wrong)
    assert caught.value.field == f"stopping.{field}"


@pytest.mark.parametrize(("stopping", "field"), [
    (Stopping(StoppingRule.DECISION), "stopping.rule"),
    (Stopping(StoppingRule.THRESHOLD, Quantity.PREDICTIVE_ENTROPY, 0.5), "stopping.quantity"),
])  # fmt: skip
def test_a_rule_for_classes_is_refused_for_a_regression(packed: Packed, stopping: Stopping, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        packed("two-inputs").engine.plan(SamplingSpec(stopping=stopping))
    assert caught.value.field == field


@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
def test_the_covariance_between_rows_is_that_of_the_draws(packed: Packed, design: Design) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 5)
    answer = engine.predict(inputs, SamplingSpec(max_draws=80, design=design, joint=True, raw_draws=True))
    assert isinstance(answer.answer, Classification)
    assert answer.joint_covariance is not None
    assert answer.raw_draws is not None
    assert answer.answer.standard_deviation is not None
    diagonal = np.einsum("iik->ik", answer.joint_covariance)
    np.testing.assert_allclose(diagonal, answer.answer.standard_deviation**2, rtol=1e-9, atol=1e-12)
    for k in range(answer.raw_draws.shape[2]):
        eigenvalues = np.linalg.eigvalsh(answer.joint_covariance[:, :, k])
        assert eigenvalues.min() > -1e-12
        if design is Design.INDEPENDENT:
            np.testing.assert_allclose(
                answer.joint_covariance[:, :, k], np.cov(answer.raw_draws[:, :, k].T), atol=1e-12
            )


def test_rows_move_together_and_one_draw_says_nothing_of_it(packed: Packed) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 1)
    twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
    joint = engine.predict(twice, SamplingSpec(max_draws=40, joint=True)).joint_covariance
    assert joint is not None
    np.testing.assert_allclose(joint[0, 1], joint[0, 0], rtol=1e-4)
    single = SamplingSpec(max_draws=1, design=Design.INDEPENDENT, joint=True)
    assert engine.predict(twice, single).joint_covariance is None
    with pytest.raises(InvalidArgument, match="joint"):
        SamplingSpec(joint=True, stopping=Stopping(StoppingRule.DECISION))


@pytest.mark.parametrize(
    "stopping",
    [
        Stopping(StoppingRule.DECISION),
        Stopping(StoppingRule.TOLERANCE, target=1e-9),
        Stopping(StoppingRule.THRESHOLD, Quantity.MUTUAL_INFORMATION, 0.01),
    ],
)
def test_a_row_whose_draws_are_not_finite_stops_at_the_first_look(packed: Packed, stopping: Stopping) -> None:
    """No further draw changes its mean; the rows beside it draw as they do alone."""
    version, spec = packed("mlp"), SamplingSpec(max_draws=160, stopping=stopping)
    x = sample("mlp", 4)["input"].numpy()
    alone = version.predict(x, spec)
    x[2] = 3e38
    found = version.predict(x, spec)
    assert isinstance(found.answer, Classification)
    assert np.isnan(found.answer.probabilities[2]).all()
    assert found.draws[2] == max(stopping.least_groups, 1) * G
    assert found.draws[[0, 1, 3]].tolist() == alone.draws[[0, 1, 3]].tolist()
