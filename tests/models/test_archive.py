"""Law 9: a graph archive that carries a pickle, or anything that could run code, does not load."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dubito_models.archive import check_archive, read_program
from dubito_models.errors import CorruptVersion
from dubito_models.package import ModelVersion

Packed = Callable[[str], ModelVersion]


class Bomb:
    """Unpickling it leaves a mark on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rebuilt(data: bytes, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> bytes:
    """Write the archive again with some members changed (None: left out) or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = change(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(f"{root}/{name}", content)
    return out.getvalue()


@pytest.fixture
def good(packed: Packed) -> bytes:
    return (packed("mlp").folder / "program.pt2").read_bytes()


def test_a_packed_archive_is_accepted_and_holds_no_pickle(good: bytes) -> None:
    check_archive(good)
    read_program(rebuilt(good, lambda name, content: content))


def test_example_inputs_are_refused_before_they_are_unpickled(good: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(mark))
    data = rebuilt(good, lambda name, content: bomb if name.startswith("data/sample_inputs") else content)
    with pytest.raises(CorruptVersion, match="pickle"):
        read_program(data)
    assert not mark.exists()


@pytest.mark.parametrize("table", ["weights", "constants"])
def test_a_table_that_asks_for_a_pickle_is_refused(good: bytes, table: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    def change(name: str, content: bytes) -> bytes:
        if name.startswith("data/weights/weight_0"):
            return pickle.dumps(Bomb(mark))
        if name.endswith(f"_{table}_config.json"):
            config = json.loads(content)
            entry = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
            config["config"]["0.weight"] = entry
            return json.dumps(config).encode()
        return content

    with pytest.raises(CorruptVersion, match="pickle"):
        read_program(rebuilt(good, change))
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["data/constants/custom_obj_0", "data/aotinductor/m/x.so", "extra/code.py", "../../x", "data/weights/x.pt"]
)
def test_a_member_that_a_graph_does_not_have_is_refused(good: bytes, name: str) -> None:
    with pytest.raises(CorruptVersion, match="which a graph archive does not"):
        check_archive(rebuilt(good, lambda _, content: content, {name: b"x"}))


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.serialization.os.system",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "torch.ops.aten.from_file.default",
        "torch.ops.mylib.evil.default",
        "builtins.eval",
        "#evil:run",
    ],
)
def test_a_graph_that_calls_anything_but_aten_operators_is_refused(good: bytes, target: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.startswith("models/"):
            return content.replace(b"torch.ops.aten.relu.default", target.encode())
        return content

    with pytest.raises(CorruptVersion, match="accepted: ATen operators"):
        check_archive(rebuilt(good, change))


@pytest.mark.parametrize(
    "size",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "exec('1')",
        "9**9**9",
        "[x for x in (1,)]",
        "lambda: 0",
        "s0 +",
        "Symbol('__import__')",
    ],
)
def test_a_size_that_is_more_than_arithmetic_is_refused(good: bytes, size: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        graph = json.loads(content)

        def put(value: Any) -> None:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                if key == "expr_str":
                    value[key] = size
                elif isinstance(inner, (dict, list)):
                    put(inner)

        put(graph)
        return json.dumps(graph).encode()

    with pytest.raises(CorruptVersion, match="holds the size"):
        check_archive(rebuilt(good, change))


def test_names_twice_and_two_roots_are_refused(good: bytes) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = rebuilt(good, lambda _, content: content, {"byteorder": b"little"})
    with pytest.raises(CorruptVersion, match="twice"):
        check_archive(twice)
    out = io.BytesIO(good)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("other/byteorder", b"little")
    with pytest.raises(CorruptVersion, match="top folders"):
        check_archive(out.getvalue())


@pytest.mark.parametrize("armed", [False, True])
def test_of_mutated_archives_most_are_refused_and_none_runs_what_it_carries(
    good: bytes, armed: bool, tmp_path: Path
) -> None:
    """Armed: its example inputs would leave a mark, were they unpickled where a mutation hides them from the check."""
    mark, generator = tmp_path / "executed", np.random.default_rng(0)
    bomb = pickle.dumps(Bomb(mark))
    if armed:
        good = rebuilt(good, lambda name, content: bomb if name.startswith("data/sample_inputs") else content)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 20):
            data[place] = generator.integers(0, 256)
        try:
            read_program(bytes(data))
        except CorruptVersion:
            refused += 1
    assert refused >= 290
    assert not mark.exists()


def test_rubbish_is_not_an_archive() -> None:
    for data in (b"", b"PK", b"not a zip at all" * 100):
        with pytest.raises(CorruptVersion):
            check_archive(data)
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    with pytest.raises(CorruptVersion):
        check_archive(buffer.getvalue())
