"""Triton's own Python client against a server of the models "mlp" and "two-inputs": python triton_client.py ADDRESS."""

import asyncio
import functools
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MLP_ROWS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
CLASSIFICATION = [
    "probabilities", "label", "predictive_entropy", "expected_entropy", "mutual_information",
    "plain_mutual_information", "standard_deviation", "variation_ratio", "disagreement", "margin", "standard_error",
    "draws", "stop_reason",
]  # fmt: skip


def mlp_inputs(api, rows=MLP_ROWS):
    tensor = api.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def price_inputs():
    tokens = triton.InferInput("tokens", [4, 7], "INT64")
    tokens.set_data_from_numpy(np.arange(28).reshape(4, 7) % 20)
    features = triton.InferInput("features", [4, 3], "FP32")
    features.set_data_from_numpy(np.ones((4, 3), np.float32))
    return [tokens, features]


def said(result):
    return result.get_response().parameters


def refused(status, act, *words):
    try:
        act()
    except InferenceServerException as caught:
        error = caught
    else:
        raise AssertionError(f"no {status}")
    assert error.status() == f"StatusCode.{status}", error
    assert all(word in error.message() for word in words), error


def check_state(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert client.is_model_ready("mlp.standard")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("mlp", "77")
    about = client.get_server_metadata()
    assert about.name == "dubito"
    assert {"statistics", "model_configuration", "parameters"} <= set(about.extensions)
    assert "system_shared_memory" not in about.extensions


def check_descriptions(client):
    about = client.get_model_metadata("mlp")
    assert list(about.versions) == ["1"]
    assert [(i.name, i.datatype, list(i.shape)) for i in about.inputs] == [("input", "FP32", [-1, 6])]
    assert [output.name for output in about.outputs] == CLASSIFICATION
    config = client.get_model_config("mlp", as_json=True)["config"]
    assert config["max_batch_size"] > 0
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": ["6"]}]
    standard = client.get_model_metadata("mlp.standard")
    assert [output.name for output in standard.outputs][1:] == ["probabilities", "label"]
    assert client.get_model_config("mlp.standard").config.platform == "onnxruntime_onnx"
    refused("NOT_FOUND", lambda: client.get_model_metadata("nobody"), "mlp")


def check_inference(client):
    result = client.infer("mlp", mlp_inputs(triton), request_id="7", parameters={"draws": 40, "seed": 11})
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("mlp", "1", "7")
    assert [output.name for output in answer.outputs] == CLASSIFICATION
    p = result.as_numpy("probabilities")
    assert p.shape == (5, 4)
    assert np.allclose(p.sum(-1), 1)
    assert (result.as_numpy("label") == p.argmax(-1)).all()
    assert (result.as_numpy("draws") == 40).all()
    assert result.as_numpy("stop_reason").tolist() == [b"max_draws"] * 5
    replay = {"seed": said(result)["seed"].string_param, "draws": str(said(result)["draws"].int64_param)}
    again = client.infer("mlp", mlp_inputs(triton), parameters={**replay, "stopping_rule": "none"})
    assert np.allclose(again.as_numpy("probabilities"), p, rtol=0, atol=1e-6)
    wanted = [triton.InferRequestedOutput(name) for name in ("mutual_information", "probabilities")]
    few = client.infer("mlp", mlp_inputs(triton), outputs=wanted, compression_algorithm="gzip")
    assert [output.name for output in few.get_response().outputs] == ["mutual_information", "probabilities"]
    settled = client.infer("mlp", mlp_inputs(triton), parameters={"tolerance": "0.02", "draws": 2000, "seed": 3})
    assert said(settled)["stop_reason"].string_param == "tolerance"
    assert (settled.as_numpy("standard_error") <= 0.02).all()


def check_regression(client):
    asked = {"quantiles": "0.1,0.5,0.9", "interval_level": "0.8", "draws": 60}
    result = client.infer("two-inputs", price_inputs(), parameters=asked)
    mean, interval, quantiles = (result.as_numpy(name) for name in ("mean", "interval", "quantiles"))
    assert mean.shape == (4, 1)
    assert quantiles.shape == (4, 1, 3)
    assert np.allclose(interval, quantiles[..., [0, 2]])
    assert np.allclose(result.as_numpy("total_variance"), result.as_numpy("epistemic_variance"))
    standard = client.infer("two-inputs.standard", price_inputs())
    assert standard.as_numpy("mean").shape == (4, 1)


def check_standard(client):
    own = client.get_model_metadata("mlp.standard").outputs[0].name
    result = client.infer("mlp.standard", mlp_inputs(triton), priority=1, timeout=5_000_000)
    logits, p = result.as_numpy(own), result.as_numpy("probabilities")
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), p, atol=1e-6)
    assert result.get_response().model_name == "mlp.standard"


def check_refusals(client):
    infer = functools.partial(client.infer, "mlp", mlp_inputs(triton))
    refused("NOT_FOUND", lambda: client.infer("nobody", mlp_inputs(triton)), "nobody", "mlp")
    refused("NOT_FOUND", lambda: infer(model_version="9"), "9")
    refused("INVALID_ARGUMENT", lambda: infer(model_version="newest"), "model_version")
    refused("INVALID_ARGUMENT", lambda: infer(parameters={"draw": 3}), "parameters.draw", "draws")
    refused("INVALID_ARGUMENT", lambda: infer(parameters={"draws": "many"}), "parameters.draws")
    refused("INVALID_ARGUMENT", lambda: infer(sequence_id=4, sequence_start=True), "sequence")
    refused("INVALID_ARGUMENT", lambda: infer(outputs=[triton.InferRequestedOutput("logits")]), "logits")
    refused("INVALID_ARGUMENT", lambda: infer(outputs=[triton.InferRequestedOutput("label", class_count=2)]))
    refused("INVALID_ARGUMENT", lambda: infer(priority=77), "parameters.priority")
    wide = np.zeros((5, 7), np.float32)
    refused("INVALID_ARGUMENT", lambda: client.infer("mlp", mlp_inputs(triton, wide)), "(rows, 6)")
    many = mlp_inputs(triton, np.repeat(MLP_ROWS, 200, 0))
    long = {"draws": 1000, "min_draws": 1000, "stopping_rule": "none"}
    refused("DEADLINE_EXCEEDED", lambda: client.infer("mlp", many, parameters=long, client_timeout=0.01))
    refused("DEADLINE_EXCEEDED", lambda: client.infer("mlp", many, parameters=long, timeout=10_000))
    refused("UNIMPLEMENTED", client.get_system_shared_memory_status, "shared memory is not served")
    refused("UNIMPLEMENTED", client.get_trace_settings, "traces")
    refused("UNIMPLEMENTED", client.get_log_settings, "log-level")


def check_async(client):
    answers = queue.Queue()
    for number in range(30):
        client.async_infer(
            "mlp", mlp_inputs(triton), lambda result, error: answers.put((result, error)), request_id=str(number)
        )
    ids = set()
    for _ in range(30):
        result, error = answers.get(timeout=60)
        assert error is None, error
        ids.add(result.get_response().id)
    assert ids == {str(number) for number in range(30)}
    rows = np.repeat(MLP_ROWS, 200, 0)
    asked = {"draws": 1000, "stopping_rule": "none"}
    call = client.async_infer(
        "mlp", mlp_inputs(triton, rows), lambda result, error: answers.put((result, error)), parameters=asked
    )
    call.cancel()
    result, error = answers.get(timeout=60)
    assert result is None
    assert "ancelled" in error.message()
    assert client.is_server_ready()


def check_stream(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        client.async_stream_infer("mlp", mlp_inputs(triton), request_id=str(number))
    client.async_stream_infer("mlp.standard", mlp_inputs(triton), request_id="standard")
    client.async_stream_infer("mlp", mlp_inputs(triton), request_id="wrong", parameters={"draws": 0})
    found, errors = set(), []
    for _ in range(22):
        result, error = answers.get(timeout=60)
        if error is not None:
            errors.append(error)
            continue
        assert said(result)["triton_final_response"].bool_param
        found.add(result.get_response().id)
    assert found == {*map(str, range(20)), "standard"}
    [error] = errors
    assert "parameters.draws" in error.message(), error
    asked = {"refine": True, "draws": 640, "seed": 5}
    client.async_stream_infer(
        "mlp", mlp_inputs(triton), request_id="r", parameters=asked, enable_empty_final_response=True
    )
    draws, last = [], False
    while not last:
        result, error = answers.get(timeout=60)
        assert error is None, error
        last = said(result)["triton_final_response"].bool_param
        draws.append(int(result.as_numpy("draws")[0]))
    assert draws == sorted(set(draws))
    assert draws[-1] == 640
    client.stop_stream()
    print("refined after", draws, "draws")


def check_statistics(client):
    def of(name):
        [found] = client.get_inference_statistics(name).model_stats
        return found

    before, standard_before = of("mlp"), of("mlp.standard")
    for _ in range(3):
        client.infer("mlp", mlp_inputs(triton))
    refused("INVALID_ARGUMENT", lambda: client.infer("mlp", mlp_inputs(triton), parameters={"draws": 0}))
    after = of("mlp")
    assert after.inference_count - before.inference_count == 15
    assert after.execution_count - before.execution_count >= 3
    stats = after.inference_stats
    assert stats.success.count - before.inference_stats.success.count == 3
    assert stats.fail.count - before.inference_stats.fail.count == 1
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [part.count for part in parts] == [stats.success.count] * 4
    assert sum(part.ns for part in parts) <= stats.success.ns + 1000
    assert sum(each.compute_infer.count for each in after.batch_stats) == after.execution_count
    assert of("mlp.standard") == standard_before
    assert {each.name for each in client.get_inference_statistics().model_stats} >= {"mlp", "two-inputs.standard"}


def check_repository(client):
    states = {(each.name, each.version): each.state for each in client.get_model_repository_index().models}
    assert states["mlp", "1"] == states["mlp.standard", "1"] == states["two-inputs", "1"] == "READY"
    client.unload_model("two-inputs")
    assert not client.is_model_ready("two-inputs")
    refused("NOT_FOUND", lambda: client.infer("two-inputs", price_inputs()), "not loaded")
    index = {(each.name, each.version): each for each in client.get_model_repository_index().models}
    assert (index["two-inputs", "1"].state, index["two-inputs", "1"].reason) == ("UNAVAILABLE", "unloaded by request")
    client.load_model("two-inputs")
    assert client.is_model_ready("two-inputs")
    client.infer("two-inputs", price_inputs())
    refused("NOT_FOUND", lambda: client.load_model("nobody"))
    refused("INVALID_ARGUMENT", lambda: client.load_model("mlp", config="{}"), "config")
    refused("INVALID_ARGUMENT", lambda: client.unload_model("mlp.standard"), "mlp")


async def check_aio(address):
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        asked = [client.infer("mlp", mlp_inputs(triton_aio), parameters={"seed": n}) for n in range(10)]
        answers = await asyncio.gather(*asked)
        assert {said(answer)["seed"].string_param for answer in answers} == set(map(str, range(10)))

        async def requests():
            for number in range(10):
                yield {"model_name": "mlp", "inputs": mlp_inputs(triton_aio), "request_id": str(number)}

        found = set()
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            found.add(result.get_response().id)
        assert found == set(map(str, range(10)))

        rows = np.repeat(MLP_ROWS, 200, 0)
        asked = {"draws": 1000, "stopping_rule": "none"}
        task = asyncio.create_task(client.infer("mlp", mlp_inputs(triton_aio, rows), parameters=asked))
        await asyncio.sleep(0.05)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("it was not cancelled")
        assert await client.is_server_ready()


def main(address):
    with triton.InferenceServerClient(address) as client:
        for check in (
            check_state, check_descriptions, check_inference, check_regression, check_standard, check_refusals,
            check_async, check_stream, check_statistics, check_repository,
        ):  # fmt: skip
            check(client)
            print("ok", check.__name__, flush=True)
    asyncio.run(check_aio(address))
    print("ok check_aio")


if __name__ == "__main__":
    main(sys.argv[1])
