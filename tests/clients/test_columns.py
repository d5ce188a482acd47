"""Laws of tables on their way to a model: columns are found by name, whatever their form, and coded as in training."""

from __future__ import annotations

import csv
import math
import tempfile
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import dubito_models.errors
from dubito_client import calls
from dubito_client.answers import Column, InputSignature
from dubito_client.columns import encode_table, is_table
from dubito_client.errors import InvalidArgument, ProtocolError
from dubito_client.files import read_table
from dubito_client.inputs import named_arrays
from dubito_models import tables
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

from .fakes import describe, regress
from .test_calls import asked, drive, session

NAN = math.nan
COLUMNS = (
    Column("area", "number", allow_nan=True),
    Column("city", "category", ("Bern", "Rome"), allow_nan=True),
    Column("rooms", "number"),
    Column("style", "category", ("new", "1")),
)
HOUSES = InputSignature("inputs", "float32", (None, 4), True, ("rows", ""), COLUMNS)
AREA, CITY, ROOMS, STYLE = [80.5, None, 60.0], ["Rome", "Paris", None], [3, 2, 1], ["1", "new", "old"]
ENCODED = [[80.5, 2, 3, 2], [NAN, 0, 2, 1], [60, NAN, 1, 0]]

BY_NAME = {"style": STYLE, "more": [object()] * 3, "rooms": ROOMS, "city": CITY, "area": AREA}
FRAME = pd.DataFrame({"style": STYLE, "rooms": ROOMS, "city": CITY, "area": AREA, "day": pd.Timestamp("2024-01-01")})
STRUCTURED = np.array(
    list(zip(AREA, [b"Rome", b"Paris", b""], ROOMS, STYLE, strict=True)),
    [("area", "f8"), ("city", "S5"), ("rooms", "i4"), ("style", "U3")],
)
FORMS = {
    "columns": BY_NAME,
    "rows": [
        {"style": s, "rooms": r, "city": c, "area": a} for s, r, c, a in zip(STYLE, ROOMS, CITY, AREA, strict=True)
    ],
    "rows that lack what is missing": [
        {"area": 80.5, "city": "Rome", "rooms": 3, "style": 1},
        {"city": "Paris", "rooms": 2, "style": "new"},
        {"rooms": 1, "style": "old", "area": 60},
    ],
    "arrays": {name: np.array(values) for name, values in BY_NAME.items()},
    "frame": FRAME,
    "frame of pandas' own types": FRAME.convert_dtypes(),
    "frame of categoricals": FRAME.astype({"city": "category", "style": "category"}),
    "frame as mappings": FRAME.to_dict(),
    "arrow": arrow.table({"style": STYLE, "rooms": ROOMS, "city": CITY, "area": AREA}),
    "arrow of dictionaries": arrow.table(
        {"style": STYLE, "rooms": ROOMS, "city": arrow.array(CITY).dictionary_encode(), "area": AREA}
    ),
    "structured": STRUCTURED,
}


def encode(table: Any, signature: InputSignature = HOUSES) -> Any:
    return named_arrays(table, [signature])[signature.name]


@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_any_form_becomes_the_same_numbers(form: str) -> None:
    for table in (FORMS[form], {"inputs": FORMS[form]}):
        rows = encode(table)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, np.float32(ENCODED))


def test_one_row_may_come_by_its_values() -> None:
    np.testing.assert_array_equal(encode({"area": 80.5, "city": "Rome", "rooms": 3, "style": 1}), ENCODED[:1])


def test_numbers_in_the_columns_order_are_taken_as_they_are() -> None:
    rows = np.float32(ENCODED)
    assert encode(rows) is rows
    assert encode({"inputs": rows}) is rows
    np.testing.assert_array_equal(encode(ENCODED), rows)


def test_a_column_may_be_called_as_the_input_is() -> None:
    signature = InputSignature("x", "float32", (None, 1), columns=(Column("x", "number"),))
    np.testing.assert_array_equal(encode({"x": ["1", "2"]}, signature), [[1], [2]])


def test_one_of_several_inputs_may_be_a_table() -> None:
    other = InputSignature("other", "int64", (None, 1))
    arrays = named_arrays({"inputs": BY_NAME, "other": [[1]] * 3}, [HOUSES, other])
    np.testing.assert_array_equal(arrays["inputs"], np.float32(ENCODED))
    with pytest.raises(InvalidArgument, match="the names inputs, other"):
        named_arrays(BY_NAME, [HOUSES, other])


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ([" 1.5 ", "-2", "1e3", ".5"], [1.5, -2, 1000, 0.5]),
        (["", "NA", "?", "null"], [NAN] * 4),
        (["True", "false", True, False], [1, 0, 1, 0]),
        ([Decimal("1.25"), np.float32(0.5), np.int8(3), np.True_], [1.25, 0.5, 3, 1]),
        ([None, NAN, pd.NA, pd.NaT], [NAN] * 4),
        (np.array([1, 2, 3, 4]), [1, 2, 3, 4]),
        (np.array([True, False]), [1, 0]),
    ],
)
def test_a_number_may_be_written_in_many_ways(cells: Any, numbers: list[float]) -> None:
    encoded = encode_table({"x": cells}, [Column("x", "number", allow_nan=True)], "inputs")
    np.testing.assert_array_equal(encoded[:, 0], numbers)


@pytest.mark.parametrize(
    ("cells", "codes"),
    [
        (["a", " a ", "b", "A"], [1, 1, 2, 0]),
        (["1", 1, 1.0, np.float32(1)], [3, 3, 3, 3]),
        ([True, "True", b"a", 1.5], [4, 4, 1, 0]),
        ([None, "", " ", NAN, pd.NA], [NAN] * 5),
        (np.array([1, 2]), [3, 0]),
    ],
)
def test_a_category_is_looked_up_by_its_text(cells: Any, codes: list[float]) -> None:
    column = Column("x", "category", ("a", "b", "1", "True"), allow_nan=True)
    np.testing.assert_array_equal(encode_table({"x": cells}, [column], "inputs")[:, 0], codes)
    bare = Column("x", "category", column.categories)
    np.testing.assert_array_equal(encode_table({"x": cells}, [bare], "inputs")[:, 0], np.nan_to_num(codes))


@pytest.mark.parametrize(
    ("change", "field", "given", "accepted"),
    [
        (
            {"rooms": None},
            "rooms",
            "the columns style, more, city, area, of which none has this name",
            "'rooms', beside",
        ),
        ({"rooms": [3, "many", 1]}, "rooms", "'many' in row 1", "a number"),
        ({"rooms": [3, "1,5", 1]}, "rooms", "'1,5' in row 1", "a number"),
        ({"rooms": [3, 1j, 1]}, "rooms", "1j in row 1", "a number"),
        ({"rooms": [[1], [2], [3]]}, "rooms", "[1] in row 0", "a number"),
        ({"rooms": np.ones((3, 2))}, "rooms", "[1.0, 1.0] in row 0", "a number"),
        ({"rooms": pd.to_datetime(["2024-01-01"] * 3)}, "rooms", "Timestamp", "a number"),
        ({"rooms": [3, "", 1]}, "rooms", "no value in row 1", "a finite number in every row"),
        ({"rooms": [3, 1, "1e999"]}, "rooms", "inf in row 2", "a finite number in every row"),
        ({"area": [3, 10**400, 1]}, "area", "inf in row 1", "a finite number, or none"),
        ({"area": np.array([3, 1, -np.inf])}, "area", "-inf in row 2", "a finite number, or none"),
        ({"rooms": [3, 2]}, "", "columns of different lengths: 3 of 'area', 3 of 'city', 2 of 'rooms'", "as many"),
        ({"rooms": [3, 2, 1e39]}, "", "1e+39", "values that float32 can hold"),
    ],
)
def test_what_is_wrong_with_a_column_is_said_by_its_name(
    change: dict[str, Any], field: str, given: str, accepted: str
) -> None:
    table = {name: values for name, values in {**BY_NAME, **change}.items() if values is not None}
    with pytest.raises(InvalidArgument) as caught:
        encode(table)
    assert caught.value.field == "inputs.inputs" + (field and f".{field}")
    assert given in caught.value.given
    assert accepted in caught.value.accepted


def test_rows_that_are_no_rows_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="a row that is of type int"):
        encode([{"area": 1}, 2])
    for nothing in (["Rome", "Bern"], [["Rome", 1, 2, 3]], np.array([["a"] * 4])):
        with pytest.raises(InvalidArgument, match="or a table with the columns area, city, rooms, style"):
            encode(nothing)


def test_a_table_for_a_model_that_takes_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the names x"):
        encode({"a": [1]}, InputSignature("x", "float32", (None, 1)))


def test_a_kind_of_column_that_this_client_does_not_know_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="unknown_9"):
        encode_table({"x": [1]}, [Column("x", "unknown_9")], "inputs")


def test_a_plain_array_is_no_table() -> None:
    assert not any(is_table(value) for value in (np.ones(3), [[1, 2]], [], (), "text", 1, None))
    assert all(is_table(value) for value in (FRAME, {}, STRUCTURED, [{}], ({},)))


# --- As trained ---

TEXTS = st.sampled_from(["a", "b", " a", "A", "3+", "NA", "?", "1", "01", "x,y", 'say "so"', "ä", "None"])
NUMBERS = st.sampled_from(["0", "1", "-2.5", "1e-3", " 7 ", "", "NA", "nan", "16777217", "3.0"])
TRUTHS = st.sampled_from(["True", "false", "TRUE", "", "1", "0"])
POOLS = st.one_of(*(st.lists(cells, min_size=2, max_size=6, unique=True) for cells in (TEXTS, NUMBERS, TRUTHS)))
ROWS = tables.LEAST_ROWS


@st.composite
def cells(draw: st.DrawFn) -> list[str]:
    pool = draw(POOLS)
    return draw(st.permutations([pool[row % len(pool)] for row in range(ROWS)]))


@settings(max_examples=200, deadline=None)
@given(st.lists(cells(), min_size=1, max_size=3), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_a_file_is_encoded_as_it_was_for_training(columns: list[list[str]], separator: str, as_parquet: bool) -> None:
    header = ["target", *(f"c{number}" for number in range(len(columns)))]
    target = [str(row / 7) for row in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("table.parquet" if as_parquet else "table.csv")
        if as_parquet:
            parquet.write_table(arrow.table(dict(zip(header, [target, *columns], strict=True))), path)
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, delimiter=separator).writerows([header, *zip(target, *columns, strict=True)])
        try:
            trained = tables.read_table(path, target="target")
        except dubito_models.errors.InvalidArgument:
            assume(False)  # a column that varies in spelling alone, or is missing throughout
        declared = tuple(Column(**asdict(column)) for column in trained.columns)
        signature = InputSignature("inputs", "float32", (None, len(declared)), columns=declared)
        np.testing.assert_array_equal(encode(read_table(path), signature), trained.inputs)


def test_parquets_own_types_are_encoded_as_they_were_for_training(tmp_path: Path) -> None:
    def repeated(*values: Any) -> list[Any]:
        return [values[row % len(values)] for row in range(ROWS)]

    source = {
        "whole": arrow.array(repeated(3, None, 2**53 + 1)),
        "half": arrow.array(np.array(repeated(0.5, 1.5), np.float16)),
        "decimal": arrow.array(repeated(Decimal("1.25"), Decimal("2.50"), None)),
        "truth": arrow.array(repeated(True, False, None)),
        "categorical": arrow.array(repeated("10", "9", None)).dictionary_encode(),
        "large": arrow.array(repeated("b", " a ", ""), arrow.large_string()),
        "target": arrow.array([row / 7 for row in range(ROWS)]),
    }
    parquet.write_table(arrow.table(source), tmp_path / "table.parquet")
    trained = tables.read_table(tmp_path / "table.parquet", target="target")
    declared = tuple(Column(**asdict(column)) for column in trained.columns)
    signature = InputSignature("inputs", "float32", (None, len(declared)), columns=declared)
    again = read_table(tmp_path / "table.parquet")
    frame = pd.read_parquet(tmp_path / "table.parquet")
    np.testing.assert_array_equal(encode(again, signature), trained.inputs)
    np.testing.assert_array_equal(encode(frame, signature), trained.inputs)


# --- Asked about ---


def houses(version: int, categories: tuple[str, ...]) -> pb.GetModelResponse:
    column = pb.Column(name="city", kind=pb.COLUMN_KIND_CATEGORY, categories=categories, allow_nan=True)
    signature = pb.TensorSignature(
        name="x", dtype=pb.DATA_TYPE_FLOAT32, shape=[-1, 1], allow_nan=True, columns=[column]
    )
    return describe(status=pb.ModelStatus(model="houses", version=version), inputs=[signature])


TABLE = {"city": ["Rome", "Bern", None]}


def sent(step: Any) -> list[float]:
    [tensor] = asked(step).inputs
    return [float(value) for value in tensors.decode(tensor)[:, 0]]


def test_texts_travel_as_the_codes_that_the_model_declares() -> None:
    result, taken = drive(calls.predict(session(), "houses", TABLE), houses(3, ("Bern", "Rome")), regress())
    assert sent(taken[1]) == pytest.approx([2, 1, NAN], nan_ok=True)
    assert result.version == 3


def test_an_answer_by_a_version_of_other_categories_is_asked_for_anew() -> None:
    known = session()
    drive(calls.predict(known, "houses", TABLE), houses(3, ("Bern", "Rome")), regress())
    outcomes = (regress(version=4), houses(4, ("Rome",)), regress(version=4))
    result, taken = drive(calls.predict(known, "houses", TABLE), *outcomes)
    assert sent(taken[0]) == pytest.approx([2, 1, NAN], nan_ok=True)
    assert sent(taken[2]) == pytest.approx([1, 0, NAN], nan_ok=True)
    assert (result.version, len(taken)) == (4, 3)
    _, taken = drive(calls.predict(known, "houses", TABLE), regress(version=4))
    assert len(taken) == 1


def test_an_answer_by_a_version_of_the_same_columns_stands() -> None:
    known = session()
    drive(calls.evaluate(known, "houses", TABLE), houses(3, ("Rome",)), pb.EvaluateResponse(version=3, **evaluated()))
    outcomes = (pb.EvaluateResponse(version=4, **evaluated()), houses(4, ("Rome",)))
    result, taken = drive(calls.evaluate(known, "houses", TABLE), *outcomes)
    assert (result.version, len(taken)) == (4, 2)


def evaluated() -> dict[str, Any]:
    return {"output": tensors.encode(np.ones((3, 1)))}
