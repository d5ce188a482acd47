"""Laws of the encoder: no missing value or unknown category ever breaks or misleads, here, exported or packed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from dubito_models.columns import Column
from dubito_models.errors import CorruptVersion, InvalidArgument
from dubito_models.manifest import InputSignature, Manifest
from dubito_models.networks.tabular import TableEncoder
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Regression
from dubito_models.sampling import SamplingSpec
from dubito_models.tables import Table, read_table, split_table
from houses import house_network, pack_houses, write_houses

NAN = math.nan
COLUMNS = (
    Column("area", "number", allow_nan=True),
    Column("city", "category", ("Bern", "Oslo", "Rome"), allow_nan=True),
    Column("rooms", "number"),
    Column("style", "category", ("new", "old")),
)
ROWS = np.array(  # Rome is not among the training rows; a style is once rare
    [
        [10, 1, 3, 1],
        [NAN, 2, 4, 2],
        [30, NAN, 5, 0],
        [50, 1, 4, 1],
    ],
    np.float32,
)


def encode(*rows: list[float], columns: tuple[Column, ...] = COLUMNS, training: Any = ROWS) -> Tensor:
    return TableEncoder(columns, training)(torch.tensor(rows, dtype=torch.float32))


def test_features_are_what_the_documentation_says() -> None:
    encoder = TableEncoder(COLUMNS, ROWS)
    assert encoder.features == 8  # area, rooms, area missing; city missing, Bern, Oslo; new, old
    filled = np.array([10, 30, 30, 50])  # the median for the missing one
    areas = (filled - filled.mean()) / filled.std()
    rooms = (ROWS[:, 2] - 4) / ROWS[:, 2].std()
    expected = np.stack(
        [
            areas,
            rooms,
            np.array([0, 1, 0, 0]) - 0.25,
            np.array([0, 0, 1, 0]) - 0.25,
            np.array([1, 0, 0, 1]) - 0.5,
            np.array([0, 1, 0, 0]) - 0.25,
            np.array([1, 0, 0, 1]) - np.array([0.5, 0.5, 0, 0.5]),
            np.array([0, 1, 0, 0]) - np.array([0.25, 0.25, 0, 0.25]),
        ],
        axis=1,
    )
    np.testing.assert_allclose(encoder(torch.from_numpy(ROWS)), expected, atol=1e-6)
    assert not list(encoder.parameters())


@pytest.mark.parametrize("code", [0.0, 3.0, 4.0, 1e9, -1.0])
def test_a_code_that_training_has_not_seen_is_the_average_row(code: float) -> None:
    features = encode([10, code, 3, 1])[0]
    assert features[3:6].tolist() == [0, 0, 0]
    assert (features[6:] != 0).all()


def test_a_missing_category_without_an_example_in_training_is_the_average_row_too() -> None:
    assert encode([10, 1, 3, NAN])[0, 6:].tolist() == [0, 0]


def test_a_missing_number_without_an_example_in_training_is_its_median() -> None:
    torch.testing.assert_close(encode([10, 1, NAN, 1]), encode([10, 1, 4, 1]))


def test_a_column_that_did_not_vary_in_training_says_nothing() -> None:
    columns = (Column("x", "number"), Column("y", "number"), Column("z", "category", ("a",)))
    training = [[0.1, 1.0, 1.0], [0.1, 2.0, 1.0], [0.1, 3.0, 1.0]]
    features = encode([0.1, 2.0, 1.0], [1e9, 2.0, 0.0], columns=columns, training=training)
    assert features.tolist() == [[0, 0], [0, 0]]


def test_a_column_that_training_rows_lack_altogether_says_nothing() -> None:
    columns = (Column("x", "number", allow_nan=True), Column("y", "number"))
    features = encode([5.0, 2.0], [NAN, 2.0], columns=columns, training=[[NAN, 1.0], [NAN, 3.0]])
    assert features.tolist() == [[0, 0], [0, 0]]


def test_large_offsets_keep_their_digits() -> None:
    training = 1e8 + np.arange(0, 800, 8, dtype=np.float64)[:, None]
    features = TableEncoder((Column("x", "number"),), training)(torch.from_numpy(training).float())
    assert abs(float(features.double().mean())) < 0.02  # of a standard deviation; a step of float32 there is .03 of it
    assert float(features.double().std(correction=0)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("training", "why"),
    [
        (ROWS[:, :3], r"shape \(4, 3\)"),
        (ROWS[:0], r"shape \(0, 4\)"),
        (ROWS[0], r"shape \(4,\)"),
        (np.where(np.isnan(ROWS), np.inf, ROWS), "infinity in column 'area'"),
    ],
)
def test_training_rows_that_do_not_fit_the_columns_are_refused(training: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        TableEncoder(COLUMNS, training)


def test_columns_of_which_nothing_can_be_made_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="never vary"):
        TableEncoder((Column("z", "category", ("a",)),), [[1.0], [1.0]])


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.one_of(finite.filter(lambda x: abs(x) < 1e30), st.just(NAN))] * 4), min_size=1))
def test_features_are_finite_whatever_comes_and_each_row_is_its_own(rows: list[tuple[float, ...]]) -> None:
    encoder = TableEncoder(COLUMNS, ROWS)
    features = encoder(torch.tensor(rows))
    assert torch.isfinite(features).all()
    alone = torch.cat([encoder(torch.tensor([row])) for row in rows])
    assert torch.equal(features, alone)


# --- Packed ---


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return read_table(write_houses(tmp_path_factory.mktemp("houses") / "houses.csv"), target="price")


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    folder = tmp_path_factory.mktemp("packed")
    packed = pack_houses(folder, write_houses(folder / "houses.csv"))
    return load_version(packed.folder)


def test_a_packed_table_network_takes_raw_columns_and_answers_as_the_module(table: Table, houses: ModelVersion) -> None:
    rows = split_table(table).test.inputs
    assert np.isnan(rows).any()
    network = house_network(table).eval()
    with torch.no_grad():
        raw = network(torch.tensor(rows))
    evaluation = houses.evaluate(rows)
    assert evaluation.mean is not None
    np.testing.assert_allclose(evaluation.mean[:, 0], raw[:, 0], rtol=1e-5)
    answer = houses.predict(rows, SamplingSpec(max_draws=200)).answer
    assert isinstance(answer, Regression)
    assert answer.epistemic_variance is not None
    assert (answer.epistemic_variance > 0).all()
    # Dropout's draws are unbiased in the layer before the head, so their mean is the standard path's up to its noise.
    spread = np.sqrt(answer.epistemic_variance / 200)
    assert np.abs((answer.mean - evaluation.mean) / spread).max() < 6  # 60 rows share draws; z of 6: 1e-7 at most


def test_columns_stand_in_the_manifest_and_survive_the_disk(table: Table, houses: ModelVersion) -> None:
    [entry] = houses.manifest.inputs
    assert entry.columns is not None
    assert tuple(Column(**column.model_dump()) for column in entry.columns) == table.columns
    assert entry.allow_nan
    assert {column.name: column.allow_nan for column in entry.columns} == {
        "area": True, "rooms": False, "city": True, "garden": False, "style": False,
    }  # fmt: skip
    assert Manifest.model_validate_json(houses.manifest.model_dump_json()) == houses.manifest


def test_every_value_that_may_be_missing_may_be_missing_at_once(houses: ModelVersion) -> None:
    answer = houses.predict(np.array([[NAN, 3, NAN, 1, 0]], np.float32)).answer
    assert isinstance(answer, Regression)
    assert np.isfinite(answer.mean).all()


@pytest.mark.parametrize(
    ("column", "value", "given", "accepted"),
    [
        ("rooms", NAN, "nan in row 1", "finite numbers; no value may be missing here"),
        ("area", math.inf, "inf in row 1", "finite numbers; NaN for a missing value"),
        ("style", NAN, "nan in row 1", "no value may be missing here"),
        ("style", 1.5, "1.5 in row 1", "a whole number >= 0"),
        ("city", -1.0, "-1.0 in row 1", "a whole number >= 0; NaN for a missing value"),
        ("city", -math.inf, "-inf in row 1", "a whole number >= 0"),
    ],
)
def test_a_value_that_its_column_cannot_have_is_refused_by_name(
    table: Table, houses: ModelVersion, column: str, value: float, given: str, accepted: str
) -> None:
    rows = np.array([[80, 3, 1, 1, 1]] * 3, np.float32)
    rows[1, [c.name for c in table.columns].index(column)] = value
    with pytest.raises(InvalidArgument) as caught:
        houses.read_inputs(rows)
    assert caught.value.field == f"inputs['inputs'].columns[{column!r}]"
    assert caught.value.given == given
    assert accepted in caught.value.accepted


def test_a_code_above_the_categories_means_code_0(houses: ModelVersion) -> None:
    rows = np.array([[80, 3, 0, 1, 1], [80, 3, 99, 1, 1]], np.float32)
    evaluation = houses.evaluate(rows)
    assert evaluation.mean is not None
    assert evaluation.mean[0] == evaluation.mean[1]


def test_a_table_of_categories_alone_packs_with_dropout_on_its_features(tmp_path: Path) -> None:
    columns = (Column("a", "category", ("x", "y")), Column("b", "category", ("x", "y", "z")))
    random = np.random.default_rng(0)
    rows = np.stack([random.integers(0, 3, 64), random.integers(0, 4, 64)], axis=1).astype(np.float32)
    encoder = TableEncoder(columns, rows)
    network = nn.Sequential(encoder, nn.Dropout(0.2), nn.Linear(encoder.features, 8), nn.ReLU(), nn.Linear(8, 2))
    version = pack(
        network, torch.tensor(rows), repository=tmp_path, name="m", task="classification", head="logits",
        columns={"input": columns},
    )  # fmt: skip
    assert not load_version(version.folder).manifest.inputs[0].allow_nan


class Two(nn.Module):
    """A table beside other inputs, NaN replaced or not."""

    def __init__(self, replaces: bool) -> None:
        super().__init__()
        self.layer, self.drop, self.replaces = nn.Linear(5, 2), nn.Dropout(0.5), replaces

    def forward(self, table: Tensor, more: Tensor, whole: Tensor) -> Tensor:
        rows = torch.nan_to_num(table) if self.replaces else table
        return self.drop(torch.cat([self.layer(torch.cat([rows, more], 1)), whole.float()], 1))


def pack_two(folder: Path, replaces: bool = True, **options: Any) -> ModelVersion:
    return pack(
        Two(replaces), (torch.rand(4, 2), torch.rand(4, 3), torch.ones(4, 1, dtype=torch.int64)), repository=folder,
        name="two", task="regression", head="mean", **options,
    )  # fmt: skip


MAY_LACK = [Column("a", "number"), Column("b", "number", allow_nan=True)]


def test_one_of_several_inputs_may_be_a_table(tmp_path: Path) -> None:
    version = pack_two(tmp_path, columns={"table": MAY_LACK})
    assert [entry.columns is not None for entry in version.manifest.inputs] == [True, False, False]
    others = {"more": np.ones((1, 3), np.float32), "whole": np.ones((1, 1), np.int64)}
    version.read_inputs({"table": np.array([[0, NAN]], np.float32), **others})
    with pytest.raises(InvalidArgument, match=r"columns\['a'\]"):
        version.read_inputs({"table": np.array([[NAN, 0]], np.float32), **others})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"columns": {"tables": MAY_LACK}}, "columns: got 'tables'; accepted: the names of inputs: table, more, whole"),
        ({"columns": {"table": MAY_LACK[:1]}}, "1 columns; accepted: 2"),
        ({"columns": {"table": MAY_LACK[:1] * 2}}, "two columns 'a'"),
        ({"columns": {"whole": MAY_LACK[:1]}}, "torch.int64; accepted: an input of floats"),
        ({"columns": {"table": MAY_LACK}, "allow_nan": ["table"]}, "allow_nan: got 'table'"),
        ({"columns": {"table": MAY_LACK}, "replaces": False}, "a prediction of NaN"),
    ],
)
def test_columns_that_the_network_does_not_bear_out_are_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pack_two(tmp_path, **options)
    assert why in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_manifest_whose_columns_are_not_its_inputs_is_corrupt(houses: ModelVersion, tmp_path: Path) -> None:
    [entry] = houses.manifest.inputs
    assert entry.columns is not None
    with pytest.raises(ValidationError, match="4 columns for the shape"):
        InputSignature(**{**entry.model_dump(), "columns": entry.columns[1:]})
    folder = tmp_path / "houses" / "1"
    shutil.copytree(houses.folder, folder)
    changed = houses.manifest.model_dump(mode="json")
    changed["inputs"][0]["columns"][0]["kind"] = "date"
    (folder / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(CorruptVersion, match=r"inputs\.0\.columns\.0\.kind"):
        load_version(folder)
