"""Rows whose truth is known: every way of giving them, and every refusal by what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from dubito_models.data import diabetes, digits
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.manifest import InputSignature, Manifest
from dubito_models.package import ModelVersion
from dubito_models.rows import read_labelled, read_rows
from dubito_models.tables import read_table, split_table
from houses import pack_houses, write_houses
from judged import line
from networks import sample

Packed = Callable[[str], ModelVersion]


def stub(version: ModelVersion, **changes: object) -> ModelVersion:
    """Return the version under a manifest that says otherwise of its outputs."""
    manifest = version.manifest.model_copy(update=changes)
    return ModelVersion(version.folder, manifest, version.engine, version.standard)


def digit_version(version: ModelVersion) -> ModelVersion:
    """Return a version that declares images of digits, ten classes of them."""
    entry = InputSignature(
        name="inputs", dtype="float32", shape=(None, 1, 8, 8), example_shape=(4, 1, 8, 8), low=0, high=1
    )
    return stub(version, inputs=(entry,), outputs=10)


# --- Archives ---


def test_an_archive_gives_inputs_by_name_and_their_labels(packed: Packed, tmp_path: Path) -> None:
    """Under `labels`, `targets` or the name that is asked for; a single input under any name; others unread."""
    version = packed("mlp")
    rows, labels = sample("mlp", 5)["input"].numpy(), np.array([0, 3, 1, 2, 0])
    strange = np.array([{}] * 5, dtype=object)
    np.savez(tmp_path / "a.npz", input=rows.astype(np.float64), labels=labels, strange=strange, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=rows, targets=labels.astype(np.float32))
    np.savez(tmp_path / "c.npz", x=rows, truth=labels.astype(np.uint8))
    for name, target in (("a", None), ("b", ()), ("c", "truth")):
        found = read_labelled(tmp_path / f"{name}.npz", version, target)
        np.testing.assert_array_equal(found.inputs["input"], rows)
        np.testing.assert_array_equal(found.targets, labels)
        assert (found.targets.dtype, found.overlap, found.part, len(found)) == (np.int64, 1, None, 5)


def test_classes_by_name_are_the_same_classes(packed: Packed, tmp_path: Path) -> None:
    """Names, as text or bytes, whatever zeros follow a point; numbers where texts are no names."""
    version = packed("mlp")
    rows = sample("mlp", 4)["input"].numpy()
    for names, said in (
        (("iris", "rose", "tulip", "weed"), np.array(["weed", " rose", "iris", "rose"])),
        (("iris", "rose", "tulip", "weed"), np.array([b"weed", b"rose", b"iris", b"rose"])),
        (("iris", "rose", "tulip", "weed"), np.array(["3", "1", "0", "1"])),
        (("10", "20", "30", "40"), np.array(["40.0", "20", "10", "20.0"])),
        (None, np.array(["3", "1", "0", "1"])),
    ):
        np.savez(tmp_path / "a.npz", input=rows, labels=said)
        found = read_labelled(tmp_path / "a.npz", stub(version, class_names=names))
        assert found.targets.tolist() == [3, 1, 0, 1]


def test_targets_of_a_regression_are_columns(tmp_path: Path) -> None:
    """(N, K), and (N,) where there is one."""
    version, _ = line(tmp_path)
    rows = np.zeros((4, 3), np.float32)
    np.savez(tmp_path / "a.npz", input=rows, targets=np.arange(8).reshape(4, 2))
    found = read_labelled(tmp_path / "a.npz", version)
    assert found.targets.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert found.targets.dtype == np.float64
    np.savez(tmp_path / "a.npz", input=rows, targets=np.arange(4.0))
    assert read_labelled(tmp_path / "a.npz", stub(version, outputs=1)).targets.shape == (4, 1)


# --- Tables ---


def test_a_table_of_training_gives_back_what_it_was_split_into(tmp_path: Path) -> None:
    """Inputs, targets and their order, for every part and seed: a version can be judged on its own test rows."""
    path = write_houses(tmp_path / "houses.csv")
    version = pack_houses(tmp_path / "repository", path)
    table = read_table(path, target="price")
    whole = read_labelled(path, version, "price")
    np.testing.assert_array_equal(whole.inputs["inputs"], table.inputs)
    np.testing.assert_allclose(whole.targets, table.targets, rtol=1e-7)
    for source, seed in ((":test", 0), (":train:0", 0), (":calibration:7", 7), (":validation", 0)):
        found = read_labelled(f"{path}{source}", version, ["price"])
        assert found.part == source.split(":")[1]
        split = getattr(split_table(table, seed), found.part)
        np.testing.assert_array_equal(found.inputs["inputs"], split.inputs)
        np.testing.assert_allclose(found.targets, split.targets, rtol=1e-7)


def test_classes_of_a_table_are_split_as_training_splits_them(tmp_path: Path) -> None:
    """Within every class, by the classes' own names, also where a column was left out for training."""
    path = write_houses(tmp_path / "houses.csv")
    with path.open() as file:
        header, *rows = csv.reader(file)
    wider = [[*header, "kind", "odd"], *([*row, "dear" if float(row[-1]) > 400 else "cheap", f"d{n}"]
                                         for n, row in enumerate(rows))]  # fmt: skip
    with (tmp_path / "wider.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(wider)
    version = pack_houses(tmp_path / "repository", path)
    table = read_table(tmp_path / "wider.csv", target="kind", drop=["price", "odd"])
    classes = stub(version, task=Task.CLASSIFICATION, outputs=2, class_names=table.class_names)
    found = read_labelled(f"{tmp_path / 'wider.csv'}:test", classes, "kind")
    split = split_table(table).test
    np.testing.assert_array_equal(found.targets, split.targets)
    np.testing.assert_array_equal(found.inputs["inputs"], split.inputs)


def test_parquet_says_what_text_says(tmp_path: Path) -> None:
    """Numbers, texts, truth values and gaps of either kind of file are the same rows."""
    path = write_houses(tmp_path / "houses.csv")
    version = pack_houses(tmp_path / "repository", path)
    with path.open() as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header[1:], list(zip(*rows, strict=True))[1:], strict=True))
    parsed = {
        "area": [None if text in ("", "NA", "?") else float(text) for text in columns["area"]],
        "rooms": arrow.array(map(int, columns["rooms"])),
        "city": arrow.array([text.strip() or None for text in columns["city"]]).dictionary_encode(),
        "garden": [text.lower() == "true" for text in columns["garden"]],
        "style": list(columns["style"]),
        "price": arrow.array(map(float, columns["price"])),
    }
    parquet.write_table(arrow.table(parsed), tmp_path / "houses.parquet")
    texts, found = (read_labelled(tmp_path / name, version, "price") for name in ("houses.csv", "houses.parquet"))
    np.testing.assert_array_equal(found.inputs["inputs"], texts.inputs["inputs"])
    np.testing.assert_array_equal(found.targets, texts.targets)
    unlabelled = read_rows(tmp_path / "houses.parquet", version.manifest.inputs)
    np.testing.assert_array_equal(unlabelled["inputs"], texts.inputs["inputs"])


def test_a_table_for_a_version_without_columns_loses_its_target_alone(tmp_path: Path) -> None:
    version, _ = line(tmp_path)
    (tmp_path / "a.csv").write_text("a,y1,b,c,y2\n1,10,2,3,20\n4,11,5,6,21\n")
    found = read_labelled(tmp_path / "a.csv", version, ("y1", "y2"))
    assert found.inputs["input"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.targets.tolist() == [[10, 20], [11, 21]]


# --- Data that ship ---


def test_shipped_data_come_in_their_parts(packed: Packed) -> None:
    """As training has them, by the seed of the split."""
    version = digit_version(packed("cnn"))
    for source, split in (
        ("digits:test", digits(0).test),
        ("digits:calibration:0", digits(0).calibration),
        ("digits:test:3", digits(3).test),
    ):
        found = read_labelled(source, version)
        np.testing.assert_array_equal(found.inputs["inputs"], split.inputs)
        np.testing.assert_array_equal(found.targets, split.targets)


def test_windows_of_a_series_say_that_they_overlap(tmp_path: Path) -> None:
    """Of the length that the version takes, as many steps ahead as it predicts."""
    version, _ = line(tmp_path)
    entry = InputSignature(name="x", dtype="float32", shape=(None, 12, 1), example_shape=(2, 12, 1), low=0, high=1)
    found = read_labelled("co2:test", stub(version, inputs=(entry,), outputs=6))
    assert (found.inputs["x"].shape[1:], found.targets.shape[1:], found.overlap) == ((12, 1), (6,), 6)


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _ = line(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.savez("plain.npz", input=np.zeros((2, 3), np.float32), targets=np.zeros((2, 2)))
    Path("plain.npz").rename("digits:test")
    with pytest.raises(InvalidArgument, match=r"got digits:test; accepted: a file that ends in"):
        read_labelled("digits:test", version)


# --- Refusals ---


def npz(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": np.zeros((3, 6), np.float32), **arrays}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (npz(), "with arrays named input; accepted: one array named labels or targets beside the inputs"),
        (npz(labels=np.zeros(3), targets=np.zeros(3)), "accepted: one array named labels or targets"),
        (npz(labels=np.zeros(2, int)), "targets: got 2 for 3 rows of 'input'; accepted: one for each row"),
        (npz(labels=np.array([0, 1, 4])), "classes 0 to 4; accepted: class numbers 0 to 3, or a, b, c, d"),
        (npz(labels=np.array([0, -1, 2])), "classes -1 to 2"),
        (npz(labels=np.array([0, 0.5, 2])), "dtype float64; accepted: class numbers 0 to 3"),
        (npz(labels=np.array([0, np.nan, 2])), "dtype float64; accepted: class numbers 0 to 3"),
        (npz(labels=np.array(["a", "e", "b"])), "'e'; accepted: class numbers 0 to 3, or a, b, c, d"),
        (npz(labels=np.zeros((3, 2), int)), "shape (3, 2); accepted: (rows,), one class a row"),
        (npz(labels=np.zeros(3, "datetime64[s]")), "dtype datetime64[s]"),
        ({"x": np.zeros((3, 6)), "z": np.zeros(3), "labels": np.zeros(3, int)}, "accepted: arrays named input"),
        ({"x": np.zeros((3, 5)), "labels": np.zeros(3, int)}, "inputs['input'].shape: got (3, 5)"),
    ],
)
def test_an_archive_that_does_not_do(packed: Packed, tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InvalidArgument) as refusal:
        read_labelled(tmp_path / "a.npz", stub(packed("mlp"), class_names=("a", "b", "c", "d")))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (np.zeros((3, 3)), "targets: got shape (3, 3); accepted: (3, 2)"),
        (np.full((3, 2), np.inf), "[inf, inf] in row 0; accepted: finite numbers"),
        (np.array(["1", "2", "3"]), "dtype <U1; accepted: numbers"),
    ],
)
def test_targets_that_do_not_do(tmp_path: Path, targets: np.ndarray, said: str) -> None:
    version, _ = line(tmp_path)
    np.savez(tmp_path / "a.npz", input=np.zeros((3, 3), np.float32), targets=targets)
    with pytest.raises(InvalidArgument) as refusal:
        read_labelled(tmp_path / "a.npz", version)
    assert said in str(refusal.value)


def test_a_table_that_does_not_do(packed: Packed, tmp_path: Path) -> None:
    """Without a target, with one that is no column, with gaps in it, and parts of what training did not split."""
    version, columns = stub(packed("mlp"), class_names=None), "a,b,c,d,e,f,y"
    (tmp_path / "a.csv").write_text(f"{columns}\n1,2,3,4,5,6,0\n1,2,3,4,5,6,?\n1,2,3,4,5,6, \n")
    for target, said in (
        (None, "target: got nothing; accepted: --target COLUMN"),
        (("y", "a"), "target: got y, a; accepted: --target COLUMN"),
        ("z", "target: got 'z'; accepted: a column of a.csv: a, b, c, d, e, f, y"),
        ("y", "target 'y': got no value in line 4; accepted: a value in every row"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            read_labelled(tmp_path / "a.csv", version, target)
        assert said in str(refusal.value)
    with pytest.raises(InvalidArgument, match="which training did not split"):
        read_labelled(f"{tmp_path / 'a.csv'}:test", version, "y")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a.npy", "which holds the truth beside the inputs; or digits:test, diabetes:test, co2:test"),
        ("digits", "accepted: a file that ends in .npz, .csv, .parquet"),
        ("digits:all", "accepted: a file that ends in .npz, .csv, .parquet"),
        ("none.npz", "none.npz (No such file or directory)"),
        ("diabetes:test", "diabetes, a regression; accepted: rows for a classification"),
    ],
)
def test_a_source_that_is_none(packed: Packed, source: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        read_labelled(source, packed("mlp"))
    assert said in str(refusal.value)


def test_shipped_numbers_fit_their_version(tmp_path: Path) -> None:
    version, _ = line(tmp_path)
    entry = InputSignature(name="x", dtype="float32", shape=(None, 10), example_shape=(2, 10), low=0, high=1)
    manifest: Manifest = version.manifest
    assert manifest.task is Task.REGRESSION
    found = read_labelled("diabetes:test", stub(version, inputs=(entry,), outputs=1))
    np.testing.assert_array_equal(found.inputs["x"], diabetes(0).test.inputs)
    np.testing.assert_array_equal(found.targets, diabetes(0).test.targets)
