"""A version whose second input is a table of three columns; its network is that of the "two-inputs" case."""

from __future__ import annotations

from dubito_models.manifest import ColumnEntry
from dubito_models.package import ModelVersion


def with_table(version: ModelVersion) -> ModelVersion:
    columns = (
        ColumnEntry(name="area", kind="number", allow_nan=True),
        ColumnEntry(name="city", kind="category", categories=("Bern", "Rome"), allow_nan=True),
        ColumnEntry(name="rooms", kind="number"),
    )
    tokens, features = version.manifest.inputs
    inputs = (tokens, features.model_copy(update={"columns": columns, "allow_nan": True}))
    manifest = version.manifest.model_copy(update={"inputs": inputs})
    return ModelVersion(version.folder, manifest, version.engine, version.standard)
