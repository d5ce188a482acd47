"""Laws of the command line: every format in, a table or one document out, one line and a telling code on failure."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pyarrow as arrow
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from dubito_client import command
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

from .fakes import LOGITS_ROWS, B, Fake, abort, describe, regress

ROWS = np.arange(B * 64, dtype=np.float64).reshape(B, 64)


def run(fake: Fake, source: Path, *options: str) -> Result:
    return CliRunner().invoke(
        command.main, ["predict", "digits", "--server", fake.target, "--input", str(source), *options]
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


def write_rows(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind.removeprefix('list.').removeprefix('named.')}"
    match kind:
        case "npy":
            np.save(path, ROWS.reshape(B, 8, 8))
        case "npz":
            np.savez(path, ROWS)
        case "csv":
            np.savetxt(path, ROWS, delimiter=",", header=",".join(f"p{i}" for i in range(64)), comments="")
        case "parquet":
            parquet.write_table(arrow.table({f"p{i}": ROWS[:, i] for i in range(64)}), path)
        case "list.parquet":
            parquet.write_table(arrow.table({"anything": ROWS.tolist()}), path)
        case "json":
            path.write_text(json.dumps(ROWS.tolist()))
        case "named.json":
            path.write_text(json.dumps({"image": ROWS.reshape(B, 1, 8, 8).tolist()}))
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "parquet", "list.parquet", "json", "named.json"])
def test_every_format_arrives_in_the_models_shape_and_type(fake: Fake, tmp_path: Path, kind: str) -> None:
    result = run(fake, write_rows(tmp_path, kind))
    assert result.exit_code == 0, result.output
    tensor = fake.predictions[0].inputs[0]
    assert tensor.name == "image"
    np.testing.assert_array_equal(tensors.decode(tensor), ROWS.reshape(B, 1, 8, 8).astype(np.float32))


def test_several_inputs_arrive_by_their_names(fake: Fake, tmp_path: Path) -> None:
    signature = [
        pb.TensorSignature(name="tokens", dtype=pb.DATA_TYPE_INT64, shape=[-1, -1]),
        pb.TensorSignature(name="mask", dtype=pb.DATA_TYPE_BOOL, shape=[-1, -1]),
    ]
    fake.model = describe(inputs=signature)
    np.savez(tmp_path / "rows.npz", tokens=np.ones((B, 4)), mask=np.ones((B, 4), int))
    assert run(fake, tmp_path / "rows.npz").exit_code == 0
    given = {tensor.name: tensors.decode(tensor).dtype for tensor in fake.predictions[0].inputs}
    assert given == {"tokens": np.int64, "mask": np.bool_}


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "npy"])
def test_a_table_arrives_by_its_column_names(fake: Fake, tmp_path: Path, kind: str) -> None:
    columns = [
        pb.Column(name="area", kind=pb.COLUMN_KIND_NUMBER, allow_nan=True),
        pb.Column(name="city", kind=pb.COLUMN_KIND_CATEGORY, categories=["Bern", "Rome"]),
    ]
    signature = pb.TensorSignature(name="x", dtype=pb.DATA_TYPE_FLOAT32, shape=[-1, 2], columns=columns)
    fake.model = describe(inputs=[signature])
    path = tmp_path / f"rows.{kind}"
    table = {"price": [1.0, 2.0, 3.0], "city": ["Rome", "Oslo", "Bern"], "area": [80.5, None, 60.0]}
    match kind:
        case "csv":
            path.write_text("price,city,area\n1,Rome,80.5\n2,Oslo,\n3, Bern ,60\n")
        case "parquet":
            parquet.write_table(arrow.table(table), path)
        case "json":
            path.write_text(json.dumps(table))
        case "npy":
            np.save(path, [[80.5, 2], [np.nan, 0], [60, 1]])
    result = run(fake, path)
    assert result.exit_code == 0, result.output
    [tensor] = fake.predictions[0].inputs
    np.testing.assert_array_equal(tensors.decode(tensor), np.float32([[80.5, 2], [np.nan, 0], [60, 1]]))


def test_a_table_without_a_column_ends_with_one_line_and_code_2(fake: Fake, tmp_path: Path) -> None:
    column = pb.Column(name="area", kind=pb.COLUMN_KIND_NUMBER)
    fake.model = describe(inputs=[pb.TensorSignature(name="x", shape=[-1, 1], columns=[column])])
    (tmp_path / "rows.csv").write_text("price,Area\n1,2\n")
    one_line(run(fake, tmp_path / "rows.csv"), 2, "inputs.x.area: got the columns price, Area, of which none")


def test_options_reach_the_request_and_the_described_version_is_the_one_asked(fake: Fake, rows: Path) -> None:
    options = [
        "--stop",
        "threshold",
        "--target",
        "0.5",
        "--of",
        "predictive_entropy",
        "--draws",
        "32",
        "--seed",
        "5",
        "--design",
        "independent",
        "--masks-by",
        "row",
        "--coverage",
        "0.9",
        "--interval-level",
        "0.8",
    ]
    assert run(fake, rows, *options).exit_code == 0
    request = fake.predictions[0]
    stopping = pb.Stopping(
        rule=pb.STOPPING_RULE_THRESHOLD, quantity=pb.STOPPING_QUANTITY_PREDICTIVE_ENTROPY, target=0.5
    )
    scheme = pb.SamplingSpec(seed=5, design=pb.DESIGN_INDEPENDENT, mask_scope=pb.MASK_SCOPE_ROW)
    sampling = pb.SamplingSpec(max_draws=32, stopping=stopping, interval_level=0.8)
    sampling.MergeFrom(scheme)
    assert (request.version, request.sampling, request.output.coverage) == (3, sampling, 0.9)
    assert len(fake.descriptions) == 2  # the newest, then the version that it was


def test_a_person_reads_labels_with_their_classes_and_how_they_were_made(fake: Fake, rows: Path) -> None:
    fake.prediction.warnings.append("fewer draws than calibrated")
    out = run(fake, rows).output
    first = next(line for line in out.splitlines() if line.startswith("  0"))
    assert first.split() == ["0", "0", "cat", "0.900", "0.3250", "0.0250", "0.3000", "64"]
    assert "seed 7" in out
    assert "calibration 9f3a (exact)" in out
    assert "warning: fewer draws than calibrated" in out


def test_many_rows_are_cut_openly(fake: Fake, rows: Path) -> None:
    n = 60
    answer = pb.Regression(mean=tensors.encode(np.ones((n, 1))))
    fake.prediction = regress(draws=tensors.encode(np.full(n, 64)), stop_reason=[], standard_error=None)
    fake.prediction.regression.CopyFrom(answer)
    assert "... and 10 more; --all shows them" in run(fake, rows).output
    assert "more;" not in run(fake, rows, "--all").output


def test_a_program_reads_one_document(fake: Fake, rows: Path) -> None:
    document = json.loads(run(fake, rows, "--json").output)
    assert document["probabilities"] == LOGITS_ROWS.tolist()
    assert document["mean"] is None
    assert document["class_names"] == ["cat", "dog"]


def test_the_standard_path_is_asked_for_by_name(fake: Fake, rows: Path) -> None:
    fake.evaluation.label.CopyFrom(tensors.encode(np.array([0, 1, 1])))
    fake.evaluation.probabilities.CopyFrom(tensors.encode(LOGITS_ROWS))
    out = run(fake, rows, "--standard").output
    assert "standard path" in out
    assert "1 dog" in out
    assert not fake.predictions


@pytest.mark.parametrize("name", ["answer.json", "answer.npz"])
def test_the_whole_answer_goes_to_a_file(fake: Fake, rows: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert run(fake, rows, "--output", str(target)).exit_code == 0
    if name.endswith("json"):
        assert json.loads(target.read_text())["probabilities"] == LOGITS_ROWS.tolist()
    else:
        with np.load(target) as archive:
            np.testing.assert_array_equal(archive["probabilities"], LOGITS_ROWS)


def test_a_model_is_loaded_and_unloaded(fake: Fake) -> None:
    def run(verb: click.Command, *arguments: str) -> str:
        result = CliRunner().invoke(verb, ["digits", "--server", fake.target, *arguments])
        assert result.exit_code == 0
        return result.output

    assert run(command.load) == "digits version 3 is ready.\n"
    assert run(command.unload) == "digits is unloaded.\n"
    assert run(command.unload, "--version", "3") == "digits version 3 is unloaded.\n"
    failed = CliRunner().invoke(command.load, ["digits", "--version", "9", "--server", fake.target])
    one_line(failed, 1, "digits version 9 failed to load: checksum")


def test_models_are_listed(fake: Fake) -> None:
    result = CliRunner().invoke(command.models, ["--server", fake.target])
    assert result.exit_code == 0
    assert "digits" in result.output
    assert "checksum" in result.output
    document = json.loads(CliRunner().invoke(command.models, ["--server", fake.target, "--json"]).output)
    assert [(status["model"], status["state"]) for status in document] == [("digits", "ready"), ("old", "failed")]


def one_line(result: Result, code: int, text: str) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert text in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_bad_input_ends_with_one_line_and_code_2(fake: Fake, rows: Path, tmp_path: Path) -> None:
    one_line(run(fake, tmp_path / "absent.npy"), 2, "No such file")
    one_line(run(fake, rows, "--draws", "-1"), 2, "draws: got -1; accepted: 0 to")
    one_line(run(fake, rows, "--level", "0.9"), 2, "level: got 0.9; accepted: this only with --stop")
    one_line(run(fake, rows, "--output", "answer.txt"), 2, ".json or .npz")
    one_line(run(fake, rows, "--output", str(tmp_path / "no" / "answer.json")), 2, "cannot be written")
    fake.model = describe(inputs=[pb.TensorSignature(name="a"), pb.TensorSignature(name="b")])
    one_line(run(fake, rows), 2, "a mapping with the names a, b")
    unknown = ["predict", "faces", "--server", fake.target, "--input", str(rows)]
    one_line(CliRunner().invoke(command.main, unknown), 2, "model: got faces; accepted: digits")


def test_a_failing_server_ends_with_one_line_and_code_1(fake: Fake, rows: Path) -> None:
    fake.script = [lambda context: abort(context, grpc.StatusCode.INTERNAL, "line one\nline two")]
    one_line(run(fake, rows), 1, "line one line two")
    nobody = ["predict", "digits", "--server", "127.0.0.1:1", "--input", str(rows), "--timeout", "2"]
    one_line(CliRunner().invoke(command.main, nobody), 1, "refused")
    one_line(CliRunner().invoke(command.models, ["--server", "127.0.0.1:1", "--timeout", "2"]), 1, "refused")


def entries(*names: str, module: str) -> Any:
    return lambda group: [EntryPoint(name, f"{module}:{name}", group) for name in names]


@pytest.mark.parametrize(("name", "extra"), [("train", "train"), ("serve", "server")])
def test_a_command_whose_packages_are_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setattr(command, "entry_points", entries(name, module="a_package_that_is_absent"))
    result = CliRunner().invoke(command.main, [name])
    one_line(result, 2, f"dubito {name} needs more than the client: pip install 'dubito[{extra}]'")


def test_a_command_that_imports_while_it_runs_says_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "import click\n@click.command()\ndef train():\n    import a_package_that_is_absent\n"
    (tmp_path / "trains_lazily.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "entry_points", entries("train", module="trains_lazily"))
    one_line(CliRunner().invoke(command.main, ["train"]), 2, "pip install 'dubito[train]'")


def test_help_lists_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "entry_points", entries("train", "serve", "own", module="a_package_that_is_absent"))
    out = CliRunner().invoke(command.main, ["--help"]).output
    assert all(name in out for name in ("train", "serve", "own", "Train, calibrate"))


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(command.main, ["predit"])
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_parquet_without_pyarrow_says_what_to_install(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    one_line(run(fake, path), 2, "pip install 'dubito[parquet]'")


def test_help_is_there_without_torch_or_the_server() -> None:
    program = (
        "import sys; sys.argv = ['dubito', '--help']\n"
        "from dubito_client.command import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'dubito_models', 'dubito_service', 'rich', 'pyarrow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert "predict" in done.stdout
