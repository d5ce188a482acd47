"""How many draws suffice: errors that are found where they are, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dubito_models.convergence import converge, draws_at, found_errors
from dubito_models.package import ModelVersion
from judged import line
from networks import sample

Packed = Callable[[str], ModelVersion]


@pytest.mark.parametrize(
    ("default", "group", "expected"),
    [
        (40, 10, (10, 20, 40, 80, 160)),
        (32, 8, (8, 16, 32, 64, 128)),
        (50, 10, (10, 20, 40, 80, 160, 320)),
        (4, 16, (16,)),
    ],
)
def test_draws_double_beyond_four_times_the_default(default: int, group: int, expected: tuple[int, ...]) -> None:
    assert draws_at(default, group) == expected


def test_known_errors_are_found() -> None:
    """Estimates about a truth with a known deviation: within 10 % of it, 4 standard errors of 8 seeds x 400 numbers.

    The last estimates, of which the reference is made, are found as well, since the reference's own error is taken off.
    """
    random = np.random.default_rng(0)
    deviations = np.array([0.4, 0.2, 0.1])
    truth = random.normal(size=400)
    estimates = truth + deviations[:, None] * random.normal(size=(8, 3, 400))
    np.testing.assert_allclose(found_errors(estimates), deviations, rtol=0.1)


def test_a_bias_of_few_draws_is_found_too() -> None:
    """What few draws put too low on the average is an error that no scatter between seeds shows."""
    estimates = np.zeros((4, 2, 10))
    estimates[:, 0] = -0.3
    assert found_errors(estimates) == pytest.approx((0.3, 0.0))


def test_what_never_varies_has_no_error() -> None:
    assert found_errors(np.ones((5, 3, 7, 2))) == (0, 0, 0)


@pytest.mark.parametrize("case", ["mlp", "lstm"])
def test_errors_are_what_standard_errors_promise(packed: Packed, case: str) -> None:
    """From the default draws on, their ratio is 1 to four of its own deviations, and errors fall with draws.

    Over 40 other sets of 24 seeds the ratios' means were .96 to 1.02, their deviations .10 for the mean and .15 for the
    mutual information at most: beyond four of them less than one run in a thousand.
    """
    version = packed(case)
    inputs = version.read_inputs({name: value.numpy() for name, value in sample(case, 12).items()})
    told: list[int] = []
    found = converge(version, inputs, seeds=24, advance=told.append)
    assert sum(told) == found.seeds == 24
    assert found.default_draws in found.draws
    assert (found.rows, found.exact) == (12, False)
    assert found.mean.promised is not None
    assert found.epistemic.promised is not None
    at = found.draws.index(found.default_draws)
    np.testing.assert_allclose(found.mean.found[at:], found.mean.promised[at:], rtol=0.4)
    np.testing.assert_allclose(found.epistemic.found[at:], found.epistemic.promised[at:], rtol=0.6)
    for errors in (found.mean, found.epistemic):
        assert errors.found[-1] < errors.found[0] / 2
        assert errors.found[-1] > 0
    assert found.epistemic.found[0] < found.scale


def test_answers_in_closed_form_leave_nothing_to_chance(tmp_path: Path) -> None:
    version, rows = line(tmp_path)
    found = converge(version, version.read_inputs(rows.inputs))
    assert version.manifest.integrated
    assert found.exact
    assert found.epistemic.promised is None
    assert found.scale > 0
