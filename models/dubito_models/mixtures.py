"""Mixtures of the draws' Gaussians, and of the draws alone: distribution function, density, shortest interval.

All draws count the same and stand first: means and variances are (S, ...). Quantiles are in `predictive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dubito_models.arrays import Array, finite, fitting, gaussians, share
from dubito_models.errors import InvalidArgument

_PARTS = 16  # of the places where the shortest interval may begin
_REFINED = 4  # of the parts, at least: those in which it is looked for; all of them where draws are few
_NEAR = 5  # landmarks on either side of a place, between which it is looked for
_POINTS = 512  # landmarks of a mixture, at most
_STEP = [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8.5]  # deviations from a draw's mean to its landmarks
_STEPS = np.array([*(-step for step in reversed(_STEP)), 0.0, *_STEP])
_MISSED = 1e-10  # of the level: else bounds between draws that lie far apart would hang on the last tail
_FAR = 40.0  # deviations, beyond which a Gaussian has no mass that a float64 could tell from 0
_BLOCK = 2**21  # numbers held at a time


def mixture_cdf(means: ArrayLike, variances: ArrayLike | None, targets: ArrayLike) -> Array:
    """Return the mixture's distribution function at targets (...), of that shape: the PIT.

    With no variances, or where one is 0, a draw that equals the target counts 1/2 (the mid-PIT), so that the value is
    1/2 on the average where targets are drawn as the draws are.
    """
    if variances is None:
        mu = finite("means", means)
        y = fitting("means", mu, targets)
        below: Array = (0.5 * ((mu < y).mean(axis=0) + (mu <= y).mean(axis=0))).astype(np.float64)
        return below
    mu, sigma2 = gaussians(means, variances, zero=True)
    y = fitting("means, variances", mu, targets)
    with np.errstate(over="ignore"):
        z = (y - mu) / np.maximum(np.sqrt(sigma2), np.finfo(np.float64).tiny)
    found: Array = np.asarray(special.ndtr(z).mean(axis=0))
    return found


def mixture_log_density(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> Array:
    """Return log mean_s N(target; mu_s, sigma_s^2) at targets (...), of that shape, in nats; finite however far off."""
    mu, sigma2 = gaussians(means, variances)
    y = fitting("means, variances", mu, targets)
    each = -0.5 * ((y - mu) ** 2 / sigma2 + np.log(sigma2) + math.log(2 * math.pi))
    density: Array = np.asarray(special.logsumexp(each, axis=0) - math.log(len(mu)))
    return density


def highest_density_interval(means: ArrayLike, variances: ArrayLike | None, level: float) -> Array:
    """Return the shortest interval (..., 2) that holds `level` of the mixture.

    Its bounds have the same density; it is one interval, also where the level set of the density would be several. Of
    several local optima it is the best near the likeliest of 512 places. It holds `level` to 1e-10.
    Without variances: the shortest, of equals the lowest, that holds ceil(level S) of the draws (Chen & Shao 1999).
    """
    share("level", level)
    if variances is None:
        mu = finite("means", means)
        if mu.ndim < 1:
            raise InvalidArgument("means", f"shape {mu.shape}", "(S, ...)")
        return _shortest_windows(mu, level)
    mu, sigma2 = gaussians(means, variances)
    held = level * (1 - _MISSED)
    flat, spread = mu.reshape(len(mu), -1), np.sqrt(sigma2).reshape(len(mu), -1)
    columns = max(1, _BLOCK // (len(_STEPS) * max(len(mu), _PARTS)))
    parts = [
        _shortest(flat[:, start : start + columns], spread[:, start : start + columns], held)
        for start in range(0, flat.shape[1], columns)
    ]
    bounds: Array = np.concatenate(parts).reshape(*mu.shape[1:], 2)
    return bounds


def _shortest_windows(draws: Array, level: float) -> Array:
    """Return the shortest windows (..., 2) of draws (S, ...) that hold `level` of them."""
    ordered = np.sort(draws, axis=0)
    held = max(1, math.ceil(level * len(draws) - 1e-9))  # .55 of 100 are 55, whatever rounding says
    first = (ordered[held - 1 :] - ordered[: len(draws) - held + 1]).argmin(axis=0)[None]
    bounds = [np.take_along_axis(ordered, first + beyond, axis=0)[0] for beyond in (0, held - 1)]
    windows: Array = np.stack(bounds, axis=-1)
    return windows


def _density(mu: Array, sigma: Array, x: Array) -> tuple[Array, Array]:
    """Return the mixtures' (S, n) densities at x (n,) and their derivatives."""
    z = (x - mu) / sigma
    each = np.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * sigma)
    return each.mean(axis=0), -(z * each / sigma).mean(axis=0)


def _closeness(mu: Array, sigma: Array) -> Array:
    """Return the distances (n,) below which two numbers count as one."""
    whole = np.sqrt((sigma**2).mean(axis=0) + mu.var(axis=0))
    distance: Array = 1e-13 * whole + 1e-15 * np.abs(mu).max(axis=0)
    return distance


def _upper_bounds(mu: Array, sigma: Array, lower: Array, level: float, start: Array) -> Array:
    """Return the bounds (n,) up to which mixtures (S, n) hold `level` from the lower ones on.

    Far above all mass where there is not so much left.
    """
    wanted = special.ndtr((lower - mu) / sigma).mean(axis=0) + level

    def excess(x: Array, left: NDArray[np.int64]) -> tuple[Array, Array]:
        held = special.ndtr((x - mu[:, left]) / sigma[:, left]).mean(axis=0)
        return held - wanted[left], _density(mu[:, left], sigma[:, left], x)[0]

    return _rising_root(excess, start, lower, (mu + _FAR * sigma).max(axis=0), _closeness(mu, sigma), 1e-15)


def _rising_root(
    function: Callable[[Array, NDArray[np.int64]], tuple[Array, Array]],
    start: Array,
    low: Array,
    high: Array,
    closeness: Array,
    enough: float = 0.0,
) -> Array:
    """Return where functions pass from below 0 to above, each between its `low` and `high` (n,).

    `function` returns values and derivatives at some numbers, and is told which these are; values up to `enough` are
    as good as 0. By Newton's method, within a bracket that is halved where a step would leave it, or is more than half
    the last one: such steps may go round in circles.
    """
    found, low, high = np.clip(start, low, high), low.copy(), high.copy()
    left = np.arange(len(found))  # those that still move
    last = high - low
    for _ in range(200):
        at = found[left]
        value, slope = function(at, left)
        low[left], high[left] = np.where(value <= 0, at, low[left]), np.where(value >= 0, at, high[left])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = at - value / slope
        good = (slope > 0) & (step >= low[left]) & (step <= high[left]) & (np.abs(step - at) <= last[left] / 2)
        step = np.where(good, step, (low[left] + high[left]) / 2)
        last[left] = np.abs(step - at)
        found[left] = np.where(np.abs(value) > enough, step, at)
        left = left[(np.abs(value) > enough) & (np.abs(step - at) > closeness[left])]
        if not len(left):
            break
    return found


def _shortest(mu: Array, sigma: Array, level: float) -> Array:
    """Return the shortest intervals (n, 2) of mixtures (S, n).

    The distribution function at landmarks shows where short intervals begin; near the best of them lower bounds are
    found at which both bounds have the same density.
    """
    points, masses = _landmarks(mu, sigma)
    many, numbers = min(_PARTS, max(_REFINED, _POINTS // len(mu))), mu.shape[1]
    places, guesses = _likely(points, masses, level, many)  # (R, n)
    mu, sigma, upper = np.tile(mu, many), np.tile(sigma, many), guesses.ravel()  # (S, R n)

    def neighbours(distance: int) -> Array:
        """Return landmarks at a distance from the places."""
        near = np.clip(places + distance, 0, len(points) - 1)
        bounds: Array = np.take_along_axis(points, near, axis=0).ravel()
        return bounds

    def closed(lower: Array) -> Array:
        """Return the intervals (R n, 2) from lower bounds on."""
        return np.stack([lower, _upper_bounds(mu, sigma, lower, level, upper)], axis=-1)

    def imbalance(at: Array, left: NDArray[np.int64]) -> tuple[Array, Array]:
        """Return how much denser it is at the lower bound than at the upper, and the derivative."""
        m, s = mu[:, left], sigma[:, left]
        upper[left] = _upper_bounds(m, s, at, level, upper[left])
        density, slope = _density(m, s, at)
        beyond, fall = _density(m, s, upper[left])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return density - beyond, slope - fall * density / beyond

    first = neighbours(0)
    found = [closed(first)]
    balanced = _rising_root(imbalance, first, neighbours(-_NEAR), neighbours(_NEAR), _closeness(mu, sigma))
    found.append(closed(balanced))
    pairs = np.concatenate(found).reshape(-1, numbers, 2)
    shortest: Array = np.take_along_axis(pairs, np.diff(pairs).argmin(axis=0)[None], axis=0)[0]
    return shortest


def _landmarks(mu: Array, sigma: Array) -> tuple[Array, Array]:
    """Return points (P, n) where mixtures (S, n) have their mass, in order, and their distribution functions there."""
    points = (mu[:, None] + sigma[:, None] * _STEPS[:, None]).reshape(len(mu) * len(_STEPS), -1)
    points = np.sort(points, axis=0)[np.linspace(0, len(points) - 1, min(len(points), _POINTS)).round().astype(int)]
    return points, np.stack([special.ndtr((point - mu) / sigma).mean(axis=0) for point in points])


def _likely(points: Array, masses: Array, level: float, many: int) -> tuple[NDArray[np.int64], Array]:
    """Return the landmarks of (P, n) where the shortest intervals seem to begin, (many, n), and where these end."""
    places, ends = [], []
    for point, mass in zip(points.T, masses.T, strict=True):
        upper = np.interp(mass + level, mass, point)
        begin = np.flatnonzero(mass + level < mass[-1])
        width = upper - point
        parts = np.array_split(begin, min(_PARTS, len(begin))) if len(begin) else [np.zeros(1, dtype=np.int64)]
        best = np.array([some[width[some].argmin()] for some in parts])
        best = best[np.argsort(width[best], kind="stable")]
        places.append(np.resize(best, many))
        ends.append(upper[places[-1]])
    return np.stack(places, axis=-1), np.stack(ends, axis=-1)
