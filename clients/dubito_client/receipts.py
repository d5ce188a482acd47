"""Files of receipts: a line of JSON for each prediction, to which its labels are brought later."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_client.answers import Observation, Prediction
from dubito_client.errors import refused
from dubito_client.files import read_arrays


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a prediction until its labels are known."""

    prediction_id: str
    receipt: bytes
    rows: int


def append_receipt(path: Path, prediction: Prediction) -> None:
    """Add a prediction to a file; `InvalidArgument` where it has no receipt, or the file cannot be written."""
    if prediction.prediction_id is None or prediction.receipt is None:
        raise refused("receipt", "none", "a server that keeps observations (dubito serve --state)")
    line = {
        "prediction_id": prediction.prediction_id,
        "model": prediction.model,
        "version": prediction.version,
        "rows": prediction.rows,
        "receipt": base64.b64encode(prediction.receipt).decode(),
    }
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise refused("receipt", f"{path} ({error.strerror or error})", "a file that can be written") from error


def read_receipts(path: Path) -> list[Kept]:
    """Read the predictions of a file in their order; `InvalidArgument` where it is no such file."""
    accepted = "lines as `dubito predict --receipt` writes them"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise refused("receipts", f"{path} ({error})", "a file that can be read") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            receipt = base64.b64decode(said["receipt"], validate=True)
            found.append(Kept(str(said["prediction_id"]), receipt, int(said["rows"])))
        except (ValueError, KeyError, TypeError) as error:
            raise refused("receipts", f"{path}, line {number} ({type(error).__name__})", accepted) from error
    if not found:
        raise refused("receipts", f"{path} without a line", accepted)
    return found


def read_labels(path: Path, rows: int) -> NDArray[Any]:
    """Read so many labels, (rows,) or (rows, K), from a file of one array; a single column is a list of labels."""
    found = read_arrays(path)
    if isinstance(found, dict):
        raise refused("labels", f"{path} of {len(found)} arrays", "one array of labels")
    labels = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if labels.shape[:1] != (rows,):
        raise refused("labels", f"{path} of shape {found.shape}", f"{rows} labels, one for every row predicted")
    return labels


def summary(came: Sequence[Observation]) -> dict[str, Any]:
    """Say in a few numbers what came of labels; `covered`: the share, None where no coverage was asked."""
    covered = [each.covered.reshape(-1) for each in came if each.covered is not None]
    return {
        "predictions": len(came),
        "rows": sum(each.rows for each in came),
        "duplicates": sum(each.duplicate for each in came),
        "covered": float(np.concatenate(covered).mean()) if covered else None,
    }
