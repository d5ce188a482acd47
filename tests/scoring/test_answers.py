"""The columns that scoring adds: what they are called, what they hold, and where they are null."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest
from pyarrow import parquet

from dubito_batch.answers import (
    PREFIX,
    Asked,
    Described,
    Scored,
    assemble,
    check_asked,
    concatenate,
    result_schema,
    scored_schema,
    to_columns,
)
from dubito_client.errors import InvalidArgument, ProtocolError
from dubito_client.stopping import Stopping

K = 3
CLASSIFIER = Described(
    model="judge",
    version=1,
    task="classification",
    head="logits",
    outputs=K,
    class_names=("cat", "dog", "owl"),
    inputs=(),
    checksums={},
    calibration_id="c1",
    covers=True,
    abstains=True,
)
TARGETS = replace(CLASSIFIER, task="regression", head="mean", outputs=2, class_names=(), abstains=False)
TARGET = replace(TARGETS, outputs=1)
EVERYTHING = Asked(coverage=0.9, quantiles=(0.1, 0.5, 0.9))
KINDS = {"classes": (CLASSIFIER, Asked(coverage=0.9)), "targets": (TARGETS, EVERYTHING), "target": (TARGET, EVERYTHING)}


def answers(described: Described, rows: int, asked: Asked, seed: int = 0) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    per_output = chance.random((rows, described.outputs))
    found: dict[str, np.ndarray] = {
        "draws": np.arange(rows) + 8,
        "stop_reason": np.where(np.arange(rows) % 2, "tolerance", "max_draws").astype(object),
        "standard_error": per_output / 10,
    }
    if described.classifies:
        probabilities = per_output / per_output.sum(1, keepdims=True)
        for name in ("predictive_entropy", "expected_entropy", "mutual_information", "margin"):
            found[name] = chance.random(rows)
        found |= {"probabilities": probabilities, "label": probabilities.argmax(1), "abstain": per_output[:, 0] > 0.5}
        found |= {"standard_deviation": per_output / 5, "prediction_set": probabilities > 0.3}
        return found
    for name in ("mean", "total_variance", "epistemic_variance", "aleatoric_variance"):
        found[name] = chance.random((rows, described.outputs))
    for name in ("interval", "prediction_interval"):
        found[name] = np.stack([per_output - 1, per_output + 1], -1)
    return found | {"quantiles": chance.random((rows, described.outputs, len(asked.quantiles)))}


def block(rows: int) -> arrow.RecordBatch:
    notes = arrow.array([f"row {row}" if row % 3 else None for row in range(rows)], arrow.string())
    return arrow.record_batch({"id": arrow.array(range(rows), arrow.int16()), "note": notes})


def whole(described: Described, asked: Asked, rows: int = 5) -> arrow.RecordBatch:
    scored = [Scored(np.arange(rows), answers(described, rows, asked))]
    return assemble(block(rows), scored, {}, described, asked)


def pick(values: Mapping[str, np.ndarray], rows: list[int]) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in values.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_scored_block_has_its_own_columns_and_then_those_of_the_schema(kind: str) -> None:
    found = whole(*KINDS[kind])
    assert found.schema.equals(scored_schema(block(5).schema, *KINDS[kind]), check_metadata=True)
    assert found.select(["id", "note"]).equals(block(5))
    added = result_schema(*KINDS[kind])
    assert found.schema.names == ["id", "note", *added.names]
    found.validate(full=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_added_column_is_named_after_the_project_and_says_what_it_is(kind: str) -> None:
    for field in result_schema(*KINDS[kind]):
        assert field.name.startswith(PREFIX)
        assert len(field.metadata[b"description"]) > 10


def test_classes_come_by_number_and_name_and_sets_by_numbers() -> None:
    values = answers(CLASSIFIER, 4, Asked(coverage=0.9))
    values["prediction_set"] = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    found = assemble(block(4), [Scored(np.arange(4), values)], {}, CLASSIFIER, Asked(coverage=0.9)).to_pydict()
    assert found["dubito_label"] == values["label"].tolist()
    assert found["dubito_class_name"] == [CLASSIFIER.class_names[label] for label in values["label"]]
    assert found["dubito_prediction_set"] == [[0, 2], [], [0, 1, 2], [1]]
    assert found["dubito_probabilities"] == values["probabilities"].tolist()
    assert found["dubito_stop_reason"] == ["max_draws", "tolerance"] * 2
    assert found["dubito_status"] == ["OK"] * 4
    assert found["dubito_problem"] == [None] * 4


def test_a_single_target_has_plain_numbers_and_several_have_lists() -> None:
    for described in (TARGET, TARGETS):
        values = answers(described, 3, EVERYTHING)
        found = assemble(block(3), [Scored(np.arange(3), values)], {}, described, EVERYTHING).to_pydict()
        expected = {
            "mean": values["mean"],
            "interval_lower": values["interval"][..., 0],
            "interval_upper": values["interval"][..., 1],
            "prediction_interval_upper": values["prediction_interval"][..., 1],
            "quantiles": values["quantiles"],
        }
        for name, numbers in expected.items():
            one = numbers.squeeze(1) if described.outputs == 1 else numbers
            assert found[PREFIX + name] == one.tolist()


def test_what_is_not_told_is_null_and_never_nan() -> None:
    values = answers(TARGETS, 3, EVERYTHING)
    del values["aleatoric_variance"], values["standard_error"]
    values["total_variance"][1] = math.nan
    values["mean"][2, 0] = math.nan
    values["quantiles"][0] = math.nan
    values["quantiles"][1, 1, 2] = math.nan
    found = assemble(block(3), [Scored(np.arange(3), values)], {}, TARGETS, EVERYTHING).to_pydict()
    assert found["dubito_aleatoric_variance"] == found["dubito_standard_error"] == [None] * 3
    assert found["dubito_total_variance"][1] is None
    assert found["dubito_total_variance"][0] == values["total_variance"][0].tolist()
    assert found["dubito_mean"][2] == [None, values["mean"][2, 1]]
    assert found["dubito_quantiles"][0] is None
    assert found["dubito_quantiles"][1][1][2] is None
    assert found["dubito_quantiles"][2] == values["quantiles"][2].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_is_null_but_for_status_and_problem_and_its_neighbours_are_unharmed(kind: str) -> None:
    described, asked = KINDS[kind]
    values = answers(described, 6, asked)
    good = [0, 2, 3, 5]
    problems = {1: "f3: got no value; accepted: finite numbers", 4: "f0: got 'x'; accepted: numbers"}
    found = assemble(block(6), [Scored(np.array(good), pick(values, good))], problems, described, asked)
    clean = assemble(block(6), [Scored(np.arange(6), values)], {}, described, asked)
    assert found.take(arrow.array(good)).equals(clean.take(arrow.array(good)))
    for row in found.take(arrow.array([1, 4])).to_pylist():
        told = {name: value for name, value in row.items() if name.startswith(PREFIX) and value is not None}
        assert told == {"dubito_status": "INVALID", "dubito_problem": problems[row["id"]]}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_several_groups_come_back_to_their_rows(kind: str) -> None:
    described, asked = KINDS[kind]
    values = answers(described, 6, asked)
    groups = [Scored(np.array(some), pick(values, some)) for some in ([1, 4], [0, 5], [2, 3])]
    found = assemble(block(6), groups, {}, described, asked)
    assert found.equals(assemble(block(6), [Scored(np.arange(6), values)], {}, described, asked))


def test_what_one_group_does_not_tell_is_null_in_its_rows_alone() -> None:
    values = answers(TARGET, 4, EVERYTHING)
    first = pick(values, [0, 2])
    del first["standard_error"], first["quantiles"]
    groups = [Scored(np.array([0, 2]), first), Scored(np.array([1, 3]), pick(values, [1, 3]))]
    found = assemble(block(4), groups, {}, TARGET, EVERYTHING).to_pydict()
    assert [value is None for value in found["dubito_standard_error"]] == [True, False, True, False]
    assert [value is None for value in found["dubito_quantiles"]] == [True, False, True, False]


def test_parts_of_an_answer_join_in_their_order() -> None:
    values = answers(TARGETS, 7, EVERYTHING)
    parts = [{name: array[start : start + 3] for name, array in values.items()} for start in range(0, 7, 3)]
    for name, array in concatenate(parts).items():
        np.testing.assert_array_equal(array, values[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_without_a_good_row_or_without_any_has_all_columns(kind: str) -> None:
    described, asked = KINDS[kind]
    schema = scored_schema(block(0).schema, described, asked)
    assert assemble(block(0), [], {}, described, asked).schema.equals(schema)
    bad = assemble(block(2), [], {0: "no", 1: "no"}, described, asked)
    assert bad.schema.equals(schema)
    assert bad["dubito_draws"].null_count == 2
    bad.validate(full=True)


def test_rows_without_an_answer_and_answers_without_a_row_are_an_error() -> None:
    values = answers(TARGET, 2, EVERYTHING)
    for rows, problems in (([0, 1], {}), ([0, 1], {1: "no", 2: "no"}), ([0, 0], {2: "no"})):
        with pytest.raises(ProtocolError, match="answers"):
            assemble(block(3), [Scored(np.array(rows), values)], problems, TARGET, EVERYTHING)


def test_a_reason_that_a_newer_server_names_comes_as_it_is() -> None:
    values = answers(TARGET, 2, EVERYTHING) | {"stop_reason": np.array(["unknown_9", "decision"], object)}
    columns = dict(
        zip(result_schema(TARGET, EVERYTHING).names[2:], to_columns(values, TARGET, EVERYTHING), strict=True)
    )
    assert columns["dubito_stop_reason"].to_pylist() == ["unknown_9", "decision"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_read_back_by_arrow_as_it_was_and_by_pandas_with_its_values(kind: str) -> None:
    described, asked = KINDS[kind]
    good = [0, 1, 3]
    scored = [Scored(np.array(good), pick(answers(described, 4, asked), good))]
    found = assemble(block(4), scored, {2: "f0: got no value; accepted: a number"}, described, asked)
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_batches([found]), sink)
    back = parquet.read_table(arrow.BufferReader(sink.getvalue()))
    assert back.schema.equals(found.schema)
    for field in found.schema:
        assert back[field.name].to_pylist() == found[field.name].to_pylist()
        if field.name.startswith(PREFIX):
            assert back.field(field.name).metadata[b"description"] == field.metadata[b"description"]
    frame = pandas.read_parquet(io.BytesIO(sink.getvalue()))
    assert frame["dubito_status"].tolist() == ["OK", "OK", "INVALID", "OK"]
    assert frame["dubito_draws"].isna().tolist() == [False, False, True, False]
    name = "dubito_probabilities" if described.classifies else "dubito_interval_lower"
    expected = found[name].to_pylist()
    for row in good:
        assert np.asarray(frame[name][row]).tolist() == expected[row]


def test_a_column_that_is_named_as_those_added_are_is_refused() -> None:
    schema = arrow.schema([("id", arrow.int64()), ("dubito_label", arrow.int64())])
    with pytest.raises(InvalidArgument, match=r"'dubito_label'.*do not begin with dubito_"):
        scored_schema(schema, TARGET, Asked())
    with pytest.raises(InvalidArgument, match="two columns 'id'"):
        scored_schema(arrow.schema([("id", arrow.int64()), ("id", arrow.int64())]), TARGET, Asked())


def test_a_tables_own_metadata_passes_through() -> None:
    schema = arrow.schema([arrow.field("id", arrow.int64(), metadata={"unit": "m"})], metadata={"made": "today"})
    found = scored_schema(schema, TARGET, Asked())
    assert found.metadata == {b"made": b"today"}
    assert found.field("id").metadata == {b"unit": b"m"}


@pytest.mark.parametrize(
    ("described", "asked", "field"),
    [
        (replace(CLASSIFIER, covers=False), Asked(coverage=0.9), "coverage"),
        (CLASSIFIER, Asked(quantiles=(0.5,)), "quantiles"),
        (CLASSIFIER, Asked(interval_level=0.5), "interval_level"),
    ],
)
def test_what_a_model_cannot_answer_is_refused_by_name(described: Described, asked: Asked, field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_asked(asked, described)
    assert refusal.value.field == field
    check_asked(Asked(draws=3), described)


def test_the_same_asked_in_other_words_is_the_same_document() -> None:
    short, long = Asked(tolerance=0.01, quantiles=(0.5,)), Asked(stopping=Stopping.tolerance(0.01), quantiles=(0.5,))
    assert short.document() == long.document()
    assert Asked().document() != short.document()
    documents: list[Any] = [Asked(**{name: value}).document() for name, value in (("draws", 8), ("min_draws", 8))]
    assert documents[0] != documents[1]
    with pytest.raises(InvalidArgument, match="not both"):
        Asked(tolerance=0.01, stopping=Stopping.decision())
