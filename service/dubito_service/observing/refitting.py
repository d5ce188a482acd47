"""Refitting a calibration from labels that came back: whole where inputs were kept, else its nonconformity scores.

A score is a function of its row that the calibration fixes. So scores of answers that were drawn as the calibration's
own rows were take the place of those, and split-conformal coverage holds for rows exchangeable with the observed ones.
That is a matter of which labels come back: of rows chosen by their answers the coverage is that of such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibrating import CalibrationSpec
from dubito_models.calibration import Calibration, Reached
from dubito_models.calibration.calibration import fingerprint
from dubito_models.calibration.conformal import refit_scores
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.package import ModelVersion
from dubito_service.observing.database import FILE
from dubito_service.observing.observations import KeptInputs, Observations, Rules, ScoredRows
from dubito_service.observing.receipts import read_inputs

LEAST_ROWS = 20


def open_observations(state: str) -> Observations:
    """Open a store that is there already; raises `InvalidArgument` or `CannotOpenState`."""
    if "://" not in state and not (Path(state) / FILE).is_file():
        raise InvalidArgument("state", state, f"the folder of a server's --state, which holds {FILE}")
    return Observations(state, Rules())


def refit(version: ModelVersion, observations: Observations, newest: int, spec: CalibrationSpec) -> Calibration:
    """Make a version's calibration anew from so many of the newest rows, store it beside the old and switch to it.

    `spec` is for a whole calibration. Raises `InvalidArgument` where too few labels have come.
    """
    kept = observations.kept_inputs(version.name, version.version, newest)
    if sum(map(len, kept.labels)) >= LEAST_ROWS:
        inputs, targets = _gather(version, kept)
        return version.calibrate(inputs, targets, spec)
    current = version.calibration
    if current is None or not current.conformal:
        accepted = f"a calibration that has scores, or {LEAST_ROWS} rows with their inputs (dubito serve --keep-inputs)"
        raise InvalidArgument("from-observations", "a version without scores to refit", accepted)
    found = observations.exact_scores(version.name, version.version, current.id, newest)
    fresh = with_scores(current, found)
    version.save_calibration(fresh)
    return fresh


def with_scores(calibration: Calibration, found: ScoredRows) -> Calibration:
    """Return a calibration with the scores of other rows, which it scored itself.

    Answers that are cut short keep the scores they had, and the threshold of abstaining stays.
    """
    count = len(found.scores)
    if count < LEAST_ROWS:
        given = f"{count} labelled rows drawn as calibration {calibration.id} was"
        raise InvalidArgument("from-observations", given, f"at least {LEAST_ROWS}")
    *fewer, last = calibration.conformal
    condition = last.conformal.condition
    keys = {"none": None, "class": found.labels[:, 0].astype(np.int64), "group": found.members}[condition]
    named: dict[str, NDArray[Any]] = {"scores": found.scores, "labels": found.labels, "members": found.members}
    return replace(
        calibration,
        conformal=(*fewer, Reached(last.groups, refit_scores(last.conformal, found.scores, keys))),
        score_rows=count,
        data_fingerprint=fingerprint(named),
    )


def _gather(version: ModelVersion, kept: KeptInputs) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Put the rows of all predictions together."""
    parts = [read_inputs(data) for data in kept.inputs]
    inputs = {name: _join(name, [part[name] for part in parts]) for name in parts[0]}
    targets = np.concatenate(kept.labels)
    if version.manifest.task is Task.CLASSIFICATION:
        return inputs, targets[:, 0].astype(np.int64)
    return inputs, targets


def _join(name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        given = f"rows of {len(shapes)} shapes"
        raise InvalidArgument(f"inputs[{name!r}]", given, "rows of one shape: calibrate from a file instead (--data)")
    return np.concatenate(parts)
