"""The serving benchmark: its document, how its peers are set up, and that nobody is timed whose answers are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import serving  # noqa: E402
import serving_table  # noqa: E402
from serving_peers import BETTER, PEERS, Tuning, make_environment, neighbours, read_tuning, search  # noqa: E402
from serving_peers.callers import Session  # noqa: E402
from serving_peers.networks import build, weights  # noqa: E402
from serving_peers.processes import CallFailed, running, standing_still  # noqa: E402
from serving_peers.subject import Subject, describe, drop_out, read  # noqa: E402
from serving_peers.targets import ECHO, INDEPENDENT, OURS, judge_bare, judge_beside  # noqa: E402

PEER = PEERS["mlserver"]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "serving.json"
    serving.main(["--networks", "mlp", "--seconds", "0.2", "--rounds", "1", "--out", str(path)])
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def test_the_document_holds_each_call_at_each_number_of_callers(document: Mapping[str, Any]) -> None:
    [compared] = document["beside others"]
    cells = [(cell["call"], cell["server"], cell["callers"], cell.get("draws")) for cell in compared["cells"]]
    assert sorted(cells, key=str) == sorted(
        [("Predict", OURS, callers, 40) for callers in (1, 16, 64)]
        + [("Predict", INDEPENDENT, callers, 32) for callers in (1, 16, 64)]
        + [("Evaluate", OURS, callers, None) for callers in (1, 16, 64)],
        key=str,
    )
    for cell in compared["cells"] + document["bare"]["cells"]:
        assert cell["requests per second"] > 0
        assert cell["p50 milliseconds"] <= cell["p99 milliseconds"]
        assert cell["server processor milliseconds per request"] >= 0


def test_the_bare_server_is_asked_and_answers_by_the_bytes_of_ours(document: Mapping[str, Any]) -> None:
    bare = document["bare"]
    assert bare["bytes of a request"] > 64 * 4
    assert bare["bytes of a reply"] > 10 * 8
    assert {cell["server"] for cell in bare["cells"] if cell["network"] == ECHO} == {
        "grpc.aio, bytes", "grpc.aio, messages", "Predict", "PredictBulk",
    }  # fmt: skip


def test_the_document_says_on_what_and_how_far_the_targets_are(document: Mapping[str, Any]) -> None:
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["torch"] == torch.__version__
    assert len(document["targets, at 64 callers"]) == 4
    for target in document["targets, at 64 callers"]:
        assert target.keys() == {"what", "found", "aimed at", "reached"}


def cell(name: str, rate: float, call: str, network: str = "mlp") -> dict[str, Any]:
    found: dict[str, Any] = {"network": network, "callers": 64, "server": name, "requests per second": rate}
    return {**found, "call": call} if call else found


def test_predict_is_judged_beside_the_best_peer_and_evaluate_beside_each_by_its_own_target() -> None:
    rates = {OURS: 900.0, INDEPENDENT: 1000.0, "mlserver": 100.0, "litserve": 300.0, "pytriton": 200.0}
    cells = [cell(name, rate, "Predict") for name, rate in rates.items()]
    rates = {OURS: 150.0, "mlserver": 100.0, "litserve": 100.0, "pytriton": 400.0}
    cells += [cell(name, rate, "Evaluate") for name, rate in rates.items()]
    found = judge_beside(cells, ["mlserver", "litserve", "pytriton"], "mlp", 64)
    assert [(target["found"], target["aimed at"], target["reached"]) for target in found] == [
        (3.0, 3.0, True), (3.33, 3.0, True), (1.5, 2.0, False), (1.5, 1.0, True),
    ]  # fmt: skip
    assert "litserve, the best" in found[0]["what"]


def test_the_bare_cost_is_judged_at_the_most_callers_alone() -> None:
    rates = {"grpc.aio, bytes": 1000.0, "grpc.aio, messages": 800.0, "Predict": 500.0, "PredictBulk": 1500.0}
    cells = [cell(name, rate, "", ECHO) for name, rate in rates.items()]
    cells += [cell(name, rate, "") for name, rate in rates.items()]
    cells += [{**each, "callers": 1, "requests per second": 1.0} for each in cells]
    assert [target["found"] for target in judge_bare(cells, 64)] == [0.5, 0.62, 3.0, 3.0]


def test_a_search_keeps_what_answers_clearly_more_and_tries_nothing_twice() -> None:
    asked: list[Tuning] = []

    def rate(tuning: Tuning) -> float:
        asked.append(tuning)
        return 100.0 * (1.5 if tuning.threads == 2 else 1.0) * (BETTER - 0.01 if tuning.workers == 1 else 1.0)

    best, rates = search(PEER, rate)
    assert best == replace(PEER.start, threads=2)
    assert len(asked) == len(set(asked)) == len(rates)
    assert {replace(best, delay=delay) for delay in PEER.tries["delay"]} <= set(asked)


def test_settings_that_are_tried_differ_in_one_thing() -> None:
    best = replace(PEER.start, delay=PEER.tries["delay"][0])
    found = neighbours(PEER, best, "delay")
    assert PEER.start in found
    assert best not in found
    assert {replace(each, delay=0.0) for each in found} == {replace(best, delay=0.0)}


def test_a_setting_comes_from_what_was_found_best_else_from_the_start(tmp_path: Path) -> None:
    path, best = tmp_path / "tuning.json", {"workers": 1, "threads": 2, "batch": 32, "delay": 0.001}
    assert read_tuning(path, "mlp", PEER, "Predict") == PEER.start
    path.write_text(json.dumps({"tunings": {"mlp": {PEER.name: {"Predict": {"best": best, "tried": []}}}}}))
    assert read_tuning(path, "mlp", PEER, "Predict") == Tuning(1, 2, 32, 0.001)
    assert read_tuning(path, "mlp", PEER, "Evaluate") == PEER.start


def test_an_adapter_reads_the_subject_that_it_was_given(tmp_path: Path) -> None:
    subject = Subject(tmp_path, "cnn", "Predict", 32, 8000, PEER.start)
    assert read(describe(subject)) == subject


def test_only_dropout_draws() -> None:
    network = drop_out(build("cnn"))
    drawing = {type(module).__name__ for module in network.modules() if module.training}
    assert drawing == {"Dropout", "Dropout2d"}


def test_the_usual_way_is_the_mean_of_so_many_passes(tmp_path: Path, threads: None) -> None:
    """By one generator: the rows, S times over, in one pass, are what S passes of a row each are by its own masks."""
    torch.save(build("mlp").state_dict(), weights(tmp_path, "mlp"))
    rows = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    answer = Subject(tmp_path, "mlp", "Predict", 32, 0, PEER.start).answer()
    torch.manual_seed(1)
    given = answer(rows)
    network = drop_out(build("mlp"))
    torch.manual_seed(1)
    with torch.inference_mode():
        repeated = network(torch.tensor(np.repeat(rows, 32, 0))).softmax(-1).numpy()
    np.testing.assert_allclose(given, [repeated[:32].mean(0), repeated[32:].mean(0)], atol=1e-6)
    evaluated = Subject(tmp_path, "mlp", "Evaluate", 32, 0, PEER.start).answer()(rows)
    np.testing.assert_allclose(evaluated, serving.evaluated("mlp", rows)[0], atol=1e-6)


class Answering:
    """Callers that have the same answers to everything."""

    def __init__(self, answers: np.ndarray[Any, Any]) -> None:
        self.answers = answers

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {"answers": self.answers[: job["rows"]].tolist()}


@pytest.mark.parametrize("call", ["Predict", "Evaluate"])
def test_a_server_whose_answers_are_wrong_is_not_timed(call: Any) -> None:
    rows = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
    right = serving.drawn("mlp", rows, 200)[0] if call == "Predict" else serving.evaluated("mlp", rows)[0]
    server = psutil.Process()
    serving.check(serving.Contender("peer", Answering(right), server, {}), call, "mlp", rows)  # type: ignore[arg-type]
    wrong = serving.Contender("peer", Answering(right[::-1]), server, {})  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="peer answers"):
        serving.check(wrong, call, "mlp", rows)


def test_a_server_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    with running([sys.executable, "-c", f"{child}; print(p.pid, flush=True); time.sleep(99)"], tmp_path, "s") as server:
        while not (tmp_path / "s.log").read_text().endswith("\n"):
            time.sleep(0.01)
        left = int((tmp_path / "s.log").read_text())
        assert psutil.pid_exists(left)
    assert not server.is_running()
    assert not psutil.pid_exists(left)


def test_a_server_stands_still_while_others_are_asked_and_goes_on_after(tmp_path: Path) -> None:
    with running([sys.executable, "-c", "import time; time.sleep(99)"], tmp_path, "s") as server:
        with standing_still([server]):
            while server.status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
        while server.status() == psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert server.is_running()


def test_a_server_that_does_not_start_is_not_waited_for(tmp_path: Path) -> None:
    class Refused:
        def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
            raise CallFailed("refused")

    with running([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, "s") as server:
        server.wait(30)
        contender = serving.Contender("s", Refused(), server, {})  # type: ignore[arg-type]
        with pytest.raises(CallFailed):
            serving.await_answers(contender, 1)


def test_answers_count_that_come_in_time_whenever_they_were_asked() -> None:
    now = time.perf_counter()
    session = Session(now - 1, now + 1000)
    assert session.note(now - 5)
    assert session.seconds[0] >= 5
    early = Session(now + 1000, now + 2000)
    assert early.note(now)
    assert not early.seconds
    late = Session(now - 10, now - 5)
    assert not late.note(now - 6)
    assert not late.seconds


def test_an_environment_is_made_once_for_the_same_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[Any]] = []

    def run(command: list[Any], **how: Any) -> None:
        commands.append(command)
        (tmp_path / PEER.name).mkdir(exist_ok=True)

    monkeypatch.setattr(subprocess, "run", run)
    assert make_environment(PEER, tmp_path) == tmp_path / PEER.name / "bin" / "python"
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert {"mlserver", "torch"} <= set(commands[1])
    make_environment(PEER, tmp_path)
    assert len(commands) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--networks", "rnn"], "--networks: got rnn; accepted: mlp, cnn"),
        (["--peers", "torchserve"], "--peers: got torchserve; accepted: mlserver, litserve, pytriton"),
        (["--tune"], "--tune: needs --peers-venv"),
    ],
)
def test_a_wrong_flag_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serving.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_tables_have_a_line_for_each_cell_and_target(document: Mapping[str, Any]) -> None:
    servers = {(cell["call"], cell["server"]) for cell in document["beside others"][0]["cells"]} - {
        ("Predict", INDEPENDENT)
    }
    assert len(list(serving_table.beside(document))) == 2 + len(servers)
    assert len(list(serving_table.aims(document))) == 2 + len(document["targets, at 64 callers"])
