"""`program.pt2`: an exported graph as bytes, and the only way back, which executes nothing that the bytes say.

`torch.export.load` unpickles where an archive asks for it, evaluates symbolic expressions as Python, and resolves
operator names by attribute look-up. So the archive's own tables are read first, and whatever is not a plain graph
of ATen operators over plain tensors is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from dubito_models.errors import CorruptVersion
from dubito_models.export import EXPORTING
from dubito_models.rewriting import find_source

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
    r"|models/[\w-]+\.json|data/sample_inputs/[\w-]+\.pt"
    r"|data/weights/(?:weight_\d+|[\w-]+_weights_config\.json)"
    r"|data/constants/(?:tensor_\d+|[\w-]+_constants_config\.json)"
)
_TARGETS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.dubito\.recurrent\.default"
    r"|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_\w+"
)
_FORBIDDEN_TARGETS = re.compile(
    r"torch\.ops\.aten\.(?:from_file|save|load|_import\w*)\b|_operator\.(?:\w*call\w*|attrgetter)"
)
_FUNCTIONS = {
    "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt",
    "IntTrueDiv", "FloatTrueDiv", "ToFloat", "PowByNatural", "FloatPow", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "And", "Or", "Not", "Identity", "Where", "Add", "Mul", "Pow", "Integer", "Rational", "Float", "Symbol",
    "OpaqueUnaryFn_sqrt", "VR", "ValueRanges", "int_oo", "oo", "true", "false", "True", "False",
}  # fmt: skip
_SYMBOL = re.compile(r"[suz]f?\d+")
_MAX_UNPACKED = 16 << 30


def write_program(exported: ExportedProgram) -> bytes:
    """Serialise an exported graph, without its example inputs and with source paths cut to `file:line`."""
    for node in exported.graph.nodes:
        place = find_source(node)
        if node.meta.get("stack_trace"):
            name, _, line = place.rpartition(":")
            node.meta["stack_trace"] = f'File "{name}", line {line}' if name else ""
    exported.example_inputs = None
    buffer = io.BytesIO()
    with EXPORTING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, buffer)
    return buffer.getvalue()


def read_program(data: bytes) -> ExportedProgram:
    """Check an archive's tables and load it; `CorruptVersion` says what it holds that must not be loaded."""
    check_archive(data)
    try:
        with EXPORTING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(data))
    except Exception as error:  # whatever a broken graph makes torch raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CorruptVersion(f"program.pt2: torch.export cannot load it ({first})") from error


def check_archive(data: bytes) -> None:
    """Refuse an archive that is more than a graph of ATen operators over plain tensors."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise CorruptVersion("program.pt2: not an archive of torch.export") from None
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise CorruptVersion("program.pt2: holds a name twice")
    if sum(info.file_size for info in archive.infolist()) > _MAX_UNPACKED:
        raise CorruptVersion(f"program.pt2: unpacks to more than {_MAX_UNPACKED} bytes")
    roots = {name.split("/", 1)[0] for name in names}
    if len(roots) != 1:
        raise CorruptVersion(f"program.pt2: has {len(roots)} top folders; accepted: 1")
    for name in names:
        inner = name.split("/", 1)[-1]
        if not _MEMBERS.fullmatch(inner):
            raise CorruptVersion(f"program.pt2: holds {inner!r}, which a graph archive does not")
        if inner.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:
            raise CorruptVersion(f"program.pt2: {inner} holds example inputs, which are a pickle")
        if inner.endswith(".json"):
            _check_table(_read_member(archive, name), inner)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise CorruptVersion(f"program.pt2: {name} cannot be unpacked ({error})") from None


def _check_table(data: bytes, name: str) -> None:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptVersion(f"program.pt2: {name} is not JSON") from None
    for key, value in _entries(table):
        if key == "use_pickle" and value is not False:
            raise CorruptVersion(f"program.pt2: {name} asks for a pickle to be loaded")
        if key in {"as_custom_obj", "as_opaque", "as_graph"} and value is not None:
            raise CorruptVersion(f"program.pt2: {name} holds a custom object or a graph within the graph")
        if key == "expr_str" and isinstance(value, str):
            _check_expression(value, name)
        if key in {"target", "as_operator"} and isinstance(value, str):
            _check_target(value, name)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    todo = [value]
    while todo:
        current = todo.pop()
        if isinstance(current, dict):
            yield from current.items()
            todo.extend(current.values())
        elif isinstance(current, list):
            todo.extend(current)


def _check_target(target: str, name: str) -> None:
    if not target.startswith(("torch", "_operator", "math", "#", "builtins")):
        return  # the name of a weight
    if not _TARGETS.fullmatch(target) or _FORBIDDEN_TARGETS.match(target):
        raise CorruptVersion(f"program.pt2: {name} calls {target!r}; accepted: ATen operators, our own, and arithmetic")


def _check_expression(text: str, name: str) -> None:
    """A symbolic size may hold numbers, arithmetic, symbols and the functions of torch's own shapes, nothing else."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CorruptVersion(f"program.pt2: {name} holds the size {text!r}") from None
    if not all(_is_plain(node) for node in ast.walk(tree)):
        raise CorruptVersion(f"program.pt2: {name} holds the size {text!r}")


_PLAIN = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load, ast.keyword, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=function):
            return isinstance(function, ast.Name)
        case ast.Name(id=name):
            return name in _FUNCTIONS or bool(_SYMBOL.fullmatch(name))
        case ast.Constant(value=str() as text):
            return bool(_SYMBOL.fullmatch(text))
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
        case ast.BinOp(op=ast.Pow(), right=right):
            return _is_small(right)
    return isinstance(node, _PLAIN)


def _is_small(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int) and inner.value <= 8
