"""A calibration for tests: the identity unless they say otherwise; and parts of one, read back as a file's are."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from dubito_models.calibration import Calibration


def calibration(**changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "draws": 40, "seed": 0, "design": "balanced", "group_size": 10, "program": "ab", "data_fingerprint": "cd",
        "rows": 100, "nll_before": 0.2, "nll_after": 0.1,
    }  # fmt: skip
    return Calibration(**(values | changes))


def read_back(kind: Any, document: dict[str, Any]) -> Any:
    return TypeAdapter(kind).validate_json(json.dumps(document))
