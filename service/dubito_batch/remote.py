"""Scoring by a server, with many requests in flight.

A block goes as requests of a few hundred rows each. What a full or busy server refuses, or answers with fewer draws
than were asked, is asked again when it says, with fewer requests in flight; so is what a lost server has not answered.
Answers come from the version and the calibration of the beginning, or not at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from dubito_batch.answers import OPTIONAL_ARRAYS, Asked, Described, check_asked, concatenate
from dubito_client.answers import ModelInfo, Prediction
from dubito_client.client import Client
from dubito_client.errors import (
    Cancelled,
    DeadlineExceeded,
    DubitoClientError,
    InvalidArgument,
    Overloaded,
    ProtocolError,
    ServerError,
    Unavailable,
    refused,
)
from dubito_client.many import Outcome
from dubito_client.requests import Asked as Arguments

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
Answers: TypeAlias = dict[str, NDArray[Any]]

_ROWS = 512  # of a request, at most
_WORK = 20_000  # rows x draws of a request, so that a slow model answers soon; a server takes 1,000,000 by default
_RULED_WORK = 100_000  # likewise where a rule ends most rows early
_UNLIMITED_DRAWS = 16  # times the usual ones: so many a rule takes at most where nobody sets a limit
_BYTES = 4 << 20  # of a request's inputs and of its answer, each an eighth of what a message holds by default
_PAUSE, _LONGEST_PAUSE = 0.25, 5.0  # seconds until a server is asked again that does not say when; doubled each time
_HASTE = 4  # answers come so many times faster than patience ends, or no more requests are put in flight
_NO_RULE = ("none", "unspecified")
_PASSING = (Overloaded, Unavailable, DeadlineExceeded, Cancelled, ServerError)  # what may be otherwise later
_NO_FINITE_ANSWER = grpc.StatusCode.OUT_OF_RANGE  # to some rows of a request
_SHORT = {"deadline", "load"}  # reasons of an answer that has fewer draws than were asked


class RemoteScorer:
    """Answers rows by a server, under the version and the calibration that it had in the beginning."""

    threads = 2  # while one waits for answers, another has rows read and answers written

    def __init__(
        self,
        client: Client,
        model: str,
        asked: Asked | None = None,
        *,
        version: int | None = None,
        in_flight: int = 8,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:
        """Ask the server what the model is, and whether it can answer what is asked.

        `in_flight`: requests of a call of `score` that are under way at once, at most; `patience`: seconds without an
        answer after which the server is given up; `tell`: called once whenever it ceases to answer. Raises the errors
        of the client.
        """
        info = client.model(model, version=version)
        if info.state != "ready":
            raise refused("version", f"{info.version}, which is {info.state} {info.reason}".rstrip(), "one that serves")
        for each in info.inputs:
            if each.dtype == "unspecified":
                raise refused("model", f"{model}, whose input {each.name!r} is of an unknown type", "a newer client")
        self.described = describe(info)
        self.asked = asked or Asked()
        check_asked(self.asked, self.described)
        self.passes: Mapping[str, int | str] = {}
        self._client = client
        self._arguments = _arguments(self.asked, info.version)
        self._request_rows = _request_rows(self.asked, info)
        self._most_in_flight, self._patience, self._clock, self._sleep = in_flight, patience, clock, sleep
        self._in_flight = 1  # until answers have shown how fast they come
        self._lock = threading.Lock()  # of that number, and of what was told
        self._tell, self._told = tell, False
        self._try()

    def _try(self) -> None:
        """Ask about one row of zeros, so that what the server does not take is refused before a table is read.

        What is wrong with that row, or lifts with time, says nothing.
        """
        row = {
            each.name: np.zeros([1, *(1 if size is None else size for size in each.shape[1:])], each.dtype)
            for each in self.described.inputs
        }
        try:
            self._client.predict(self.described.model, row, **self._arguments)
        except InvalidArgument as error:
            if not error.field.startswith("inputs"):
                raise
        except (Overloaded, Unavailable, DeadlineExceeded, ServerError):
            pass

    def score(self, inputs: Inputs) -> Answers:
        """Answer rows (B, ...) by input name, request by request; see `Scorer`.

        Raises `Unavailable` or `Overloaded` where the server does not answer within the patience, and at once what no
        waiting helps against.
        """
        missing, found = self._cut(inputs), dict[int, Answers]()
        since, pause = self._clock(), _PAUSE
        while missing:
            before = set(missing)
            failure = self._ask(missing, found)
            if missing.keys() != before:
                since, pause, self._told = self._clock(), _PAUSE, False
            if failure is None:
                continue
            self._tell_once(failure)
            wait = max(pause, getattr(failure, "retry_after", None) or 0.0)
            silent = self._clock() - since
            if silent + wait > self._patience:
                raise type(failure)(f"no answer for {silent:.0f} s, and then: {failure}") from failure
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return concatenate([found[first] for first in sorted(found)])

    def _tell_once(self, failure: DubitoClientError) -> None:
        """Tell that the server does not answer, unless that was told before; one that is full does."""
        if isinstance(failure, Overloaded):
            return
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._tell(f"the server does not answer ({failure}); it is tried for up to {self._patience:.0f} s")

    def _cut(self, inputs: Inputs) -> dict[int, Inputs]:
        """Cut rows into requests, by the number of their first row."""
        rows = _count(inputs)
        row_bytes = sum(values.nbytes for values in inputs.values()) // max(1, rows)
        step = max(1, min(self._request_rows, _BYTES // max(1, row_bytes)))
        return {
            start: {name: values[start : start + step] for name, values in inputs.items()}
            for start in range(0, rows, step)
        }

    def _ask(self, missing: dict[int, Inputs], found: dict[int, Answers]) -> DubitoClientError | None:
        """Ask once, and move what is answered from `missing` to `found`; returns why some of it is not, if any.

        A request with rows that the network has no finite answer to is cut in two, down to these rows.
        """
        failure: DubitoClientError | None = None
        asked, before, longest = list(missing.items()), self._clock(), 0.0
        try:
            for place, outcome in self._outcomes([inputs for _, inputs in asked]):
                now = self._clock()
                before, longest = now, max(longest, now - before)
                first, inputs = asked[place]
                if isinstance(outcome, DubitoClientError):
                    if outcome.code is _NO_FINITE_ANSWER:
                        del missing[first]
                        self._divide(first, inputs, missing, found)
                    elif isinstance(outcome, _PASSING):
                        failure = outcome
                    else:
                        raise outcome
                elif _SHORT.isdisjoint(outcome.stop_reason):
                    found[first] = self._read(outcome, inputs)
                    del missing[first]
                else:
                    failure = Overloaded(
                        f"the server ended drawing early ({', '.join(sorted({*outcome.stop_reason}))})"
                    )
        except _PASSING as error:
            if isinstance(error, Cancelled) and error.code is None:
                raise  # the client is closed
            failure = error
        with self._lock:
            if failure is not None:
                self._in_flight = max(1, self._in_flight // 2)
            elif longest * _HASTE < self._patience:
                self._in_flight = min(2 * self._in_flight, self._most_in_flight)
        return failure

    def _divide(self, first: int, inputs: Inputs, missing: dict[int, Inputs], found: dict[int, Answers]) -> None:
        """Ask about either half of some rows next; a single one is answered with no numbers."""
        rows = _count(inputs)
        if rows == 1:
            predicted = "probabilities" if self.described.classifies else "mean"
            nothing = {"draws": np.zeros(1, np.int64), "stop_reason": np.array(["unknown"], object)}
            found[first] = {predicted: np.full((1, self.described.outputs), np.nan), **nothing}
            return
        for start, end in ((0, rows // 2), (rows // 2, rows)):
            missing[first + start] = {name: values[start:end] for name, values in inputs.items()}

    def _outcomes(self, requests: Sequence[Inputs]) -> Iterator[Outcome]:
        """Yield what becomes of each request; `Unavailable` where nothing does for as long as the patience lasts."""
        arrived: SimpleQueue[Outcome | Exception | None] = SimpleQueue()
        ended = threading.Event()

        def pull() -> None:
            try:
                for outcome in self._client.predict_many(
                    self.described.model, requests, in_flight=self._in_flight, **self._arguments
                ):
                    arrived.put(outcome)
                    if ended.is_set():
                        return
                arrived.put(None)
            except Exception as error:
                arrived.put(error)

        # Where the server is silent this thread waits until the client is closed.
        threading.Thread(target=pull, name="dubito-batch-answers", daemon=True).start()
        try:
            while (outcome := arrived.get(timeout=self._patience)) is not None:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        except Empty:
            raise Unavailable("the server is silent") from None
        finally:
            ended.set()

    def _read(self, prediction: Prediction, inputs: Inputs) -> Answers:
        """Return an answer's arrays; raises where it is not of the rows and the calibration that it ought to be."""
        rows = _count(inputs)
        if prediction.rows != rows:
            raise ProtocolError(f"the server answered {prediction.rows} rows of {rows}")
        if prediction.calibration_id != self.described.calibration_id:
            given = f"{prediction.calibration_id or 'none'}, to which the server has switched"
            raise refused("calibration", given, f"{self.described.calibration_id or 'none'}, as in the beginning")
        reasons = prediction.stop_reason or ("unknown",) * rows
        found: Answers = {"draws": prediction.draws, "stop_reason": np.array(reasons, object)}
        for name in OPTIONAL_ARRAYS:
            if (values := getattr(prediction, name)) is not None:
                found[name] = values
        return found


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def describe(info: ModelInfo) -> Described:
    """Say what a version is, as far as scoring needs to know it."""
    calibration = info.calibration
    return Described(
        model=info.model,
        version=info.version,
        task=info.task,
        head=info.head,
        outputs=info.outputs,
        class_names=info.class_names,
        inputs=info.inputs,
        checksums=info.checksums,
        calibration_id=None if calibration is None else calibration.id,
        covers=calibration is not None and calibration.conformal is not None,
        abstains=calibration is not None and calibration.selective is not None,
        max_rows=info.max_rows,
    )


def _arguments(asked: Asked, version: int) -> Arguments:
    return Arguments(
        version=version,
        draws=asked.draws,
        min_draws=asked.min_draws,
        seed=asked.seed,
        design=asked.design,
        interval_level=asked.interval_level,
        quantiles=asked.quantiles,
        stopping=asked.rule,
        coverage=asked.coverage,
        estimator=asked.estimator,
        priority="low",
    )


def _request_rows(asked: Asked, info: ModelInfo) -> int:
    """Return how many rows a request may hold, as far as draws, answers and the server's own limit go."""
    calibration, rule = info.calibration, asked.rule
    usual = max(info.default_draws, 0 if calibration is None else calibration.draws)
    ruled = (
        (calibration is not None and calibration.stopping not in _NO_RULE)
        if rule is None
        else rule.rule not in _NO_RULE
    )
    draws = asked.draws or (_UNLIMITED_DRAWS if ruled else 1) * usual
    answer_bytes = 100 + 8 * info.outputs * (10 + len(asked.quantiles))
    work = _RULED_WORK if ruled else _WORK
    return max(1, min(_ROWS, info.max_rows, work // max(draws, asked.min_draws or 1), _BYTES // answer_bytes))
