"""`dubito bench`: what it shows, one JSON document, rows of one's own from files, and every refusal in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from dubito_models.bench_command import CORES, MOST, MOST_WORK, bench, describe, read_rows
from dubito_models.benching import Calibrated, Drawing
from dubito_models.errors import InvalidArgument
from dubito_models.manifest import ColumnEntry, InputSignature
from dubito_models.package import ModelVersion
from dubito_models.sampling import Estimator
from dubito_models.stopping import ALL_DRAWS, Stopping, StoppingRule
from dubito_models.tables import read_table
from dubito_service.settings import Settings
from houses import pack_houses, write_houses
from networks import sample

Packed = Callable[[str], ModelVersion]


def run(version: ModelVersion, *arguments: str) -> Result:
    """Run the command briefly, and small."""
    given = ("--rows", "2,1", "--draws", "20,40", "--seconds", "0.1", "--repository", str(version.folder.parent.parent))
    return CliRunner().invoke(bench, [version.name, *given, *arguments], env={"COLUMNS": "80"})


def refused(result: Result) -> str:
    """Return the one line that was said on stderr, after checking that it is one."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_made_up_rows_say_so(packed: Packed) -> None:
    """Times, shares and how draws are run, within 80 columns; that no draws needed are told, and why."""
    result = run(packed("mlp"))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mlp version 1, classification; ")
    assert lines[0].endswith(" made-up rows")
    assert max(map(len, lines)) <= 80
    for said in (
        "balanced, in groups of 10, at 2 of 2 dropout sites",
        "Time of a request",
        "A single pass",
        "Draws needed: not told, as the errors of made-up rows say little of yours",
        "- A request of 1 row takes about",
    ):
        assert said in result.stdout
    assert "standard error" not in result.stdout


def test_rows_of_ones_own_tell_the_draws_needed(packed: Packed, tmp_path: Path) -> None:
    """Arrays with other names are passed over; numbers are cast and shaped as the version has them."""
    rows = sample("cnn", 12)["images"].double().numpy()
    np.savez(tmp_path / "mine.npz", images=rows.reshape(12, 64), labels=np.arange(12))
    result = run(packed("cnn"), "--data", str(tmp_path / "mine.npz"))
    assert result.exit_code == 0, result.output
    assert "rows of mine.npz" in result.stdout
    assert "Draws needed (measured from " in result.stdout
    assert " draws of 12 rows)" in result.stdout
    assert "made-up" not in result.stdout
    assert "a standard error of 0.01 on nine rows of ten" in " ".join(result.stdout.split())


def test_json_is_one_document(packed: Packed, tmp_path: Path) -> None:
    """Standard output holds the document alone; --threads is what was measured with, and lasts no longer."""
    before = torch.get_num_threads()
    np.save(tmp_path / "mine.npy", sample("mlp", 12)["input"].numpy())
    result = run(packed("mlp"), "--json", "--threads", "1", "--data", str(tmp_path / "mine.npy"))
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["model"], said["threads"], said["data"]) == ("mlp", 1, str(tmp_path / "mine.npy"))
    assert [(speed["rows"], speed["draws"]) for speed in said["speeds"]] == [(1, 20), (1, 40), (2, 20), (2, 40)]
    assert said["needs"]["rows"] == 12
    assert isinstance(said["recommendation"], str)
    assert torch.get_num_threads() == before


def test_it_needs_nothing_that_training_needs() -> None:
    """The extra `models` is enough."""
    wanted = "{'sklearn', 'pandas', 'matplotlib', 'statsmodels', 'pyarrow'}"
    program = f"import sys, dubito_models.bench_command; sys.exit(len({wanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


DRAWING = Drawing("vmapped", {1: 8}, "bfloat16", "mixed", 10, 3, 2, 2_500_000, False, 1, False, None)

PLAIN = Calibrated("identity", {}, ALL_DRAWS, Estimator.PLAIN, False)
RULE = Stopping(StoppingRule.TOLERANCE, target=0.01)


@pytest.mark.parametrize(
    ("drawing", "said"),
    [
        (
            DRAWING,
            {
                "draws": "many to a pass, by vmap, bfloat16",
                "design": "mixed, in groups of 10, at 2 of 3 dropout sites",
                "masks": "made anew, being too large to keep: 2.5 MB for 40 draws",
                "calibration": "none",
            },
        ),
        (replace(DRAWING, design="independent", way="looped"), {"design": "independent",
                                                                "draws": "one to a pass, in a loop, bfloat16"}),
        (replace(DRAWING, fan_out=4), {"last site": "4 masks for each draw of the others"}),
        (replace(DRAWING, fan_out=8, integrated=True), {"last site": "integrated in closed form"}),
        (replace(DRAWING, calibration=PLAIN), {"calibration": "none, because none helped"}),
        (replace(DRAWING, calibration=replace(PLAIN, method="isotonic")), {"calibration": "isotonic"}),
        (replace(DRAWING, calibration=replace(PLAIN, method="temperature", parameters={"temperature": 0.45})),
         {"calibration": "temperature 0.45"}),
        (
            replace(DRAWING, calibration=Calibrated("noise_scale", {"factor": 1.25}, RULE, Estimator.PLAIN, True)),
            {
                "calibration": "noise scale, factor 1.25",
                "rule": "tolerance of mean at 0.01, at most 40 draws; not applied here, where all draws are made",
                "estimator": "variance with control variates",
            },
        ),
        (replace(DRAWING, calibration=replace(PLAIN, estimator=Estimator.LINEARIZED)), {"estimator": "linearized"}),
        (replace(DRAWING, keeps_masks=True, mask_bytes=900), {"masks": "of the default seed kept: 900 bytes for 40 "
                                                                       "draws"}),
    ],
)  # fmt: skip
def test_how_draws_are_run_in_words(drawing: Drawing, said: dict[str, str]) -> None:
    words = describe(drawing, 40)
    assert {name: words[name] for name in said} == said
    assert ("last site" in words) == (drawing.fan_out > 1)
    assert ("rule" in words, "estimator" in words) == ("rule" in said, "estimator" in said)


# --- Files ---


def entry(name: str = "x", row: tuple[int | None, ...] = (2, 3), dtype: str = "float32") -> InputSignature:
    shape = (None, *row)
    return InputSignature.model_validate(
        {"name": name, "dtype": dtype, "shape": shape, "example_shape": (4, *(1 for _ in row)), "low": 0, "high": 1}
    )


def test_a_file_fits_the_signature(tmp_path: Path) -> None:
    """Flat rows get their shape, numbers their type; a single array of an archive needs no name."""
    flat = np.arange(24.0).reshape(4, 6)
    np.save(tmp_path / "a.npy", flat)
    np.savez(tmp_path / "a.npz", flat)
    np.savetxt(tmp_path / "a.csv", flat, delimiter=";")
    np.savetxt(tmp_path / "headed.csv", flat, delimiter=",", header="a,b,c,d,e,f", comments="")
    for name in ("a.npy", "a.npz", "a.csv", "headed.csv"):
        for dtype in ("float32", "int64"):
            found = read_rows(tmp_path / name, [entry(dtype=dtype)])["x"]
            assert (found.dtype.name, found.shape) == (dtype, (4, 2, 3))
            np.testing.assert_array_equal(found.reshape(4, 6), flat)


def test_what_does_not_fit_is_left_to_the_signature(tmp_path: Path) -> None:
    """Fractions are no whole numbers, and rows of another length are not cut."""
    np.savez(tmp_path / "a.npz", x=np.full((2, 6), 0.5), other=np.zeros((2, 5), np.float32))
    found = read_rows(tmp_path / "a.npz", [entry(dtype="int64"), entry("other")])
    assert found["x"].dtype.name == "float64"
    assert found["other"].shape == (2, 5)


def test_a_table_is_read_as_training_reads_it(tmp_path: Path) -> None:
    """Numbers with gaps, texts, true and false: the same numbers as `read_table` makes, columns in any order."""
    path = write_houses(tmp_path / "houses.csv")
    version = pack_houses(tmp_path / "repository", path)
    np.testing.assert_array_equal(
        read_rows(path, version.manifest.inputs)["inputs"], read_table(path, target="price").inputs
    )
    result = run(version, "--data", str(path))
    assert result.exit_code == 0, result.output
    assert "median epistemic standard deviation" in " ".join(result.stdout.split())


def test_a_category_that_was_never_seen_has_code_0(tmp_path: Path) -> None:
    columns = (ColumnEntry(name="city", kind="category", categories=("Oslo", "Rome")),)
    table = entry("t", (1,)).model_copy(update={"columns": columns})
    (tmp_path / "a.csv").write_text("n,city\n1, Rome\n2,Oslo\n3,Bern\n4,\n")
    assert read_rows(tmp_path / "a.csv", [table])["t"].ravel().tolist() == [2.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.npy", None, "(No such file or directory); accepted: a file that can be read"),
        ("a.txt", b"1", "accepted: a file that ends in .npz, .npy, .csv"),
        ("a.npy", b"1,2,3", "accepted: arrays as numpy saves them"),
        ("a.npz", b"", "accepted: arrays as numpy saves them"),
        ("a.csv", b"", "without a row; accepted: at least one row"),
        ("a.csv", b"a,b\n", "without a row; accepted: at least one row"),
        ("a.csv", b"1,2\n1,2,3\n", "with 3 cells in line 2; accepted: 2"),
        ("a.csv", b"1,2\n1,x\n", "'x' in line 2; accepted: numbers"),
        ("a.csv", b"\xff\xfe\x00", "accepted: a comma-separated table in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"^data: got ") as refusal:
        read_rows(tmp_path / name, [entry()])
    assert said in str(refusal.value)


def test_arrays_that_are_not_the_inputs(tmp_path: Path) -> None:
    """Missing names, several inputs in a file of one, an archive by an array's name and the reverse, and pickles."""
    np.savez(tmp_path / "a.npz", x=np.zeros(3), z=np.zeros(3))
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "array.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    (tmp_path / "archive.npy").write_bytes((tmp_path / "a.npz").read_bytes())
    for name, signature, said in (
        ("a.npz", [entry("x"), entry("y")], "arrays named x, z; accepted: arrays named x, y"),
        ("a.npy", [entry("x"), entry("y")], "accepted: an .npz file with arrays named x, y"),
        ("pickle.npy", [entry()], "without pickles"),
        ("array.npz", [entry()], "which holds a single array"),
        ("archive.npy", [entry()], "which holds an archive"),
    ):
        with pytest.raises(InvalidArgument, match=r"^data: got ") as refusal:
            read_rows(tmp_path / name, signature)
        assert said in str(refusal.value)


def test_a_table_without_a_column_is_refused_by_its_name(tmp_path: Path) -> None:
    columns = (ColumnEntry(name="area", kind="number"), ColumnEntry(name="rooms", kind="number"))
    table = entry("t", (2,)).model_copy(update={"columns": columns})
    (tmp_path / "a.csv").write_text("area,price\n1,2\n")
    with pytest.raises(InvalidArgument, match=r"without a column 'rooms'; accepted: columns area, rooms"):
        read_rows(tmp_path / "a.csv", [table])
    (tmp_path / "a.csv").write_text("area,rooms\n1,many\n")
    with pytest.raises(InvalidArgument, match=r"'many' in column 'rooms', line 2; accepted: numbers"):
        read_rows(tmp_path / "a.csv", [table])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rows", "1,x"), "rows: got '1,x'; accepted: whole numbers of 1 to 10000, with commas between"),
        (("--draws", "0"), "draws: got '0'; accepted: whole numbers of 1 to 10000"),
        (("--draws", ""), "draws: got ''"),
        (("--rows", "10001"), "rows: got '10001'"),
        (("--rows", "1,10000", "--draws", "20,101"), "rows x draws: got 10000 x 101; accepted: at most 1000000"),
        (("--seconds", "nan"), "seconds: got nan; accepted: a finite number > 0"),
        (("--seconds", "inf"), "seconds: got inf; accepted: a finite number > 0"),
        (("--version", "7"), "no mlp version 7 in "),
        (("--repository", "nowhere"), "repository: got nowhere; accepted: an existing folder"),
        (("--data", "none.npz"), "data: got none.npz (No such file or directory)"),
    ],
)
def test_a_refusal_is_one_line(packed: Packed, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(run(packed("mlp"), *arguments))


@pytest.mark.parametrize("threads", ["0", str(CORES + 1), "3000000000"])
def test_there_are_no_more_threads_than_cores(packed: Packed, threads: str) -> None:
    result = run(packed("mlp"), "--threads", threads)
    assert result.exit_code == 2
    assert f"{threads} is not in the range 1<=x<={CORES}." in result.stderr


def test_a_request_is_one_that_a_server_takes() -> None:
    limits = Settings(repository="repository")
    assert (limits.max_rows, limits.max_draws, limits.max_work) == (MOST, MOST, MOST_WORK)


def test_rows_that_the_version_refuses_are_one_line(packed: Packed, tmp_path: Path) -> None:
    """Before anything is timed, in the words that the version has for it."""
    version = packed("mlp")
    for rows, said in (
        (np.zeros((3, 5), np.float32), "inputs['input'].shape: got (3, 5); accepted: float32 of shape (rows, 6)"),
        (np.full((3, 6), np.nan), "inputs['input']: got nan at (0, 0); accepted: finite numbers"),
        (np.zeros((0, 6), np.float32), "inputs['input'].shape: got 0 rows; accepted: at least 1 row"),
        (np.array([["a"] * 6]), "inputs['input'].dtype: got str"),
    ):
        np.save(tmp_path / "a.npy", rows)
        assert said in refused(run(version, "--data", str(tmp_path / "a.npy")))
