"""MLServer's types, codecs and gRPC stub against a server of "mlp" and "houses": python mlserver_client.py ADDRESS."""

import sys

import grpc
import numpy as np
import pandas as pd
from mlserver import types
from mlserver.codecs import NumpyCodec, PandasCodec, StringCodec
from mlserver.grpc import converters, dataplane_pb2, dataplane_pb2_grpc

ROWS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def asking(rows, parameters=None, outputs=None):
    return types.InferenceRequest(
        id="7",
        parameters=parameters,
        inputs=[NumpyCodec.encode_input("input", rows)],
        outputs=[types.RequestOutput(name=name) for name in outputs] if outputs else None,
    )


def infer(stub, request, model, use_raw):
    message = converters.ModelInferRequestConverter.from_types(request, model_name=model, use_raw=use_raw)
    return converters.ModelInferResponseConverter.to_types(stub.ModelInfer(message, timeout=60))


def decoded(response):
    codecs = {"BYTES": StringCodec}
    return {output.name: codecs.get(output.datatype, NumpyCodec).decode_output(output) for output in response.outputs}


def check_state(stub):
    assert stub.ServerLive(dataplane_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(dataplane_pb2.ServerReadyRequest()).ready
    assert stub.ModelReady(dataplane_pb2.ModelReadyRequest(name="mlp")).ready
    assert not stub.ModelReady(dataplane_pb2.ModelReadyRequest(name="nobody")).ready
    server = stub.ServerMetadata(dataplane_pb2.ServerMetadataRequest())
    assert converters.ServerMetadataResponseConverter.to_types(server).name == "dubito"
    model = stub.ModelMetadata(dataplane_pb2.ModelMetadataRequest(name="mlp"))
    metadata = converters.ModelMetadataResponseConverter.to_types(model)
    assert metadata.name == "mlp"
    assert [(each.name, each.datatype, each.shape) for each in metadata.inputs] == [("input", "FP32", [-1, 6])]


def check_inference(stub):
    for use_raw in (True, False):
        asked = types.Parameters(draws=40, seed="11", tolerance="0.5")
        response = infer(stub, asking(ROWS, asked), "mlp", use_raw)
        assert (response.model_name, response.model_version, response.id) == ("mlp", "1", "7")
        found = decoded(response)
        assert found["probabilities"].shape == (5, 4)
        assert np.allclose(found["probabilities"].sum(-1), 1)
        assert (found["label"].ravel() == found["probabilities"].argmax(-1)).all()
        assert set(found["stop_reason"]) == {"tolerance"}
        assert response.parameters.seed == "11"
    few = infer(stub, asking(ROWS, outputs=["label", "draws"]), "mlp", True)
    assert [output.name for output in few.outputs] == ["label", "draws"]
    standard = decoded(infer(stub, asking(ROWS), "mlp.standard", False))
    assert standard["probabilities"].shape == (5, 4)


def check_table(stub):
    frame = pd.DataFrame(
        {
            "city": ["Rome", "Bern", "Atlantis"],
            "area": [80.5, 61.0, 120.0],
            "rooms": [3, 2, 1],
            "garden": [True, False, False],
            "style": ["old", "new", ""],
        }
    )
    for use_raw in (True, False):
        response = infer(stub, PandasCodec.encode_request(frame), "houses", use_raw)
        assert decoded(response)["mean"].shape == (3, 1)


def check_refusal(stub):
    try:
        infer(stub, asking(ROWS[:, :3]), "mlp", True)
    except grpc.RpcError as caught:
        error = caught
    else:
        raise AssertionError("it was not refused")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "(rows, 6)" in error.details()


def main(address):
    with grpc.insecure_channel(address) as channel:
        stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
        for check in (check_state, check_inference, check_table, check_refusal):
            check(stub)
            print("ok", check.__name__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
