"""The ledger: what an output folder says of the job that fills it, so that only the same job goes on there.

It is written before the first part, and changes only where a file of the input did of which there is none. The
summary, written after the last part, says that the job is complete. Both names begin with an underscore: what reads a
folder of Parquet files passes over them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dubito_batch.answers import Described
from dubito_batch.parts import Folder, Place
from dubito_batch.sources import InputFile
from dubito_client.errors import InvalidArgument, refused

LEDGER, SUMMARY = "_dubito_job.json", "_dubito_summary.json"
FORMAT = 1
PROCESSOR = "processor"  # among the passes: what machines of one cluster may differ in


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Everything that the bytes of the parts hang on."""

    model: str
    version: int
    checksums: Mapping[str, str]
    calibration: str | None
    asked: Mapping[str, Any]  # of the draws, as JSON has it
    columns: Mapping[str, tuple[str, ...]]  # by the input that they feed
    batch_rows: int
    files: tuple[InputFile, ...]
    passes: Mapping[str, Any]  # what rounding hangs on, beside all that; nothing by a server
    software: Mapping[str, str]  # versions by name
    table: Mapping[str, str]  # types of its columns, by name

    def encode(self) -> bytes:
        """Return it as it is written."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()


def describe_job(
    described: Described,
    asked: Mapping[str, Any],
    columns: Mapping[str, tuple[str, ...]],
    batch_rows: int,
    files: tuple[InputFile, ...],
    passes: Mapping[str, Any],
    software: Mapping[str, str],
    table: Mapping[str, str],
) -> Ledger:
    """Return the ledger of a job, with everything as JSON has it, so that it equals what is read back."""
    return _read(
        Ledger(
            model=described.model,
            version=described.version,
            checksums=dict(described.checksums),
            calibration=described.calibration_id,
            asked=asked,
            columns=columns,
            batch_rows=batch_rows,
            files=files,
            passes=passes,
            software=software,
            table=table,
        ).encode()
    )


def read_ledger(folder: Folder) -> Ledger | None:
    """Read the ledger of a folder; None where there is none. `InvalidArgument` where it cannot be understood."""
    if LEDGER not in folder.names():
        return None
    try:
        return _read(folder.read(LEDGER))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        given = f"{folder.root} with a {LEDGER} that this release cannot read"
        raise refused("output", given, f"what dubito score writes in format {FORMAT}") from error


def _read(content: bytes) -> Ledger:
    said = json.loads(content)
    if said.pop("format") != FORMAT:
        raise ValueError(FORMAT)
    files = tuple(InputFile(**file) for file in said.pop("files"))
    columns = {name: tuple(names) for name, names in said.pop("columns").items()}
    return Ledger(files=files, columns=columns, **said)


def check_output(folder: Folder, resume: bool) -> Ledger | None:
    """Return the ledger of the job that is to go on in a folder, None for a new one.

    Raises `InvalidArgument` where there is a job and `resume` is not asked, or anything else in the folder.
    """
    found = read_ledger(folder)
    if found is None:
        foreign = folder.foreign()
        if foreign:
            raise refused("output", f"{folder.root}, which holds {_some(foreign)}", "an empty folder, or a new one")
    elif not resume:
        given = f"{folder.root}, where a job of {found.model} version {found.version} was begun"
        raise refused("output", given, "another folder, or --resume to go on with that job")
    return found


def check_same(was: Ledger, now: Ledger, begun: Container[int]) -> None:
    """Raise `InvalidArgument` where a job is not the one that was begun: by name, what it was and what it is now.

    `begun`: numbers of the files of which there are parts; the others may have changed.
    """
    difference = next(_differences(was, now, begun), None)
    if difference is not None:
        raise difference


def _differences(was: Ledger, now: Ledger, begun: Container[int]) -> Iterator[InvalidArgument]:
    """List what differs, what a caller chose first."""
    for name in ("model", "version"):
        yield from _of(name, getattr(was, name), getattr(now, name))
    yield from _of_checksums(was, now)
    yield from _of("calibration", was.calibration or "none", now.calibration or "none")
    for name in {**was.asked, **now.asked}:
        yield from _of(name, was.asked.get(name), now.asked.get(name))
    for name in {**was.columns, **now.columns}:
        yield from _of(f"columns of {name}", _listed(was.columns.get(name)), _listed(now.columns.get(name)))
    yield from _of("batch_rows", was.batch_rows, now.batch_rows)
    yield from _of_files(was, now, begun)
    for name in {**was.table, **now.table}:
        yield from _of(f"column {name}", was.table.get(name, "none"), now.table.get(name, "none"))
    if bool(was.passes) != bool(now.passes):
        here, there = "--repository, by which", "--server, by which"
        given, accepted = ("--server", here) if was.passes else ("--repository", there)
        yield refused("model", f"that of {given}", f"that of {accepted} the job in this output was begun")
    for before, after in ((was.passes, now.passes), (was.software, now.software)):
        for name in {**before, **after}:
            yield from _of(name, before.get(name), after.get(name), "; go on where it is so, or anew to another output")


def _of(name: str, was: Any, now: Any, advice: str = "") -> Iterator[InvalidArgument]:
    if was != now:
        yield refused(name, _shown(now), f"{_shown(was)}, with which the job in this output was begun{advice}")


def _of_checksums(was: Ledger, now: Ledger) -> Iterator[InvalidArgument]:
    """A version that was packed anew under its number."""
    for name in {**was.checksums, **now.checksums}:
        if was.checksums.get(name) != now.checksums.get(name):
            given = f"{now.model} version {now.version} with another {name} than the job was begun with"
            yield refused("version", given, f"the {name} of checksum {was.checksums.get(name, 'none')[:16]}")


def _of_files(was: Ledger, now: Ledger, begun: Container[int]) -> Iterator[InvalidArgument]:
    before, after = ({file.url: file for file in each.files} for each in (was, now))
    accepted = "the input as it was when the job was begun"
    for number, (url, file) in enumerate(before.items()):
        if url not in after:
            yield refused("input", f"{url} no more", accepted)
        elif after[url] != file and number in begun:
            size = f", {file.size} bytes then and {after[url].size} now" if after[url].size != file.size else ""
            yield refused("input", f"{url} changed{size}", f"{accepted}; {anew(number)}")
    for url in after.keys() - before.keys():
        yield refused("input", f"{url}, which is new", accepted)
    if [*before] != [*after]:
        yield refused("input", "its files in another order", accepted)


def anew(file: int) -> str:
    """Say how the file of this number is scored once more, as it is now."""
    return f"without its parts ({Place(file, 0).stem}-*.parquet), --resume scores the file as it is now"


def _listed(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else ", ".join(names)


def _shown(value: Any) -> str:
    """Return a setting as a person reads it; a rule is several, of which None is left out."""
    if isinstance(value, dict):
        return " ".join(f"{name} {_shown(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return "the model's own" if value is None else str(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
