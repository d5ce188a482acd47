"""KServe's gRPC client against a server of the models "mlp" and "houses": python kserve_client.py ADDRESS."""

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

ROWS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def asking(rows, binary, model="mlp", **parameters):
    tensor = InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7", parameters=parameters)


def outputs(response):
    return {output.name: output.as_numpy() for output in response.outputs}


def said(response, name):
    return response.parameters[name].string_param


async def check_state(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("mlp")
    assert await client.is_model_ready("mlp.standard")
    assert not await client.is_model_ready("nobody")


async def check_inference(client):
    for binary in (True, False):
        response = await client.infer(asking(ROWS, binary, draws=40, seed="11", tolerance="0.5"))
        assert (response.model_name, response.id) == ("mlp", "7")
        found = outputs(response)
        assert found["probabilities"].shape == (5, 4)
        assert np.allclose(found["probabilities"].sum(-1), 1)
        assert (found["label"] == found["probabilities"].argmax(-1)).all()
        assert said(response, "seed") == "11"
        assert said(response, "stop_reason") == "tolerance"
    several = await asyncio.gather(*(client.infer(asking(ROWS, True, seed=number)) for number in range(10)))
    assert {said(response, "seed") for response in several} == set(map(str, range(10)))
    standard = outputs(await client.infer(asking(ROWS, True, model="mlp.standard")))
    assert np.allclose(standard["probabilities"].sum(-1), 1)


async def check_table(client):
    values = {
        "city": ("BYTES", np.array(["Rome", "Bern", "Atlantis"], object)),
        "area": ("FP64", np.array([80.5, 61.0, np.nan])),
        "rooms": ("INT64", np.array([3, 2, 1])),
        "garden": ("BOOL", np.array([True, False, False])),
        "style": ("BYTES", np.array(["old", "new", ""], object)),
    }
    columns = []
    for name, (datatype, array) in values.items():
        tensor = InferInput(name, [3], datatype)
        tensor.set_data_from_numpy(array, binary_data=True)
        columns.append(tensor)
    response = await client.infer(InferRequest(model_name="houses", infer_inputs=columns))
    assert outputs(response)["mean"].shape == (3, 1)


async def check_refusal(client):
    try:
        await client.infer(asking(ROWS[:, :3], True))
    except grpc.RpcError as caught:
        error = caught
    else:
        raise AssertionError("it was not refused")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "(rows, 6)" in error.details()


async def main(address):
    async with InferenceGRPCClient(address) as client:
        for check in (check_state, check_inference, check_table, check_refusal):
            await check(client)
            print("ok", check.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
