"""Scoring a table: whatever it comes as, every row comes back in its place, with its answer or its problem."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor, nn

from dubito_batch.answers import Asked, Described, scored_schema
from dubito_batch.features import map_columns
from dubito_batch.local import LocalScorer
from dubito_batch.scoring import choose_batch_rows, open_scorer, score, score_block
from dubito_client.answers import InputSignature
from dubito_client.errors import InvalidArgument, ProtocolError, refused
from dubito_models.package import ModelVersion
from dubito_models.packing import pack

from .conftest import WIDTH, rows

DESCRIBED = Described(
    model="sums",
    version=1,
    task="regression",
    head="mean",
    outputs=1,
    class_names=(),
    inputs=(InputSignature("x", "float32", (None, None), dimension_names=("rows", "length")),),
    checksums={},
    calibration_id=None,
    covers=False,
    abstains=False,
)


@dataclass
class Sums:
    """Answers with the sum of a row; `hook` is called first, with the rows' shape."""

    described: Described = DESCRIBED
    asked: Asked = field(default_factory=Asked)
    threads: int = 2
    passes: dict[str, int | str] = field(default_factory=dict)
    hook: Callable[[tuple[int, ...]], None] = lambda shape: None

    def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        x = inputs["x"]
        self.hook(x.shape)
        reasons = np.full(len(x), "max_draws", object)
        return {"mean": x.sum(1, dtype=np.float64)[:, None], "draws": np.full(len(x), 16), "stop_reason": reasons}


def features(count: int, seed: int = 0) -> arrow.Table:
    x = rows(count, seed)
    return arrow.table({"id": np.arange(count), "x": arrow.FixedSizeListArray.from_arrays(x.ravel(), WIDTH)})


def lists(values: list[Any]) -> arrow.Table:
    return arrow.table({"id": np.arange(len(values)), "x": arrow.array(values, arrow.list_(arrow.float32()))})


def read(batches: Iterator[arrow.RecordBatch]) -> arrow.Table:
    return arrow.Table.from_batches(batches)


def test_a_table_is_scored_as_its_rows_are_by_the_version(judge: ModelVersion) -> None:
    table = features(70)
    found = read(score(table, judge, Asked(coverage=0.9), batch_rows=32))
    assert found.select(["id", "x"]).equals(table)
    assert found.schema.equals(scored_schema(table.schema, *_of(judge, Asked(coverage=0.9))), check_metadata=True)
    answer = judge.predict(rows(70)).answer
    np.testing.assert_allclose(np.array(found["dubito_probabilities"].to_pylist()), answer.probabilities, rtol=1e-6)
    assert set(found["dubito_status"].to_pylist()) == {"OK"}


def _of(version: ModelVersion, asked: Asked) -> tuple[Described, Asked]:
    return LocalScorer(version, asked).described, asked


def test_the_same_comes_of_a_table_its_batches_and_its_file(judge: ModelVersion, tmp_path: Path) -> None:
    table = features(50)
    path = tmp_path / "table.parquet"
    parquet.write_table(table, path, row_group_size=7)
    expected = read(score(table, judge, batch_rows=20))
    for source in (path, str(path), str(tmp_path), str(tmp_path / "*.parquet"), iter(table.to_batches(20))):
        found = read(score(source, judge, batch_rows=20))
        assert found.equals(expected)
    [batch] = table.to_batches()
    sizes = [each.num_rows for each in score(batch, judge, batch_rows=20)]
    assert sizes == [20, 20, 10]


def test_scoring_twice_gives_the_same_bytes(judge: ModelVersion) -> None:
    def bytes_of() -> bytes:
        sink = arrow.BufferOutputStream()
        parquet.write_table(read(score(features(60), judge, Asked(tolerance=0.02), batch_rows=16)), sink)
        return sink.getvalue().to_pybytes()

    assert bytes_of() == bytes_of()


def test_rows_of_different_lengths_come_back_in_their_places() -> None:
    values = [[float(row)] * (row % 4 + 1) for row in range(23)]
    seen: list[tuple[int, ...]] = []
    found = read(score(lists(values), Sums(hook=seen.append), batch_rows=10))
    assert found["id"].to_pylist() == list(range(23))
    assert found["dubito_mean"].to_pylist() == [sum(row) for row in values]
    assert {shape[1] for shape in seen} == {1, 2, 3, 4}


def test_bad_rows_are_null_with_a_status_and_their_neighbours_are_answered() -> None:
    values = [[1.0, 2.0], None, [3.0, 4.0], [float("nan"), 1.0], [5.0]]
    found = read(score(lists(values), Sums())).to_pylist()
    assert [row["dubito_status"] for row in found] == ["OK", "INVALID", "OK", "INVALID", "OK"]
    assert [row["dubito_mean"] for row in found] == [3.0, None, 7.0, None, 5.0]
    assert found[0]["dubito_problem"] is None
    for row in (1, 3):
        assert "x" in found[row]["dubito_problem"]
        assert found[row]["dubito_draws"] is None


class Growing(nn.Module):
    """A regression whose numbers soon leave what a float can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.exp(x)))


@pytest.mark.parametrize("asked", [Asked(), Asked(draws=1000, tolerance=1e-3)])
def test_rows_without_a_finite_answer_are_bad_ones_beside_good_ones(asked: Asked, tmp_path: Path) -> None:
    where = {"repository": tmp_path, "name": "growing"}
    version = pack(Growing(), torch.from_numpy(rows(4)), task="regression", head="mean", noise_variance=[0.1], **where)
    version.calibrate(rows(200), rows(200)[:, 0])
    table = features(9).to_pylist()
    for row in (2, 5):
        table[row]["x"] = [1000.0] * WIDTH
    found = read(score(lists([row["x"] for row in table]), version, asked)).to_pylist()
    alone = LocalScorer(version, asked).score({"x": rows(9)})["mean"][:, 0]
    for number, row in enumerate(found):
        if number in (2, 5):
            assert row["dubito_status"] == "INVALID"
            assert row["dubito_problem"] == "the network's answer: got NaN or infinity; accepted: finite numbers"
            assert row["dubito_mean"] is row["dubito_draws"] is row["dubito_interval_lower"] is None
        else:
            assert row["dubito_status"] == "OK"
            assert row["dubito_mean"] == pytest.approx(alone[number], rel=1e-5)


def test_a_block_without_any_finite_answer_has_problems_alone() -> None:
    class Nothing(Sums):
        def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {**super().score(inputs), "mean": np.full((len(inputs["x"]), 1), np.inf)}

    found = read(score(lists([[1.0, 2.0]] * 3), Nothing())).to_pylist()
    assert [row["dubito_status"] for row in found] == ["INVALID"] * 3
    assert [row["dubito_mean"] for row in found] == [None] * 3


def test_rows_of_a_length_that_the_model_does_not_take_are_bad_ones() -> None:
    def least(shape: tuple[int, ...]) -> None:
        if shape[1] < 2:
            raise refused("inputs['x'].shape", f"length = {shape[1]}", "at least 2")

    found = read(score(lists([[1.0, 1.0], [1.0], [2.0, 2.0], [3.0]]), Sums(hook=least))).to_pylist()
    assert [row["dubito_status"] for row in found] == ["OK", "INVALID", "OK", "INVALID"]
    assert found[1]["dubito_problem"] == "inputs['x'].shape: got length = 1; accepted: at least 2"


def test_what_a_model_refuses_for_another_reason_ends_the_scoring() -> None:
    def refuse(shape: tuple[int, ...]) -> None:
        raise refused("coverage", 0.9, "none")

    with pytest.raises(InvalidArgument, match="coverage"):
        read(score(lists([[1.0]]), Sums(hook=refuse)))


def test_a_tables_lengths_meet_the_versions_own(packed: Callable[[str], ModelVersion]) -> None:
    chance = np.random.default_rng(0)
    series = [chance.normal(size=(length, 16)).astype(np.float32) for length in (5, 7, 5, 6, 7)]
    cells = arrow.array([each.tolist() for each in series], arrow.list_(arrow.list_(arrow.float32())))
    version = packed("encoder")
    found = read(score(arrow.table({"series": cells}), version))
    for row, each in enumerate(series):
        alone = version.predict(each[None]).answer.probabilities[0]
        np.testing.assert_allclose(found["dubito_probabilities"][row].as_py(), alone, atol=1e-6)


def test_columns_are_found_as_asked(judge: ModelVersion) -> None:
    x = rows(12)
    table = arrow.table({f"f{place}": x[:, place] for place in range(WIDTH)})
    found = read(score(table, judge, columns={"x": ["f*"]}))
    assert found["dubito_label"].to_pylist() == judge.predict(x).answer.label.tolist()
    with pytest.raises(InvalidArgument):
        read(score(table, judge))


def test_batches_in_which_a_column_is_missing_later_are_refused() -> None:
    batches = [*lists([[1.0]]).to_batches(), *arrow.table({"id": [1]}).to_batches()]
    found = score(iter(batches), Sums(threads=1))
    with pytest.raises(InvalidArgument, match="x"):
        list(found)


def test_blocks_come_in_order_however_long_each_takes() -> None:
    first_may_go = threading.Event()

    def hold(shape: tuple[int, ...]) -> None:
        if shape[0] == 3:
            assert first_may_go.wait(60)
        else:
            first_may_go.set()

    batches = [lists([[float(size)]] * size).to_batches()[0] for size in (3, 2, 1)]
    assert [batch.num_rows for batch in score(iter(batches), Sums(hook=hold))] == [3, 2, 1]


def test_few_blocks_are_read_ahead_of_who_takes_them() -> None:
    taken = 0

    def endless() -> Iterator[arrow.RecordBatch]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield lists([[float(number)]]).to_batches()[0]

    found = score(endless(), Sums(threads=2))
    for number in range(10):
        assert next(found)["dubito_mean"].to_pylist() == [float(number)]
        assert taken - number <= 5
    found.close()


def test_leaving_early_leaves_no_thread() -> None:
    before = threading.active_count()
    found = score(lists([[1.0]] * 50), Sums(), batch_rows=1)
    next(found)
    found.close()
    assert threading.active_count() == before


def test_nothing_in_is_nothing_out() -> None:
    assert list(score(iter(()), Sums())) == []
    assert sum(batch.num_rows for batch in score(lists([]), Sums())) == 0


def test_an_answer_of_too_few_rows_is_an_error() -> None:
    class Short(Sums):
        def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {name: values[:-1] for name, values in super().score(inputs).items()}

    with pytest.raises((ProtocolError, arrow.ArrowException, ValueError)):
        read(score(lists([[1.0], [2.0]]), Short()))


def test_a_block_is_scored_by_itself() -> None:
    [block] = lists([[1.0, 2.0], None]).to_batches()
    found = score_block(block, map_columns(DESCRIBED.inputs, block.schema), Sums())
    assert found["dubito_mean"].to_pylist() == [3.0, None]


def test_a_scorer_knows_what_is_asked_and_takes_nothing_else() -> None:
    scorer = Sums(asked=Asked(draws=16))
    assert open_scorer(scorer) is scorer
    assert open_scorer(scorer, Asked(draws=16)) is scorer
    with pytest.raises(InvalidArgument, match="a scorer, which knows"):
        score(lists([[1.0]]), scorer, Asked(draws=32))
    with pytest.raises(InvalidArgument, match="batch_rows"):
        score(lists([[1.0]]), scorer, batch_rows=0)


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("float32", (None, 16), 8192),
        ("float32", (None, 3, 224, 224), 32),
        ("uint8", (None, 3, 224, 224), 128),
        ("int64", (None, None), 8192),
        ("float64", (None, None, 64), 128),
        ("float32", (None, 4096, 4096), 1),
        ("float32", (None,), 8192),
    ],
)
def test_a_block_holds_a_power_of_two_rows_whose_inputs_take_at_most_32_mib(
    dtype: str, shape: tuple[int | None, ...], expected: int
) -> None:
    assert choose_batch_rows([InputSignature("x", dtype, shape)]) == expected


def test_columns_that_no_input_reads_count_too() -> None:
    inputs = [InputSignature("x", "float32", (None, 16))]
    assert choose_batch_rows(inputs, 4096) == 8192
    assert choose_batch_rows(inputs, 20_000) == 1024
    assert choose_batch_rows(inputs, 1 << 30) == 1


def test_a_file_of_wide_rows_is_scored_in_blocks_of_fewer(tmp_path: Path) -> None:
    notes = arrow.array(["x" * 20_000] * 1500)
    parquet.write_table(lists([[1.0]] * 1500).append_column("note", notes), tmp_path / "table.parquet")
    assert [batch.num_rows for batch in score(tmp_path / "table.parquet", Sums())] == [1024, 476]


@pytest.mark.parametrize(
    ("source", "given"),
    [
        (5, "a int"),
        (None, "a NoneType"),
        (pandas.DataFrame({"x": [[1.0]]}), "a DataFrame of str"),
        ([lists([[1.0]])], "a list of Table"),
    ],
)
def test_what_is_no_table_is_refused(source: Any, given: str) -> None:
    with pytest.raises(InvalidArgument, match=f"source: got {given}; accepted: a path, a glob or a URL, or what Arrow"):
        list(score(source, Sums()))
