"""Rolling scores: those of the metrics, with bands that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from dubito_models.calibration.adaptive import AdaptiveState
from dubito_models.metrics import expected_calibration_error
from dubito_service.observing.drift import Drift
from dubito_service.observing.observations import Newest, StreamKey
from dubito_service.observing.rolling import Banded, roll, wilson
from observed import class_probabilities, labels_of

MEASURES = (
    "negative_log_likelihood", "brier_score", "correct", "confidence", "squared_error", "covered", "served_coverage",
)  # fmt: skip


def newest(rows: int, calibration: str = "c0", stream: str = "", **measures: object) -> Newest:
    values = {name: np.broadcast_to(measures.get(name, np.nan), rows).astype(float) for name in MEASURES}
    return Newest((calibration,) * rows, (stream,) * rows, np.arange(rows, 0, -1.0), values)


def both(one: Newest, other: Newest) -> Newest:
    return Newest(
        one.calibration + other.calibration,
        one.stream + other.stream,
        np.concatenate([one.seconds, other.seconds]),
        {name: np.concatenate([one.measures[name], other.measures[name]]) for name in MEASURES},
    )


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 1), (893, 1000)])
def test_a_shares_band_is_wilsons(hits: int, count: int) -> None:
    low, high = proportion_confint(hits, count, 0.05, "wilson")
    found = wilson(hits / count, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_the_calibration_error_is_the_metrics() -> None:
    random = np.random.default_rng(0)
    p = class_probabilities(random, 400)
    y = labels_of(random, p)
    [found] = roll(newest(400, confidence=p.max(-1), correct=p.argmax(-1) == y), {}, {}, "")
    assert found.expected_calibration_error is not None
    assert found.expected_calibration_error.value == pytest.approx(expected_calibration_error(p, y))
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx((p.argmax(-1) == y).mean())


def test_means_are_means_and_bands_hold_them() -> None:
    random = np.random.default_rng(1)
    loss, error = random.exponential(size=(2, 1000))
    rows = newest(1000, negative_log_likelihood=loss, brier_score=loss / 2, squared_error=error)
    [found] = roll(rows, {}, {}, "")
    for banded, value in (
        (found.negative_log_likelihood, loss.mean()),
        (found.brier_score, loss.mean() / 2),
        (found.root_mean_squared_error, np.sqrt(error.mean())),
    ):
        assert banded is not None
        assert banded.value == pytest.approx(value)
        assert banded.low < banded.value < banded.high
    assert roll(rows, {}, {}, "") == (found,)  # the same rows, the same bands
    assert found.accuracy is found.coverage is found.expected_calibration_error is found.served_coverage is None


def test_a_band_holds_the_mean_as_often_as_it_says() -> None:
    """Nominal .95, over 300 seeds of 200 rows: binomial deviation .013, so .90 is missed once in thousands."""
    held = 0
    for seed in range(300):
        loss = np.random.default_rng(seed).exponential(size=200)
        banded = roll(newest(200, negative_log_likelihood=loss), {}, {}, "")[0].negative_log_likelihood
        assert banded is not None
        held += banded.low <= 1.0 <= banded.high
    assert 0.90 <= held / 300 <= 0.99


def test_coverage_is_of_the_rows_of_no_stream() -> None:
    """A stream serves other coverages than it is asked, so that it is kept by itself."""
    plain = newest(50, covered=np.arange(50) % 10 > 0, served_coverage=np.repeat([0.8, 0.9], 25))
    streamed = newest(30, stream="s", covered=0.0, served_coverage=0.99)
    unasked = newest(20)
    [found] = roll(both(both(plain, streamed), unasked), {}, {}, "")
    assert found.rows == 100
    assert found.covered_rows == 50
    assert found.served_coverage == pytest.approx(0.85)
    assert found.coverage == wilson(0.9, 50)


def test_calibrations_are_apart_and_the_one_in_use_is_first() -> None:
    old, new = newest(3, "old", correct=0.0), newest(2, "new", correct=1.0)
    drift, state = Drift.start(None, 0.01), AdaptiveState.start(0.1, 0.01)
    keys = {name: StreamKey("m", 1, name, "s", 0.9) for name in ("old", "new")}
    found = roll(both(old, new), {("new", "epistemic_uncertainty"): drift}, dict.fromkeys(keys.values(), state), "new")
    assert [(one.calibration_id, one.rows) for one in found] == [("new", 2), ("old", 3)]
    assert [one.accuracy.value for one in found if one.accuracy] == [1.0, 0.0]
    assert (found[0].drift, found[1].drift) == ({"epistemic_uncertainty": drift}, {})
    assert [list(one.streams) for one in found] == [[keys["new"]], [keys["old"]]]
    assert [one.calibration_id for one in roll(both(old, new), {}, {}, "none")] == ["old", "new"]
    assert (found[1].first_seconds, found[1].last_seconds) == (1.0, 3.0)


def test_no_rows_say_nothing() -> None:
    assert roll(newest(0), {}, {}, "c0") == ()


def test_huge_losses_keep_finite_bands() -> None:
    def ends(banded: Banded | None) -> NDArray[np.float64]:
        assert banded is not None
        return np.array([banded.value, banded.low, banded.high])

    [found] = roll(newest(1000, negative_log_likelihood=1e200, squared_error=1e200), {}, {}, "")
    assert np.isfinite(ends(found.negative_log_likelihood)).all()
    assert np.isfinite(ends(found.root_mean_squared_error)).all()
