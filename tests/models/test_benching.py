"""What `bench` measures: times by a clock that the test sets, draws needed against what is known, rules in words."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dubito_models.advising import document, goal_of, recommend, time_at
from dubito_models.benching import (
    Bench,
    Drawing,
    Need,
    Needs,
    PrefixShare,
    Speed,
    affordable_rows,
    describe_drawing,
    draws_needed,
    measure,
    measure_speed,
    prefix_share,
    spaced_rows,
    supply_rows,
)
from dubito_models.calibrating import CalibrationSpec
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.predictive import Classification, Predictive
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import Design
from networks import build, sample

Packed = Callable[[str], ModelVersion]
Cost = Callable[[int, int, bool], float]  # seconds of a request, by rows, draws and whether the seed is its own


class Timed:
    """A version whose requests take what `cost` says, by a clock of its own."""

    def __init__(self, version: ModelVersion, cost: Cost) -> None:
        self.now, self.asked = 0.0, []
        self.version = copy.copy(version)

        def predict(inputs: Mapping[str, np.ndarray], spec: SamplingSpec) -> None:
            [rows] = {len(value) for value in inputs.values()}
            self.asked.append((rows, spec.max_draws, spec.seed))
            self.now += cost(rows, spec.max_draws, spec.seed is not None)

        self.version.predict = predict

    def speeds(self, rows: tuple[int, ...], draws: tuple[int, ...], seconds: float) -> tuple[Speed, ...]:
        return measure_speed(self.version, supply_rows(self.version, None), rows, draws, seconds, lambda: self.now)


# --- Time ---


def test_a_speed_is_the_time_of_a_whole_request(packed: Packed) -> None:
    """Each size in whole groups, once, under the default seed and under one that is not; rows a second from it."""
    timed = Timed(packed("mlp"), lambda rows, draws, own: 1e-3 * (rows + draws) * (2 if own else 1))
    speeds = timed.speeds((8, 1), (16, 20, 64), 5.0)
    assert [(speed.rows, speed.draws) for speed in speeds] == [(1, 20), (1, 70), (8, 20), (8, 70)]
    for speed in speeds:
        assert speed.milliseconds == pytest.approx(speed.rows + speed.draws)
        assert speed.own_seed_milliseconds == pytest.approx(2 * (speed.rows + speed.draws))
        assert speed.rows_per_second == pytest.approx(1000 * speed.rows / (speed.rows + speed.draws))
    seeds = {seed for _, _, seed in timed.asked}
    assert seeds == {None, packed("mlp").manifest.default_seed + 1}


def test_sizes_take_turns_until_the_seconds_are_spent(packed: Packed) -> None:
    """Every size is asked as often as any other, no two in a row, and for about the seconds given."""
    timed = Timed(packed("mlp"), lambda rows, draws, own: 0.01)
    speeds = timed.speeds((1, 2), (20, 40), 2.01)
    assert {speed.repeats for speed in speeds} == {24}  # 4 sizes x 2 seeds x .01 s, once to warm up: 25 rounds in 2 s
    assert timed.now == pytest.approx(2.0)
    rounds = [tuple(timed.asked[start : start + 8]) for start in range(16, len(timed.asked), 8)]
    assert len(rounds) == 23  # the first is made as the sizes are warmed up
    assert set(map(len, map(set, rounds))) == {8}


def test_a_slow_moment_moves_no_median(packed: Packed) -> None:
    calls = [0]

    def cost(rows: int, draws: int, own: bool) -> float:
        calls[0] += 1
        return 5.0 if calls[0] == 12 else 0.01

    timed = Timed(packed("mlp"), cost)
    assert [speed.milliseconds for speed in timed.speeds((1,), (20,), 30.0)] == [pytest.approx(10.0)]


def test_what_would_take_too_long_is_left_out(packed: Packed) -> None:
    """The smallest size is always timed, once at least; those that three rounds have no time for are not."""
    timed = Timed(packed("mlp"), lambda rows, draws, own: 1e-3 * rows * draws)
    speeds = timed.speeds((1, 10), (20, 200), 10.0)
    # One seed each: .02, .2, .2 and 2 s. The last one alone would take 2 x 2 x (1 + 3) s.
    assert [speed.milliseconds is None for speed in speeds] == [False, False, False, True]
    assert speeds[-1] == Speed(10, 200, None, None, 0)
    assert speeds[-1].rows_per_second is None
    hopeless = Timed(packed("mlp"), lambda rows, draws, own: 60.0)
    assert [speed.repeats for speed in hopeless.speeds((1, 8), (20, 40), 1.0)] == [1, 0, 0, 0]
    assert hopeless.now == 240.0  # both seeds, to warm up and to time


@pytest.mark.parametrize("each", [0.3, 1.0, 2.4])
def test_no_round_is_begun_that_the_seconds_do_not_hold(packed: Packed, each: float) -> None:
    timed = Timed(packed("mlp"), lambda rows, draws, own: each)
    [speed] = timed.speeds((1,), (20,), 10.0)
    assert speed.repeats == {0.3: 15, 1.0: 4, 2.4: 1}[each]
    assert timed.now == pytest.approx(2 * each * (speed.repeats + 1))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0])
def test_seconds_are_a_number_that_ends(packed: Packed, seconds: float) -> None:
    with pytest.raises(InvalidArgument, match=rf"^seconds: got {seconds}; accepted: a finite number > 0"):
        measure(packed("mlp"), (1,), (20,), seconds=seconds)


def test_the_prefix_share_is_of_a_single_pass(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    version = packed("head-only")
    program, now = version.engine.program, [0.0]
    prefix, suffix = program.prefix, program.suffix

    def slow(part: Callable[..., object], seconds: float) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            now[0] += seconds
            return part(*arguments)

        return run

    monkeypatch.setattr(program, "prefix", slow(prefix, 0.009))
    monkeypatch.setattr(program, "suffix", slow(suffix, 0.001))
    found = prefix_share(version, sample("head-only", 3), clock=lambda: now[0])
    assert (found.rows, found.prefix_milliseconds, found.suffix_milliseconds) == pytest.approx((3, 9.0, 1.0))
    assert found.share == pytest.approx(0.9)


def test_rows_of_ones_own_come_in_turn(packed: Packed) -> None:
    version = packed("two-inputs")
    data = {name: value.numpy() for name, value in sample("two-inputs", 3).items()}
    taken = supply_rows(version, data)(7)
    for name, value in data.items():
        np.testing.assert_array_equal(taken[name], value[[0, 1, 2, 0, 1, 2, 0]])
    assert {len(value) for value in supply_rows(version, None)(5).values()} == {5}
    picked = spaced_rows({"x": torch.arange(100)}, 5)["x"].tolist()
    assert (picked[0], picked[-1], len(set(picked))) == (0, 99, 5)
    assert spaced_rows({"x": torch.arange(3)}, 5)["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "design", "balanced"),
    [("mlp", "balanced", 2), ("causal", "mixed", 1), ("dropped-weights", "balanced", 1)],
)
def test_how_draws_are_run(packed: Packed, name: str, design: str, balanced: int | None) -> None:
    version = packed(name)
    drawing = describe_drawing(version, {rows: sample(name, rows) for rows in (1, 4)})
    assert (drawing.design, drawing.sites) == (design, len(version.manifest.sites))
    assert drawing.balanced_sites == sum(site.balanced for site in version.manifest.sites)
    assert balanced in (None, drawing.balanced_sites)
    assert set(drawing.pass_draws) == {1, 4}
    assert drawing.precision == "float32"
    assert drawing.calibration is None
    masks = version.engine.masks.draws({}, 0, Design.BALANCED, 0, 40) if name == "mlp" else []
    if masks:
        assert drawing.mask_bytes == sum(mask.numel() for mask in masks)
        assert drawing.keeps_masks


def test_a_loop_is_called_one(packed: Packed) -> None:
    version = copy.copy(packed("mlp"))
    version.engine = copy.copy(version.engine)
    inputs = {2: sample("mlp", 2)}
    assert describe_drawing(version, inputs).way == "leading axis"
    version.engine.vmaps = False
    drawing = describe_drawing(version, inputs)
    assert (drawing.way, drawing.pass_draws) == ("looped", {2: 1})


# --- Draws ---


@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
def test_the_draws_needed_give_the_error_wanted(packed: Packed, design: Design) -> None:
    """The scatter of means over 60 other seeds is the target, at the median row and at nine rows of ten.

    A quantile over rows of scatters over 60 seeds is off by 5 %, so is the count of draws that is told, and whole
    groups take up to 10 % off. Limits of 30 %, four deviations after that: a false alarm in some 10,000 other seeds.
    """
    version, inputs, target = packed("mlp"), sample("mlp", 40), 0.0008
    [need] = draws_needed(version, inputs, [target]).needs
    balanced = design is Design.BALANCED
    counts = (need.median, need.nine_tenths) if balanced else (need.independent_median, need.independent_nine_tenths)
    assert counts[0] >= 50  # so that rounding to whole groups moves the error little
    for count, share in zip(counts, (0.5, 0.9), strict=True):
        means = []
        for seed in range(100, 160):
            answer = version.predict(inputs, SamplingSpec(max_draws=count, seed=seed, design=design)).answer
            assert isinstance(answer, Classification)
            means.append(answer.probabilities)
        errors = np.std(means, axis=0, ddof=1).max(-1)
        assert np.quantile(errors, share) == pytest.approx(target, rel=0.3)


def linear(repository: Path, fan_out: int | None) -> tuple[nn.Sequential, ModelVersion]:
    """One dropout before a linear output, plain or, where nothing is said of a fan-out, integrated."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2))
        example = torch.randn(4, 3)
    version = pack(
        network, example, repository=repository, name="linear", task="regression", head="mean", fan_out=fan_out
    )
    assert version.manifest.integrated == (fan_out is None)
    return network, version


@pytest.mark.parametrize(("fan_out", "independent"), [(1, 101), (None, 2)])
def test_a_mean_that_is_exact_needs_one_group(tmp_path: Path, fan_out: int | None, independent: int) -> None:
    """A balanced group of even size has exactly the mean of all masks; an integrated last site needs no draws."""
    _, version = linear(tmp_path, fan_out)
    needs = draws_needed(version, {"input": torch.randn(9, 3, generator=torch.Generator().manual_seed(1))})
    assert [need.target for need in needs.needs] == [0.2, 0.1, 0.05, 0.02]
    assert {(need.median, need.nine_tenths) for need in needs.needs} == {(8, 8)}  # its group size
    assert needs.default_error == pytest.approx((0.0, 0.0), abs=1e-6)
    assert needs.needs[1].independent_median == pytest.approx(independent, rel=0.5)


def test_independent_draws_of_a_known_network(tmp_path: Path) -> None:
    """Var(y) = sum over units of (weight x value)^2 p / (1 - p): so many draws as that asks, to its estimate's error.

    A variance from 512 independent draws is known to 6 %; limits of 25 % are four deviations.
    """
    network, version = linear(tmp_path, 1)
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        variance = (network[1](network[0](inputs)) ** 2 @ network[3].weight.T ** 2).double().numpy()  # p = .5
    unit = np.median(np.sqrt(variance), axis=0)
    worst = (variance / unit**2).max(-1)
    needs = draws_needed(version, {"input": inputs}, [0.1, 0.02], groups=64)
    assert needs.scale == pytest.approx(tuple(unit), rel=0.2)
    for need in needs.needs:
        for share, found in ((0.5, need.independent_median), (0.9, need.independent_nine_tenths)):
            assert found == pytest.approx(np.quantile(worst, share, method="higher") / need.target**2, rel=0.25)


def test_draws_needed_are_whole_groups_and_grow_as_the_target_shrinks(packed: Packed) -> None:
    version = packed("mlp")
    found = draws_needed(version, sample("mlp", 12), [0.5, 0.001, 0.0005], groups=8)
    assert (found.rows, found.draws, found.scale) == (12, 80, None)
    for need in found.needs:
        assert need.median % 10 == need.nine_tenths % 10 == 0
        assert 2 <= need.independent_median <= need.independent_nine_tenths
        assert need.median <= need.nine_tenths
    largest, middle, least = found.needs
    assert (largest.median, largest.independent_median) == (10, 2)
    assert middle.nine_tenths < least.nine_tenths <= 4 * middle.nine_tenths
    default = math.sqrt(found.default_error[1] ** 2 * 40) / 0.0005
    assert least.nine_tenths - 10 < default**2 <= least.nine_tenths + 1e-6


@pytest.mark.parametrize(("seconds", "rows"), [(1e9, 128), (1e-9, 16), (2.0, 100)])
def test_draws_are_told_from_as_many_rows_as_there_is_time_for(seconds: float, rows: int) -> None:
    speeds = [Speed(1, 10, 9.0, 9.0, 3), Speed(10, 10, 2.0, 2.0, 3), Speed(90, 90, None, None, 0)]
    assert affordable_rows(speeds, 1000, seconds) == rows


# --- Calibrated with a rule ---


@pytest.fixture(scope="module")
def stopping_version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """The MLP, calibrated to stop by a tolerance that one group of draws meets."""
    folder = tmp_path_factory.mktemp("repository")
    example = sample("mlp", 4)
    version = pack(build("mlp"), example, repository=folder, name="mlp", task="classification", head="logits")
    labels = np.random.default_rng(0).integers(0, 3, 120)
    rule = Stopping(StoppingRule.TOLERANCE, target=1.0)
    sampling = SamplingSpec(max_draws=500, stopping=rule)
    version.calibrate(sample("mlp", 120), labels, CalibrationSpec(sampling=sampling, method="identity"))
    assert version.predict(sample("mlp", 4)).draws.tolist() == [10] * 4
    return version


def test_a_calibrations_rule_shortens_no_request_that_is_timed(
    stopping_version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a line of 500 draws is told of 500, not of those after which the rule stops."""
    made, plain = [], ModelVersion.predict

    def predict(self: ModelVersion, inputs: Mapping[str, np.ndarray], spec: SamplingSpec) -> Predictive:
        answer = plain(self, inputs, spec)
        made.append((spec.max_draws, *set(answer.draws.tolist())))
        return answer

    monkeypatch.setattr(ModelVersion, "predict", predict)
    data = {name: value.numpy() for name, value in sample("mlp", 6).items()}
    found = measure(stopping_version, (2,), (20, 500), data=data, seconds=0.05)
    assert {(20, 20), (320, 320)} <= set(made)
    assert all(asked == answered for asked, answered in made)
    assert found.needs is not None
    assert (found.default_draws, found.drawing.mask_bytes % 500) == (500, 0)


def test_a_calibrations_rule_is_said(stopping_version: ModelVersion) -> None:
    """In the document, and in what to make of it: nobody is told to take draws that a rule sees to."""
    data = {name: value.numpy() for name, value in sample("mlp", 6).items()}
    found = measure(stopping_version, (2,), (20,), data=data, seconds=0.05)
    calibration = json.loads(json.dumps(document(found)))["drawing"]["calibration"]
    assert (calibration["method"], calibration["estimator"], calibration["control_variate"]) == (
        "identity", "plain", False,
    )  # fmt: skip
    assert (calibration["stopping"]["rule"], calibration["stopping"]["target"]) == ("tolerance", 1.0)
    said = " ".join(recommend(found))
    assert "The calibration's rule ends each row by itself; " in said
    assert "the default 500" not in said.lower()


# --- In words ---

DRAWING = Drawing("leading axis", {1: 8, 8: 8, 32: 4}, "float32", "balanced", 10, 2, 2, 640, True, 1, False, None)


def made_up(
    milliseconds: Callable[[int, int], float] = lambda rows, draws: 1.0 + 0.01 * rows * draws,
    needs: Needs | None = None,
    share: float = 0.25,
    own_seed: float = 1.0,
    task: Task = Task.CLASSIFICATION,
) -> Bench:
    speeds = tuple(
        Speed(rows, draws, milliseconds(rows, draws), own_seed * milliseconds(rows, draws), 9)
        for rows in (1, 8, 32)
        for draws in (20, 70, 260)
    )
    prefixes = tuple(PrefixShare(rows, share, 1 - share) for rows in (1, 8, 32))
    return Bench("made-up", 3, task, 1, 40, DRAWING, speeds, prefixes, needs)


def needing(median: int, nine_tenths: int, error: float = 0.018, target: float = 0.01) -> Needs:
    return Needs(128, 320, None, (error / 2, error), (Need(target, median, nine_tenths, 99, 999),))


def test_without_rows_nothing_is_said_of_draws_needed() -> None:
    assert recommend(made_up()) == (
        "A request of 8 rows takes about 4.2 ms with 40 draws.",
        "Twice the draws take 1.8 times as long, so the draws are what takes the time (25% of a single pass comes "
        "before the first dropout and runs once).",
        "Send rows together: 32 rows take 6.2 times as long as 1 row (20 draws).",
    )


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (needing(10, 20), ["The default 40 draws are enough for a standard error of 0.01 on nine rows of ten; 20 would "
                           "do."]),
        (needing(30, 30), ["The default 40 draws are enough for a standard error of 0.01 on nine rows of ten."]),
        (needing(40, 120), ["Take 120 draws for a standard error of 0.01 on nine rows of ten; the default 40 leave it "
                            "at 0.018."]),
        (needing(30, 120), ["Take 120 draws for a standard error of 0.01 on nine rows of ten; the default 40 leave it "
                            "at 0.018.",
                            "The median row needs only 30: the stopping rules tolerance and decision give each row "
                            "what it needs."]),
    ],
)  # fmt: skip
def test_what_is_said_of_draws(needs: Needs, said: list[str]) -> None:
    """More than the default only where nine rows of ten need them; a rule where the median row needs a quarter."""
    points = recommend(made_up(needs=needs))
    assert list(points[: len(said)]) == said
    draws = max(40, needs.needs[0].nine_tenths)
    assert points[len(said)] == f"A request of 8 rows takes about {1 + 0.08 * draws:.2g} ms with {draws} draws."


def test_a_regression_is_told_of_its_own_unit_and_rules() -> None:
    first, second, *_ = recommend(made_up(needs=needing(10, 200, target=0.1), task=Task.REGRESSION))
    assert "a standard error of 0.1 median epistemic deviations on nine rows of ten" in first
    assert second == "The median row needs only 10: the stopping rule tolerance gives each row what it needs."


def test_the_goal_is_the_target_nearest_to_the_usual_one() -> None:
    needs = replace(needing(10, 10), needs=tuple(Need(t, 10, 10, 10, 10) for t in (0.5, 0.02, 0.008, 0.001)))
    found = goal_of(made_up(needs=needs))
    assert found is not None
    assert found.target == 0.008
    assert goal_of(made_up()) is None


@pytest.mark.parametrize(
    ("milliseconds", "said", "unsaid"),
    [
        (lambda rows, draws: 5.0, "Twice the draws take 1.0 times as long, so more draws cost little (93%", None),
        (lambda rows, draws: draws * 1.0, "2.0 times as long, so the draws are what takes the time (93%", None),
        (lambda rows, draws: rows * 1.0, "Sending rows together gains little: 32 rows take 32.0 times as", "Send rows"),
        (lambda rows, draws: 4.0 + rows, "Send rows together: 32 rows take 7.2 times", "gains little"),
    ],
)
def test_what_is_said_of_time(milliseconds: Callable[[int, int], float], said: str, unsaid: str | None) -> None:
    points = " ".join(recommend(made_up(milliseconds, share=0.93)))
    assert said in points
    assert unsaid is None or unsaid not in points


@pytest.mark.parametrize(("factor", "said"), [(1.4, False), (1.6, True)])
def test_a_seed_of_ones_own_is_named_where_it_is_dear(factor: float, said: bool) -> None:
    points = " ".join(recommend(made_up(own_seed=factor)))
    assert (f"whose masks are kept: another takes {factor} times as long." in points) == said


def test_what_was_not_timed_is_not_compared() -> None:
    """With one number of draws, or rows of which only one size was timed, nothing is said of others."""
    whole = made_up()
    single = replace(whole, speeds=tuple(speed for speed in whole.speeds if speed.draws == 70))
    assert "Twice" not in " ".join(recommend(single))
    left_out = tuple(
        replace(speed, milliseconds=None, own_seed_milliseconds=None) if speed.rows > 1 else speed
        for speed in whole.speeds
    )
    points = " ".join(recommend(replace(whole, speeds=left_out)))
    assert "A request of 1 row takes about" in points
    assert "together" not in points


def test_times_between_those_taken() -> None:
    taken = {(8, 20): 3.0, (8, 60): 5.0, (8, 100): 9.0, (1, 60): 1.0}
    speeds = [Speed(rows, draws, found, found, 3) for (rows, draws), found in taken.items()]
    expected = {10: 3.0, 20: 3.0, 40: 4.0, 100: 9.0, 200: 19.0}
    assert {draws: time_at(speeds, 8, draws) for draws in expected} == pytest.approx(expected)
    assert time_at(speeds, 1, 120) == pytest.approx(2.0)
    assert time_at(speeds, 2, 60) is None
    assert time_at([Speed(2, 60, None, None, 0)], 2, 60) is None


# --- All of it ---


def test_a_bench_is_json(packed: Packed) -> None:
    """Everything measured on rows of one's own goes into one document, with what is told from it."""
    version = packed("mlp")
    data = {name: value.numpy() for name, value in sample("mlp", 20).items()}
    found = measure(version, (1, 2), (20, 40), data=data, seconds=0.2)
    said = json.loads(json.dumps(document(found), allow_nan=False))
    assert (said["model"], said["version"], said["task"]) == ("mlp", 1, "classification")
    assert [(speed["rows"], speed["draws"]) for speed in said["speeds"]] == [(1, 20), (1, 40), (2, 20), (2, 40)]
    for speed in said["speeds"]:
        milliseconds = speed["milliseconds"]  # None where a slow machine leaves it out
        assert speed["rows_per_second"] == (None if milliseconds is None else 1000 * speed["rows"] / milliseconds)
    assert [prefix["rows"] for prefix in said["prefixes"]] == [1, 2]
    assert all(0 < prefix["share"] < 1 for prefix in said["prefixes"])
    assert [need["target"] for need in said["needs"]["needs"]] == [0.05, 0.02, 0.01, 0.005]
    assert said["recommendation"] == " ".join(recommend(found))
    assert said["default_draws"] == version.manifest.default_draws


def test_made_up_rows_tell_no_draws(packed: Packed, tmp_path: Path) -> None:
    found = measure(packed("two-inputs"), (2,), (20,), seconds=0.05)
    assert found.needs is None
    assert document(found)["needs"] is None
