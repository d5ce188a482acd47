"""Batch scoring: a table in, the same table with predictions and their uncertainty out."""

from dubito_batch.answers import Asked
from dubito_batch.scoring import score

__all__ = ["Asked", "score"]
