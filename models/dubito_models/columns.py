"""The columns of a table: what each holds, and which number stands for a cell of it.

A packaged program takes a table as numbers (B, C): a number column as it is, a category as its code, 1 for the first
of the column's categories; 0 for any other text, be it rare in training or never seen; NaN where a value is missing.
A signature tells all of this to whoever asks, so that clients can encode texts themselves.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from dubito_models.errors import InvalidArgument

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MISSING_NUMBERS = {"", "?", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"}  # in any letter case
TRUTH = {"true": 1.0, "false": 0.0}  # in any letter case


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `categories[k - 1]` is the text of code k, and `allow_nan` says whether a value may be missing."""

    name: str
    kind: Literal["number", "category"]
    categories: tuple[str, ...] = ()
    allow_nan: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgument("column", "an empty name", "a name")
        field = f"column {self.name!r}"
        if self.kind not in ("number", "category"):
            raise InvalidArgument(field, f"kind {self.kind!r}", "number, category")
        if bool(self.categories) != (self.kind == "category"):
            given = f"{len(self.categories)} categories for kind {self.kind!r}"
            raise InvalidArgument(field, given, "categories for kind 'category', and only there")
        if len(set(self.categories)) < len(self.categories) or any(not text.strip() for text in self.categories):
            raise InvalidArgument(field, "categories that are equal or blank", "categories that differ, none blank")


def number_of(text: str) -> float | None:
    """Return the number that a cell's text says: NaN for a missing one, 1 and 0 for true and false, None for no number.

    Decimal, in ASCII digits, with a point and without a thousands separator.
    """
    if NUMBER.fullmatch(text):
        return float(text)
    word = text.lower()
    return math.nan if word in MISSING_NUMBERS else TRUTH.get(word)


def text_of(value: object) -> str | None:
    """Return the text by which a cell is compared to categories, None for a missing one; blanks around it do not count.

    A whole number has no decimal point, whether it came as 1 or as 1.0.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
