"""Callers of all kinds at once, from another process over real sockets: the short form of what `make soak` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dubito_service.scheduling.admission import crowded_out

from .calling import Outcome, Refused
from .load import TIMED, Tally
from .questions import question
from .replay import Answered
from .serving import serving
from .versions import make_repository

Phases = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    """What the load's phases said; the server was alive at its end."""
    folder = tmp_path_factory.mktemp("loaded")
    repository = make_repository(folder / "repository")
    with serving(repository, folder, "--state", str(folder / "state")) as server:
        command = [sys.executable, "-m", "reliability.load", server.address, "--callers", "32", "--warm", "1"]
        command += ["--measure", "1", "--steady", "2", "--overload", "2", "--replay", "300"]
        tests = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=tests, check=True, capture_output=True, text=True, timeout=240)
        assert server.process.poll() is None
    return {said["phase"]: said for said in map(json.loads, done.stdout.splitlines())}


def test_at_a_share_of_its_capacity_every_kind_of_call_is_answered(phases: Phases) -> None:
    steady = phases["steady"]
    assert steady["refused"] == {}, steady["said"]
    assert steady["answers"] > 0
    assert len(steady["milliseconds"]) >= 5  # of six kinds; the rarest may not have had its turn


def test_beside_them_wrong_requests_are_refused_and_others_leave_or_are_killed(phases: Phases) -> None:
    trouble = phases["trouble"]
    assert min(trouble["invalid"], trouble["left"], trouble["killed"]) >= 1
    assert trouble["wrong"] == []


def test_at_a_multiple_of_its_capacity_it_answers_in_time_or_says_when_to_come_back(phases: Phases) -> None:
    overload = phases["overload"]
    assert set(overload["refused"]) <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}, overload["said"]
    assert overload["answers"] > 0
    assert overload["refusals_without_advice"] == 0
    assert overload["recovery_seconds"] is not None
    assert overload["timed_answers"] > 0
    assert overload["late_share"] <= 0.2, overload["milliseconds"]
    assert overload["expired_share"] <= 0.3
    assert overload["refusal_milliseconds"].get("p50", 0.0) <= 500 * overload["deadline"]


def test_a_late_answer_is_seen_where_its_caller_waits_longer_and_who_was_overtaken_was_not_refused_at_once() -> None:
    tally, numbers = Tally(keep=0), iter(range(10**6))
    asked = next(each for each in map(question, numbers) if each.kind == TIMED)
    found = Answered(asked.requests[0], {}, version=1)
    for seconds in (0.5, 1.0, 1.5):
        tally.note(asked, Outcome((found,), seconds=seconds), deadline=1.0)
    assert (tally.timed, tally.late) == (3, 1)
    for message in (str(crowded_out(0.2)), "the queue is full: 1.1 s of work are due before this request"):
        tally.note(asked, Outcome(refused=(Refused("RESOURCE_EXHAUSTED", message, 1.0),), seconds=0.2), deadline=1.0)
    assert (tally.overtaken, tally.refusals) == ([0.2], [0.2])


def test_every_answer_under_load_is_the_one_that_is_given_alone(phases: Phases) -> None:
    replayed = phases["replay"]
    assert replayed["compared"] == 300
    assert (replayed["differing"], replayed["stopped_otherwise"]) == (0, 0), replayed["first"]
