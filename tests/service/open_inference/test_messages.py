"""The translator: whatever a request gets wrong is named, with what came and what is accepted; replies hold it all."""

from __future__ import annotations

import base64
import math
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibrations import calibration
from dubito_models.calibration import Reached, Selective
from dubito_models.calibration.conformal import fit_classes
from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, Regression, StopReason, Validity
from dubito_protos import open_inference_pb2 as pb
from dubito_service.asking import Prediction, RequestLimits, Spent, StandardRequest
from dubito_service.errors import NotServed, StateUnset
from dubito_service.observing.observer import Issued
from dubito_service.open_inference.messages import (
    Inference,
    find_served,
    read_inference,
    write_inference,
    write_refusal,
    write_stream,
)
from dubito_service.open_inference.outputs import choose
from dubito_service.predicting import Answer, StandardAnswer
from dubito_service.scheduling.scheduler import Priority
from dubito_service.versions.registry import Entry, Registry

from ..tables import with_table
from .wire import DATATYPES, Value, arrays, asking, parameter, put, said, texts

Packed = Callable[[str], ModelVersion]
Break = Callable[[pb.ModelInferRequest], object]

LIMITS = RequestLimits(max_rows=100, max_draws=1000, max_work=20_000, max_message_bytes=2**16)
SPENT = Spent(0.25, 0.5, 1.0)
ALWAYS = [
    "probabilities", "label", "predictive_entropy", "expected_entropy", "mutual_information",
    "plain_mutual_information", "standard_deviation", "variation_ratio", "disagreement", "margin", "standard_error",
    "draws", "stop_reason",
]  # fmt: skip


@pytest.fixture
def registry(packed: Packed) -> Registry:
    return Registry(
        [
            Entry("mlp", 1, packed("mlp")),
            Entry("mlp", 2, None, "program.pt2: its checksum is not the manifest's"),
            Entry("price", 1, packed("two-inputs")),
        ]
    )


@pytest.fixture
def table(packed: Packed) -> Registry:
    """A model whose second input is a table of 3 columns."""
    return Registry([Entry("price", 1, with_table(packed("two-inputs")))])


def read(request: pb.ModelInferRequest, registry: Registry) -> Inference:
    return read_inference(request, find_served(request.model_name, request.model_version, registry), LIMITS)


def pricing(**parameters: str) -> pb.ModelInferRequest:
    request = asking(model="price", **parameters)
    del request.inputs[:], request.raw_input_contents[:]
    chance = np.random.default_rng(0)
    put(request, "tokens", chance.integers(0, 20, (3, 7)))
    put(request, "features", chance.normal(size=(3, 3)).astype(np.float32))
    return request


def shaped(*shape: int) -> Break:
    def harm(request: pb.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = shape
        request.raw_input_contents[0] = bytes(max(0, math.prod(shape)) * 4 % 2**20)

    return harm


def typed(datatype: str, shape: tuple[int, ...] = (3, 6), **contents: Any) -> Break:
    """Put typed values in the place of the raw ones."""

    def harm(request: pb.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        request.inputs[0].datatype = datatype
        request.inputs[0].shape[:] = shape
        request.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))

    return harm


def holding(value: float) -> Break:
    raw = np.full((3, 6), value, np.float32).tobytes()
    return lambda request: request.raw_input_contents.__setitem__(0, raw)


def wanting(*names: str) -> Break:
    return lambda request: [request.outputs.add(name=name) for name in names]


def giving(name: str, value: Value) -> Break:
    return lambda request: request.parameters[name].CopyFrom(parameter(value))


def both(*harms: Break) -> Break:
    return lambda request: [harm(request) for harm in harms]


def with_datatype(datatype: str) -> Break:
    return lambda request: setattr(request.inputs[0], "datatype", datatype)


BAD: dict[str, tuple[Break, str, str, str]] = {
    # what is broken: field, part of what was given, part of what is accepted
    "unknown input": (lambda r: setattr(r.inputs[0], "name", "x"), "inputs['x']", "this name", "input"),
    "missing input": (
        both(lambda r: r.ClearField("inputs"), lambda r: r.ClearField("raw_input_contents")),
        "inputs['input']", "nothing", "float32 of shape (rows, 6)",
    ),
    "extra input": (lambda r: put(r, "y", np.ones((3, 6), np.float32)), "inputs['y']", "this name", "input"),
    "input twice": (lambda r: put(r, "input", np.ones((3, 6), np.float32)), "inputs['input']", "twice", "once"),
    "wrong datatype": (
        both(with_datatype("FP64"), holding(1.0), lambda r: r.raw_input_contents.__setitem__(0, bytes(144))),
        "inputs['input'].datatype", "FP64", "FP32",
    ),
    "unknown datatype": (with_datatype("FLOAT"), "inputs['input'].datatype", "FLOAT", "FP32"),
    "no datatype": (with_datatype(""), "inputs['input'].datatype", "''", "FP32"),
    "texts to numbers": (
        both(with_datatype("BYTES"), lambda r: r.raw_input_contents.__setitem__(0, b"\xff" * 80)),
        "inputs['input'].datatype", "BYTES", "no input is a table",
    ),
    "wrong size": (shaped(3, 5), "inputs['input'].shape", "(3, 5)", "(rows, 6)"),
    "wrong rank": (shaped(3, 6, 1), "inputs['input'].shape", "rank 3", "(rows, 6)"),
    "missing rows": (shaped(6), "inputs['input'].shape", "rank 1", "(rows, 6)"),
    "rank 0": (shaped(), "inputs['input'].shape", "rank 0", "(rows, 6)"),
    "rank 1000": (shaped(*[1] * 1000), "inputs['input'].shape", "rank 1000", "at most 16"),
    "negative size": (shaped(-3, 6), "inputs['input'].shape", "-3", ">= 0"),
    "0 rows": (shaped(0, 6), "inputs['input'].shape", "0 rows", "at least 1"),
    "too many rows": (shaped(101, 6), "inputs['input'].shape", "101 rows", "1 to 100"),
    "overflow": (shaped(2**62, 256), "inputs['input'].shape", "rows", "1 to 100"),
    "hidden overflow": (shaped(16, 2**60 + 2), "inputs['input'].shape", f"(16, {2**60 + 2})", "(rows, 6)"),
    "raw size": (lambda r: r.raw_input_contents.__setitem__(0, b"123"), "inputs['input']", "3 raw bytes", "72 bytes"),
    "two raw for one": (lambda r: r.raw_input_contents.append(b""), "raw_input_contents", "2 of them", "1, one"),
    "no data": (lambda r: r.ClearField("raw_input_contents"), "inputs['input'].contents", "0 values", "18 values"),
    "raw and typed": (
        lambda r: r.inputs[0].contents.fp32_contents.append(1.0), "inputs['input'].contents", "raw", "one of the two",
    ),
    "typed in the wrong field": (
        typed("FP32", fp64_contents=[0.0] * 18), "inputs['input'].contents", "fp64_contents", "fp32_contents",
    ),
    "typed in two fields": (
        typed("FP32", fp32_contents=[0.0] * 18, int_contents=[1]), "inputs['input'].contents", "int_contents", "fp32",
    ),
    "typed size": (typed("FP32", fp32_contents=[0.0] * 17), "inputs['input'].contents", "17 values", "18 values"),
    "typed half floats": (typed("FP16", bytes_contents=[b"ab"]), "inputs['input'].contents", "FP16", "raw_input"),
    "typed out of range": (typed("INT8", int_contents=[128] * 18), "inputs['input'].contents", "128", "-128 to 127"),
    "typed below 0": (typed("UINT8", uint_contents=[256] * 18), "inputs['input'].contents", "256", "0 to 255"),
    "NaN": (holding(math.nan), "inputs['input']", "nan", "finite"),
    "infinity": (holding(math.inf), "inputs['input']", "inf", "finite"),
    "unknown output": (wanting("logits"), "outputs['logits']", "this name", "probabilities"),
    "output twice": (wanting("label", "label"), "outputs['label']", "twice", "once"),
    "output of an absent parameter": (wanting("prediction_set"), "outputs['prediction_set']", "name", "by parameter"),
    "an output as shared memory": (
        lambda r: r.outputs.add(name="label").parameters["shared_memory_region"].CopyFrom(parameter("a")),
        "outputs['label'].parameters.shared_memory_region", "region", "not served",
    ),
    "top classes": (
        lambda r: r.outputs.add(name="probabilities").parameters["classification"].CopyFrom(parameter(2)),
        "outputs['probabilities'].parameters.classification", "this name", "none here",
    ),
    "an input in shared memory": (
        lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(parameter("a")),
        "inputs['input'].parameters.shared_memory_region", "region", "not served",
    ),
    "unknown parameter": (giving("mc_draws", 3), "parameters.mc_draws", "", "draws"),
    "too many parameters": (
        lambda r: [r.parameters[f"headers{number}"].CopyFrom(parameter(1)) for number in range(65)],
        "parameters", "65 of them", "at most 64",
    ),
    "empty parameter": (lambda r: r.parameters["draws"].Clear(), "parameters.draws", "nothing", "value"),
    "mistyped priority": (giving("priority", "x"), "parameters.priority", "x", "0"),
    "mistyped timeout": (giving("timeout", 1.5), "parameters.timeout", "1.5", "micro"),
    "a sequence": (giving("sequence_id", 1), "parameters.sequence_id", "1", "none"),
    "draws": (giving("draws", 0), "parameters.draws", "0", "1 to 1000"),
    "least above most": (
        both(
            giving("draws", 10),
            giving("min_draws", 20),
        ),
        "parameters.min_draws", "20", "at most max_draws, 10",
    ),
    "too much work": (both(shaped(100, 6), giving("draws", 201)), "parameters.draws",
                      "21000", "20000 rows x draws"),
    "coverage": (giving("coverage", "0.9"), "parameters.coverage", "0.9", "none"),
    "target": (
        giving("tolerance", "-1"), "parameters.tolerance", "-1", "> 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_by_field(case: str, registry: Registry) -> None:
    harm, field, given, accepted = BAD[case]
    request = asking()
    harm(request)
    with pytest.raises(InvalidArgument) as caught:
        read(request, registry)
    error = caught.value
    assert error.field == field
    assert given in error.given
    assert accepted in error.accepted


MANY = 2**20  # values, of eight bytes each in an array
REFUSED: dict[str, tuple[str, str, tuple[int, ...]]] = {
    # of an input of so many typed values: name, datatype, shape
    "name": ("x", "INT8", (16, MANY // 16)),
    "datatype": ("input", "INT64", (16, MANY // 16)),
    "shape": ("input", "INT8", (16, MANY // 16)),
    "rank": ("input", "INT8", (1, MANY, 1)),
    "number of values": ("input", "INT8", (16, 6)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_signature_does_not_have_is_refused_before_an_array_is_made_of_it(
    case: str, registry: Registry
) -> None:
    name, datatype, shape = REFUSED[case]
    field = "int64_contents" if datatype == "INT64" else "int_contents"
    request = asking()
    typed(datatype, shape, **{field: range(MANY)})(request)
    request.inputs[0].name = name
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            read(request, registry)
        assert tracemalloc.get_traced_memory()[1] < MANY
    finally:
        tracemalloc.stop()


def test_the_first_input_or_output_that_there_is_not_is_refused_before_the_next_is_looked_at(
    registry: Registry,
) -> None:
    looked = list[str]()

    def names() -> Iterator[str]:
        for number in range(3):
            looked.append(f"y{number}")
            yield looked[-1]

    with pytest.raises(InvalidArgument, match=r"outputs\['y0'\]"):
        choose(names(), ("label",), "")
    assert looked == ["y0"]
    request = asking()
    for name in ("y0", "y1"):
        put(request, name, np.ones((3, 6), np.float32))
    with pytest.raises(InvalidArgument, match=r"inputs\['y0'\]"):
        read(request, registry)


def test_typed_values_that_are_turned_a_few_at_a_time_are_all_there(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dubito_service.open_inference.messages._TURNED", 5)
    request = asking()
    typed("INT8", int_contents=range(-9, 9))(request)
    np.testing.assert_array_equal(read(request, registry).asked.inputs["input"].ravel(), np.arange(-9, 9))


@pytest.mark.parametrize(
    ("model", "version", "field", "accepted"),
    [
        ("nobody", "", "model_name", "mlp, price; each also with .standard"),
        ("nobody.standard", "", "model_name", "mlp, price"),
        ("", "", "model_name", "mlp"),
        ("../mlp", "", "model_name", "mlp"),
        ("mlp.standard.standard", "", "model_name", "mlp"),
        ("mlp", "7", "model_version", "1"),
        ("mlp", "2", "model_version", "1"),
    ],
)
def test_what_is_not_served_is_said_with_what_is(
    model: str, version: str, field: str, accepted: str, registry: Registry
) -> None:
    with pytest.raises(NotServed) as caught:
        find_served(model, version, registry)
    assert caught.value.field == field
    assert accepted in caught.value.accepted


@pytest.mark.parametrize("version", ["0", "-1", "01", "1.0", "newest", " 1", "٣", "9" * 19, "\x00"])
def test_a_version_that_is_no_number_is_refused(version: str, registry: Registry) -> None:
    with pytest.raises(InvalidArgument, match="model_version"):
        find_served("mlp", version, registry)


def test_a_stream_of_labels_needs_a_server_that_keeps_them(registry: Registry) -> None:
    with pytest.raises(StateUnset, match=r"parameters\.stream"):
        read(asking(stream="nurses"), registry)


@pytest.mark.parametrize(
    ("dtype", "exact"), [("float32", True), ("float16", True), ("int8", True), ("uint16", True), ("bool", True)]
)
def test_an_input_of_a_narrower_datatype_is_the_same_numbers(dtype: str, exact: bool, registry: Registry) -> None:
    numbers = (np.arange(18).reshape(3, 6) % 2).astype(dtype)
    request = asking()
    del request.inputs[:], request.raw_input_contents[:]
    put(request, "input", numbers)
    asked = read(request, registry).asked
    assert asked.inputs["input"].dtype.is_floating_point
    np.testing.assert_array_equal(asked.inputs["input"].numpy(), numbers.astype(np.float32))


TYPED: dict[str, tuple[str, Callable[[NDArray[Any]], list[Any]]]] = {
    "BOOL": ("bool_contents", lambda values: [bool(value) for value in values]),
    "UINT8": ("uint_contents", lambda values: [int(value) for value in values]),
    "UINT16": ("uint_contents", lambda values: [int(value) for value in values]),
    "INT8": ("int_contents", lambda values: [int(value) for value in values]),
    "INT16": ("int_contents", lambda values: [int(value) for value in values]),
    "FP32": ("fp32_contents", lambda values: [float(value) for value in values]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_the_same_numbers_as_raw_ones(datatype: str, registry: Registry) -> None:
    numbers = np.arange(18) % 2
    name, listed = TYPED[datatype]
    request = asking()
    typed(datatype, **{name: listed(numbers)})(request)
    np.testing.assert_array_equal(read(request, registry).asked.inputs["input"].numpy(), numbers.reshape(3, 6))


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [("INT64", "int64_contents"), ("INT32", "int_contents"), ("UINT32", "uint_contents"), ("UINT8", "uint_contents")],
)
def test_whole_numbers_of_every_width_reach_an_input_of_64_bits(
    datatype: str, contents: str, registry: Registry
) -> None:
    request = pricing()
    raw = request.raw_input_contents[1]
    del request.raw_input_contents[:]
    request.inputs[0].datatype = datatype
    getattr(request.inputs[0].contents, contents).extend(range(19, -2, -1) if datatype == "INT64" else [3] * 21)
    request.inputs[0].contents.int64_contents[:] = [abs(n) for n in request.inputs[0].contents.int64_contents]
    request.inputs[1].contents.fp32_contents.extend(np.frombuffer(raw, np.float32).tolist())
    assert read(request, registry).asked.inputs["tokens"].numpy().dtype == np.int64


def test_raw_halves_and_brain_floats_become_float32(registry: Registry) -> None:
    numbers = np.arange(18, dtype=np.float32).reshape(3, 6)
    for datatype, raw in (
        ("FP16", numbers.astype("<f2").tobytes()),
        ("BF16", (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()),
    ):
        request = asking()
        request.inputs[0].datatype = datatype
        request.raw_input_contents[0] = raw
        np.testing.assert_array_equal(read(request, registry).asked.inputs["input"].numpy(), numbers)


def test_a_table_of_texts_and_one_of_columns_are_the_table_of_codes(table: Registry) -> None:
    tokens = np.zeros((2, 7), np.int64)
    features = np.array([[80.5, 2, 3], [math.nan, 1, 4]], np.float32)
    cells = np.array([["80.5", "Rome", "3"], ["", "Bern", "4"]], object)
    found = []
    for inputs in (
        {"features": features},
        {"features": cells},
        {"city": cells[:, 1:2], "area": features[:, 0].astype(np.float64), "rooms": features[:, 2].astype(np.int64)},
    ):
        request = pb.ModelInferRequest(model_name="price")
        for name, array in ({"tokens": tokens} | inputs).items():
            put(request, name, array)
        found.append(read(request, table).asked.inputs["features"].numpy())
    for other in found:
        np.testing.assert_array_equal(other, features)


def test_what_is_wrong_with_a_tables_texts_is_named_by_its_column(table: Registry) -> None:
    request = pb.ModelInferRequest(model_name="price")
    put(request, "tokens", np.zeros((1, 7), np.int64))
    put(request, "features", np.array([["1", "Rome", "many"]], object))
    with pytest.raises(InvalidArgument, match=r"inputs\['features'\].columns\['rooms'\]: got 'many' in row 0"):
        read(request, table)


@pytest.mark.parametrize(
    ("raw", "given"),
    [(b"\xff" * 80, "4294967295"), (texts("1", "Rome"), "2 texts"), (texts("1", "", "\0") + b"0", "1 raw")],
)
def test_texts_whose_lengths_lie_are_refused(raw: bytes, given: str, table: Registry) -> None:
    request = pb.ModelInferRequest(model_name="price")
    put(request, "tokens", np.zeros((1, 7), np.int64))
    put(request, "features", np.array([["1", "Rome", "3"]], object))
    request.raw_input_contents[1] = raw
    with pytest.raises(InvalidArgument, match=r"inputs\['features'\]") as caught:
        read(request, table)
    assert given in caught.value.given


def test_typed_texts_are_read_as_raw_ones_are(table: Registry) -> None:
    request = pb.ModelInferRequest(model_name="price")
    request.inputs.add(name="tokens", datatype="INT64", shape=[1, 7]).contents.int64_contents.extend([0] * 7)
    features = request.inputs.add(name="features", datatype="BYTES", shape=[1, 3])
    features.contents.bytes_contents.extend([b"2.5", b"Rome", b"3"])
    np.testing.assert_array_equal(read(request, table).asked.inputs["features"].numpy(), [[2.5, 2, 3]])
    features.contents.bytes_contents[1] = b"\xff"
    with pytest.raises(InvalidArgument, match="UTF-8"):
        read(request, table)


def test_what_clients_add_to_tensors_is_passed_over(registry: Registry) -> None:
    request = asking(outputs=("label",), content_type="np")
    request.inputs[0].parameters["content_type"].string_param = "np"
    request.inputs[0].parameters["binary_data_size"].int64_param = 72
    request.outputs[0].parameters["binary_data"].bool_param = True
    assert read(request, registry).outputs == ("label",)


def test_parameters_reach_the_plan_in_whatever_form(registry: Registry) -> None:
    request = asking(
        draws="15", min_draws=5, seed=2**64 - 1, design="independent", raw_draws=True, stopping_rule="none", priority=1,
        timeout="2000000",
    )  # fmt: skip
    found = read(request, registry)
    assert isinstance(found.asked, Prediction)
    plan = found.asked.plan
    assert (plan.max_draws, plan.min_draws, plan.seed, plan.design.value) == (15, 5, 2**64 - 1, "independent")
    assert plan.spec.raw_draws
    assert (found.asked.priority, found.options.timeout, found.asked.id) == (Priority.HIGH, 2.0, "mine")


def test_the_standard_path_takes_no_parameters_of_draws(registry: Registry) -> None:
    found = read(asking(model="mlp.standard", priority="3"), registry)
    assert isinstance(found.asked, StandardRequest)
    assert found.asked.priority is Priority.LOW
    with pytest.raises(InvalidArgument, match=r"parameters\.draws: .* accepted: priority, timeout"):
        read(asking(model="mlp.standard", draws=3), registry)


# --- Writing ---


def answered(
    request: pb.ModelInferRequest, registry: Registry, issued: Issued | None = None
) -> tuple[Predictive, pb.ModelInferResponse]:
    inference = read(request, registry)
    asked = inference.asked
    assert isinstance(asked, Prediction)
    predictive = asked.version.engine.predict(asked.inputs, asked.plan.spec, asked.calibration)
    return predictive, write_inference(inference, Answer(asked, predictive, SPENT, issued or Issued()))


def test_a_classification_is_written_whole(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(40) % 4
    scores = Reached(4, fit_classes(np.eye(4)[labels] * 0.2 + 0.2, labels))
    found = calibration(conformal=(scores,), selective=Selective("predictive_entropy", 1.0, 0.1, 0.05, 0.5, 0.1))
    monkeypatch.setattr(registry.find("mlp", None), "calibration", found)
    predictive, reply = answered(asking(raw_draws=True, coverage="0.9", uncalibrated=True), registry)
    answer, plain, outputs = predictive.answer, predictive.uncalibrated, arrays(reply)
    assert isinstance(answer, Classification)
    assert isinstance(plain, Classification)
    for name in answer.__slots__:
        np.testing.assert_array_equal(outputs.pop(name), getattr(answer, name))
        if name != "prediction_set":
            np.testing.assert_array_equal(outputs.pop(f"uncalibrated_{name}"), getattr(plain, name))
    for name in ("draws", "standard_error", "abstain", "raw_draws"):
        np.testing.assert_array_equal(outputs.pop(name), getattr(predictive, name))
    assert outputs.pop("stop_reason").tolist() == ["max_draws"] * 3
    assert not outputs
    assert (reply.model_name, reply.model_version, reply.id) == ("mlp", "1", "mine")


def test_a_regression_is_written_whole(registry: Registry) -> None:
    predictive, reply = answered(pricing(quantiles="0.1,0.5", interval_level="0.8", draws="20", joint="true"), registry)
    answer, outputs = predictive.answer, arrays(reply)
    assert isinstance(answer, Regression)
    for name in ("mean", "total_variance", "epistemic_variance", "interval", "quantiles"):
        np.testing.assert_array_equal(outputs.pop(name), getattr(answer, name))
    for name in ("draws", "standard_error", "joint_covariance"):
        np.testing.assert_array_equal(outputs.pop(name), getattr(predictive, name))
    assert set(outputs) == {"stop_reason"}
    assert said(reply)["interval_level"] == 0.8


def test_an_answer_says_how_it_was_drawn_so_that_it_can_be_asked_for_again(registry: Registry) -> None:
    _, reply = answered(asking(seed=str(2**64 - 1), draws=20), registry)
    how = said(reply)
    assert (how["seed"], how["draws"], how["stop_reason"]) == (str(2**64 - 1), 20, "max_draws")
    assert (how["design"], how["mask_scope"], how["estimator"]) == ("balanced", "draw", "plain")
    assert (how["calibration_id"], how["calibration_validity"]) == ("", "none")
    assert (how["queue_seconds"], how["compute_seconds"], how["total_seconds"]) == (0.25, 0.5, 1.0)
    assert "warnings" not in how
    replay = asking(seed=how["seed"], draws=how["draws"], design=how["design"], stopping_rule="none")
    np.testing.assert_array_equal(
        arrays(answered(replay, registry)[1])["probabilities"], arrays(reply)["probabilities"]
    )


def test_a_receipt_is_text(registry: Registry) -> None:
    _, reply = answered(asking(), registry, Issued("abc", b"\x00\xff", "kept"))
    how = said(reply)
    assert (how["prediction_id"], base64.b64decode(str(how["receipt"])), how["warnings"]) == (
        "abc",
        b"\x00\xff",
        "kept",
    )


def test_what_one_draw_cannot_tell_is_not_a_number_rather_than_missing(registry: Registry) -> None:
    outputs = arrays(answered(asking(draws=1, design="independent"), registry)[1])
    assert list(outputs) == ALWAYS
    for name, shape in (("mutual_information", (3,)), ("standard_deviation", (3, 4)), ("standard_error", (3, 4))):
        assert outputs[name].shape == shape
        assert np.isnan(outputs[name]).all()
    assert np.isfinite(outputs["probabilities"]).all()


def test_outputs_that_are_named_come_alone_and_in_their_order(registry: Registry) -> None:
    _, reply = answered(asking(outputs=("draws", "probabilities")), registry)
    assert list(arrays(reply)) == ["draws", "probabilities"]


def test_what_ended_drawing_early_is_said(registry: Registry) -> None:
    inference = read(asking(draws=40), registry)
    asked = inference.asked
    assert isinstance(asked, Prediction)
    whole = asked.version.engine.predict(asked.inputs, asked.plan.spec, None)
    for reason, words in ((StopReason.DEADLINE, "the deadline ended"), (StopReason.LOAD, "the server's load ended")):
        cut = replace(whole, stop_reason=(reason, reason, StopReason.TOLERANCE))
        how = said(write_inference(inference, Answer(asked, cut, SPENT, Issued())))
        assert how["stop_reason"] == f"{reason.value},tolerance"
        assert str(how["warnings"]).startswith(words)


def test_an_adapted_coverage_is_never_called_exact(registry: Registry) -> None:
    inference = read(asking(), registry)
    asked = inference.asked
    assert isinstance(asked, Prediction)
    exact = replace(
        asked.version.engine.predict(asked.inputs, asked.plan.spec, None), calibration_validity=Validity.EXACT
    )
    adapted = replace(asked, stream="nurses", coverage=0.9, served_coverage=0.93)
    how = said(write_inference(inference, Answer(adapted, exact, SPENT, Issued())))
    assert how["calibration_validity"] == "approximate"
    assert (how["coverage"], how["served_coverage"]) == (0.9, 0.93)


@pytest.mark.parametrize(
    ("request_", "own", "names"),
    [
        (asking(model="mlp.standard"), (3, 4), ["probabilities", "label"]),
        (pricing(), (3, 1), ["mean"]),
    ],
    ids=["classification", "regression"],
)
def test_the_standard_path_gives_the_networks_own_output_and_what_it_means(
    request_: pb.ModelInferRequest, own: tuple[int, ...], names: list[str], registry: Registry
) -> None:
    request_.model_name = request_.model_name.removesuffix(".standard") + ".standard"
    inference = read(request_, registry)
    asked = inference.asked
    assert isinstance(asked, StandardRequest)
    evaluation = asked.version.evaluate({name: value.numpy() for name, value in asked.inputs.items()})
    reply = write_inference(inference, StandardAnswer(asked, evaluation, SPENT))
    outputs = arrays(reply)
    assert reply.model_name.endswith(".standard")
    raw = outputs.pop(asked.version.standard.output.name)
    assert raw.shape == own
    np.testing.assert_array_equal(raw, evaluation.output)
    assert list(outputs) == names
    assert outputs[names[0]].dtype.name in DATATYPES


def test_every_reply_of_a_stream_says_whether_it_is_the_last(registry: Registry) -> None:
    for final in (False, True):
        _, reply = answered(asking(), registry)
        assert write_stream(reply, final=final).infer_response.parameters["triton_final_response"].bool_param is final


def test_a_refusal_in_a_stream_says_which_request_it_is_of() -> None:
    reply = write_refusal(asking(model="nobody"), "é" * 10**6)
    assert (reply.infer_response.model_name, reply.infer_response.id) == ("nobody", "mine")
    assert reply.infer_response.parameters["triton_final_response"].bool_param
    assert 0 < len(reply.error_message.encode()) <= 512
