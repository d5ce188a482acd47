"""Laws of the blocking client, over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from dubito_client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    NotImplementedByServer,
    NotPossible,
    Overloaded,
    ProtocolError,
    ServerError,
    TlsFailed,
    Unavailable,
)
from dubito_protos import uncertainty_pb2 as pb

from .fakes import LOGITS_ROWS, B, Fake, abort, describe, full, refuse, regress

ROWS = np.zeros((B, 1, 8, 8))


def unavailable(context: grpc.ServicerContext) -> None:
    abort(context, grpc.StatusCode.UNAVAILABLE, "restarting")


def test_a_list_is_named_converted_and_answered(fake: Fake) -> None:
    with Client(fake.target) as client:
        p = client.predict("digits", ROWS.tolist(), seed=7, id="one")
    np.testing.assert_array_equal(p.probabilities, LOGITS_ROWS)
    tensor = fake.predictions[0].inputs[0]
    assert (tensor.name, tensor.dtype) == ("image", pb.DATA_TYPE_FLOAT32)
    assert fake.predictions[0].id == "one"


def test_a_replay_is_understood_by_predict(fake: Fake) -> None:
    with Client(fake.target) as client:
        p = client.predict("digits", ROWS)
        client.predict(p.model, ROWS, **p.replay)
    request = fake.predictions[1]
    assert request.version == 3
    sampling = pb.SamplingSpec(
        min_draws=64,
        max_draws=64,
        seed=7,
        design=pb.DESIGN_BALANCED,
        mask_scope=pb.MASK_SCOPE_DRAW,
        estimator=pb.ESTIMATOR_PLAIN,
    )
    assert request.sampling == sampling


def test_a_reloaded_model_with_another_input_is_served_without_a_failure(fake: Fake) -> None:
    with Client(fake.target) as client:
        client.predict("digits", ROWS)
        signature = pb.TensorSignature(name="picture", dtype=pb.DATA_TYPE_FLOAT64, shape=[-1, 1, 8, 8])
        fake.model = describe(inputs=[signature], status=pb.ModelStatus(model="digits", version=4))
        fake.prediction = regress(version=4)
        p = client.predict("digits", ROWS)
        client.predict("digits", ROWS)
    assert p.version == 4
    assert len(fake.descriptions) == 2


def test_the_other_verbs_answer(fake: Fake) -> None:
    with Client(fake.target) as client:
        assert client.ready(5.0)
        assert [(status.model, status.state) for status in client.models()] == [("digits", "ready"), ("old", "failed")]
        assert client.model("digits").inputs[0].name == "image"
        assert client.evaluate("digits", ROWS).output.shape == (B, 2)


def test_a_model_is_loaded_and_unloaded(fake: Fake) -> None:
    with Client(fake.target) as client:
        status = client.load("digits", version=3)
        assert (status.model, status.version, status.state) == ("digits", 3, "ready")
        with pytest.raises(NotPossible, match="digits version 9 failed to load: checksum"):
            client.load("digits", version=9)
        client.predict("digits", ROWS)
        client.unload("digits")
        client.predict("digits", ROWS)
    unloaded = next(seen for seen in fake.seen if isinstance(seen, pb.UnloadModelRequest))
    assert (unloaded.model, unloaded.HasField("version")) == ("digits", False)
    assert len(fake.descriptions) == 2  # what was known of it is not, once it is gone


def test_a_refusal_carries_its_field_what_was_given_and_what_is_accepted(fake: Fake) -> None:
    fake.script = [
        lambda context: refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "sampling.max_draws", "0", "1 to 4096")
    ]
    with Client(fake.target) as client, pytest.raises(InvalidArgument) as caught:
        client.predict("digits", ROWS, draws=0)
    error = caught.value
    assert (error.field, error.given, error.accepted) == ("sampling.max_draws", "0", "1 to 4096")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_model_is_not_found(fake: Fake) -> None:
    with Client(fake.target) as client, pytest.raises(NotFound) as caught:
        client.predict("faces", ROWS)
    assert (caught.value.field, caught.value.accepted) == ("model", "digits")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, NotImplementedByServer),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNKNOWN, ServerError),
    ],
)
def test_a_failure_is_typed_and_not_repeated(fake: Fake, code: grpc.StatusCode, kind: type[Exception]) -> None:
    fake.script = [lambda context: abort(context, code, "no")]
    with Client(fake.target) as client, pytest.raises(kind, match="no"):
        client.predict("digits", ROWS, tolerance=0.01)
    assert len(fake.predictions) == 1


def test_a_prediction_that_found_nobody_is_repeated(fake: Fake) -> None:
    fake.script = [unavailable, unavailable]
    with Client(fake.target) as client:
        assert client.predict("digits", ROWS).rows == B
    assert len(fake.predictions) == 3


def test_a_large_request_is_repeated_too(fake: Fake) -> None:
    fake.script = [unavailable]
    rows = np.zeros((4096, 1, 8, 8), np.float32)  # 1 MiB, above what gRPC keeps by default
    with Client(fake.target) as client:
        client.predict("digits", rows)
    assert len(fake.predictions) == 2


def test_attempts_end_with_the_retries(fake: Fake) -> None:
    fake.script = [unavailable] * 9
    with Client(fake.target, retries=1) as client, pytest.raises(Unavailable, match="restarting"):
        client.predict("digits", ROWS)
    assert len(fake.predictions) == 2


def test_attempts_never_outlast_the_deadline(fake: Fake) -> None:
    def slow(context: grpc.ServicerContext) -> None:
        time.sleep(0.2)
        unavailable(context)

    fake.script = [slow] * 9
    start = time.monotonic()
    with Client(fake.target, retries=4) as client, pytest.raises((DeadlineExceeded, Unavailable)):
        client.predict("digits", ROWS, timeout=0.5)
    assert time.monotonic() - start < 2.0


def test_a_full_server_is_asked_again_when_it_says_so(fake: Fake) -> None:
    fake.script = [lambda context: full(context, 0.1)]
    with Client(fake.target) as client:
        client.predict("digits", ROWS)
    assert len(fake.predictions) == 2


def test_a_full_server_that_says_nothing_is_left_alone(fake: Fake) -> None:
    fake.script = [lambda context: full(context, None)]
    with Client(fake.target) as client, pytest.raises(Overloaded) as caught:
        client.predict("digits", ROWS)
    assert caught.value.retry_after is None
    assert len(fake.predictions) == 1


def test_a_deadline_is_kept_by_the_client_itself(fake: Fake) -> None:
    fake.script = [lambda context: None, fake.hang]
    start = time.monotonic()
    with Client(fake.target, timeout=0.3) as client:
        client.predict("digits", ROWS)
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
            client.predict("digits", ROWS)
    assert time.monotonic() - start < 5.0


def test_a_message_above_a_limit_is_told_from_a_full_server(fake: Fake) -> None:
    rows = np.zeros((32768, 1, 8, 8), np.float32)  # 8 MiB, above the fake server's 4
    with Client(fake.target) as client, pytest.raises(MessageTooLarge):
        client.predict("digits", rows)
    with Client(fake.target, max_message_bytes=2**20) as client, pytest.raises(MessageTooLarge, match="fewer rows"):
        client.predict("digits", rows)


def test_an_answer_that_cannot_be_read_is_a_protocol_error(fake: Fake) -> None:
    fake.prediction = pb.PredictResponse()
    with Client(fake.target) as client, pytest.raises(ProtocolError):
        client.predict("digits", ROWS)


def test_a_target_where_nobody_listens_is_unavailable_and_not_ready() -> None:
    with socket.socket() as bound:  # bound but not listening: nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{bound.getsockname()[1]}", retries=0) as client:
            assert client.ready(0.3) is False
            with pytest.raises(Unavailable):
                client.models()


def test_ready_finds_a_server_that_starts_late() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{bound.getsockname()[1]}"
    server = grpc.server(futures.ThreadPoolExecutor(1))
    start = threading.Timer(0.5, lambda: (server.add_insecure_port(target), server.start()))
    start.start()
    try:
        with Client(target) as client:
            assert client.ready(20.0) is True
    finally:
        start.join()
        server.stop(None).wait()


def test_threads_share_a_client(fake: Fake) -> None:
    with Client(fake.target) as client, futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.predict("digits", ROWS), range(32)))
    assert [p.rows for p in answers] == [B] * 32


def test_closing_ends_the_calls_under_way_and_refuses_later_ones(fake: Fake) -> None:
    fake.script = [fake.hang]
    with futures.ThreadPoolExecutor(1) as pool, Client(fake.target) as client:
        client.model("digits")
        hanging = pool.submit(client.predict, "digits", ROWS)
        while not fake.predictions:
            time.sleep(0.01)
        client.close()
        with pytest.raises(Cancelled):
            hanging.result(timeout=10)
        with pytest.raises(Cancelled, match="closed"):
            client.models()


def test_credentials_secure_the_channel(fake: Fake) -> None:
    with Client(fake.secure_target, credentials=grpc.local_channel_credentials()) as client:
        assert len(client.models()) == 2
    tls = grpc.ssl_channel_credentials()
    with Client(fake.target, credentials=tls, retries=0) as client, pytest.raises(TlsFailed, match="no TLS"):
        client.models()  # never in plaintext where TLS was asked for


def test_the_client_needs_neither_torch_nor_the_servers_packages() -> None:
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "scipy", "pydantic", "onnxruntime", "onnx", "pyarrow", "grpc_health"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
import dubito_client, dubito_client.command, dubito_client.tables
assert not {"dubito_models", "dubito_service"} & set(sys.modules)
assert all(hasattr(dubito_client, name) for name in dubito_client.__all__)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
