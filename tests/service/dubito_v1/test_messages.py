"""The translator: whatever a request gets wrong is named, with what came and what is accepted; replies hold it all."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibrations import calibration
from dubito_models.calibration import Reached, Selective
from dubito_models.calibration.conformal import fit_classes
from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion, load_version
from dubito_models.predictive import Classification, Predictive, Regression, StopReason
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.asking import Prediction, RequestLimits, Spent
from dubito_service.dubito_v1.messages import read_evaluation, read_prediction, write_evaluation, write_prediction
from dubito_service.dubito_v1.model_messages import write_model, write_models
from dubito_service.errors import NotServed
from dubito_service.observing.observer import Issued
from dubito_service.predicting import Answer, StandardAnswer
from dubito_service.versions.registry import Entry, Registry

from ..tables import with_table

Packed = Callable[[str], ModelVersion]
Break = Callable[[pb.PredictRequest], object]

LIMITS = RequestLimits(max_rows=100, max_draws=1000, max_work=20_000, max_message_bytes=2**16)
SPENT = Spent(0.25, 0.5, 1.0)


@pytest.fixture
def registry(packed: Packed) -> Registry:
    return Registry(
        [
            Entry("mlp", 1, packed("mlp")),
            Entry("mlp", 2, None, "program.pt2: its checksum is not the manifest's"),
            Entry("price", 1, packed("two-inputs")),
        ]
    )


def good(model: str = "mlp", rows: int = 3) -> pb.PredictRequest:
    chance = np.random.default_rng(0)
    if model == "mlp":
        inputs = [tensors.encode(chance.normal(size=(rows, 6)).astype("f4"), "input")]
    else:
        inputs = [
            tensors.encode(chance.integers(0, 20, (rows, 7)), "tokens"),
            tensors.encode(chance.normal(size=(rows, 3)).astype("f4"), "features"),
        ]
    return pb.PredictRequest(model=model, inputs=inputs, id="mine")


def shaped(*shape: int, dtype: pb.DataType = pb.DATA_TYPE_FLOAT32, size: int = 4) -> pb.Tensor:
    return pb.Tensor(name="input", dtype=dtype, shape=shape, data=bytes(max(0, math.prod(shape)) * size % 2**20))


def put(tensor: pb.Tensor) -> Break:
    return lambda request: request.inputs[0].CopyFrom(tensor)


def holding(value: float) -> pb.Tensor:
    return tensors.encode(np.full((3, 6), value, np.float32), "input")


BAD: dict[str, tuple[Break, str, str, str]] = {
    # what is broken: field, part of what was given, part of what is accepted
    "name of an input": (lambda r: setattr(r.inputs[0], "name", "inputs"), "inputs['inputs']", "", "input"),
    "no input": (lambda r: r.ClearField("inputs"), "inputs['input']", "nothing", "float32 of shape (rows, 6)"),
    "input twice": (lambda r: r.inputs.append(r.inputs[0]), "inputs['input']", "twice", "once"),
    "rank": (put(shaped(3, 6, 1)), "inputs['input'].shape", "rank 3", "(rows, 6)"),
    "rank 0": (put(shaped()), "inputs['input'].shape", "rank 0", "(rows, 6)"),
    "rank 1000": (put(shaped(*[1] * 1000)), "inputs['input'].shape", "rank 1000", "at most 16"),
    "size": (put(shaped(3, 5)), "inputs['input'].shape", "(3, 5)", "(rows, 6)"),
    "negative size": (put(shaped(-3, 6)), "inputs['input'].shape", "-3", ">= 0"),
    "overflow": (put(shaped(2**60, 2**60, 16)), "inputs['input'].data", "bytes", "bytes"),
    "dtype": (put(shaped(3, 6, dtype=pb.DATA_TYPE_FLOAT64, size=8)), "inputs['input'].dtype", "float64", "float32"),
    "no dtype": (put(shaped(3, 6, dtype=pb.DATA_TYPE_UNSPECIFIED)), "inputs['input'].dtype", "UNSPECIFIED", "FLOAT32"),
    "length": (lambda r: setattr(r.inputs[0], "data", b"123"), "inputs['input'].data", "3 bytes", "72 bytes"),
    "NaN": (put(holding(math.nan)), "inputs['input']", "nan", "finite"),
    "infinity": (put(holding(-math.inf)), "inputs['input']", "inf", "finite"),
    "0 rows": (put(shaped(0, 6)), "inputs['input'].shape", "0 rows", "at least 1 row"),
    "too many rows": (put(shaped(101, 6)), "inputs['input'].shape", "101 rows", "1 to 100"),
    "0 draws": (lambda r: setattr(r.sampling, "max_draws", 0), "sampling.max_draws", "0", "1 to 1000"),
    "too many draws": (lambda r: setattr(r.sampling, "max_draws", 10**6), "sampling.max_draws", "1000000", "1 to 1000"),
    "0 least draws": (lambda r: setattr(r.sampling, "min_draws", 0), "sampling.min_draws", "0", "1 to 1000"),
    "least above most": (
        lambda r: r.sampling.MergeFrom(pb.SamplingSpec(min_draws=20, max_draws=10)),
        "sampling.min_draws",
        "20",
        "at most max_draws, 10",
    ),
    "negative tolerance": (
        lambda r: setattr(r.sampling.stopping, "target", -0.1),
        "sampling.stopping.target",
        "-0.1",
        "> 0",
    ),
    "NaN tolerance": (
        lambda r: setattr(r.sampling.stopping, "target", math.nan),
        "sampling.stopping.target",
        "nan",
        "> 0",
    ),
    "level": (lambda r: setattr(r.sampling.stopping, "level", 1.0), "sampling.stopping.level", "1.0", "between"),
    "rule": (lambda r: setattr(r.sampling.stopping, "rule", 99), "sampling.stopping.rule", "99", "TOLERANCE"),
    "quantity": (lambda r: setattr(r.sampling.stopping, "quantity", 99), "sampling.stopping.quantity", "99", "MEAN"),
    "design": (lambda r: setattr(r.sampling, "design", 99), "sampling.design", "99", "DESIGN_BALANCED"),
    "mixed design": (
        lambda r: setattr(r.sampling, "design", pb.DESIGN_MIXED),
        "sampling.design",
        "DESIGN_MIXED",
        "DESIGN_BALANCED",
    ),
    "scope": (lambda r: setattr(r.sampling, "mask_scope", 99), "sampling.mask_scope", "99", "MASK_SCOPE_DRAW"),
    "estimator": (lambda r: setattr(r.sampling, "estimator", 99), "sampling.estimator", "99", "ESTIMATOR_PLAIN"),
    "interval": (lambda r: setattr(r.sampling, "interval_level", 1.5), "sampling.interval_level", "1.5", "between"),
    "quantile": (lambda r: r.sampling.quantiles.append(math.nan), "sampling.quantiles", "nan", "between"),
    "quantiles": (lambda r: r.sampling.quantiles.extend([0.5] * 33), "sampling.quantiles", "33", "at most 32"),
    "joint rows apart": (
        lambda r: r.sampling.MergeFrom(pb.SamplingSpec(joint=True, mask_scope=pb.MASK_SCOPE_ROW)),
        "sampling.joint",
        "masks of its own",
        "mask_scope draw",
    ),
    "coverage": (lambda r: setattr(r.output, "coverage", 0.0), "output.coverage", "0.0", "between"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_by_field_with_what_came_and_what_is_accepted(case: str, registry: Registry) -> None:
    harm, field, given, accepted = BAD[case]
    request = good()
    harm(request)
    with pytest.raises(InvalidArgument) as caught:
        read_prediction(request, registry, LIMITS)
    error = caught.value
    assert error.field == field
    assert given in error.given
    assert accepted in error.accepted


def test_work_is_limited_in_rows_times_draws(registry: Registry) -> None:
    request = good(rows=100)
    request.sampling.max_draws = 201
    with pytest.raises(InvalidArgument, match=r"sampling.max_draws: .* at most 20000 rows x draws"):
        read_prediction(request, registry, LIMITS)


def test_linear_logits_count_as_draws(registry: Registry) -> None:
    request = good(rows=100)
    request.sampling.max_draws = 100
    read_prediction(request, registry, LIMITS)
    request.sampling.estimator = pb.ESTIMATOR_LINEARIZED
    with pytest.raises(InvalidArgument, match=r"22800 rows x draws.* at most 20000 rows x draws"):
        read_prediction(request, registry, LIMITS)


def test_raw_draws_are_limited_by_the_size_of_a_message(registry: Registry) -> None:
    request = good(rows=100)
    request.sampling.max_draws = 100
    request.sampling.raw_draws = True
    with pytest.raises(InvalidArgument, match=r"sampling.raw_draws: .* at most 65536 bytes"):
        read_prediction(request, registry, LIMITS)


def test_what_is_kept_until_the_answer_is_limited(registry: Registry) -> None:
    request = good("price", rows=100)
    request.sampling.MergeFrom(pb.SamplingSpec(max_draws=300_000))
    wide = RequestLimits(100, 10**6, 10**8, 2**25)
    with pytest.raises(
        InvalidArgument, match=r"max_draws: got 300000 for 100 rows of 1 outputs; .* fewer draws or rows"
    ):
        read_prediction(request, registry, wide)


def test_a_joint_covariance_that_no_message_can_hold_is_refused(registry: Registry) -> None:
    request = good("price", rows=2000)
    request.sampling.joint = True
    with pytest.raises(InvalidArgument, match=r"sampling.joint: .* 2000 rows"):
        read_prediction(request, registry, RequestLimits(10_000, 10**6, 10**8, 2**24))


def test_a_rule_without_a_limit_takes_what_the_server_affords(registry: Registry) -> None:
    request = good("mlp", rows=10)
    request.sampling.stopping.rule = pb.STOPPING_RULE_DECISION
    for most, expected in ((10**6, 640), (2000, 200), (100, 40)):
        limits = RequestLimits(100, 10_000, max(most, 400), 2**25)
        assert read_prediction(request, registry, limits).plan.max_draws == min(expected, max(40, most // 10))


@pytest.mark.parametrize(
    ("allowed", "why"), [(None, "there is none"), (False, "it did not find that it pays"), (True, None)]
)
def test_linear_logits_are_the_calibrations_to_allow(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, allowed: bool | None, why: str | None
) -> None:
    request = good()
    request.sampling.estimator = pb.ESTIMATOR_LINEARIZED
    version = registry.find("mlp", None)
    found = None if allowed is None else calibration(linearized=allowed)
    monkeypatch.setattr(version, "calibration", found)
    warnings = read_prediction(request, registry, LIMITS).warnings
    assert [why is not None and why in text for text in warnings] == [True] * (why is not None)


def test_what_a_version_falls_back_to_is_said_in_answers_and_of_the_model(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.find("mlp", None)
    monkeypatch.setattr(version, "fallback", "draws are float32 here")
    assert read_prediction(good(), registry, LIMITS).warnings == ("draws are float32 here",)
    told = write_model(registry.entry("mlp", None), LIMITS).warnings
    assert list(told) == [*version.manifest.warnings, "draws are float32 here"]


def test_linear_logits_of_inputs_with_too_many_gradients_have_no_effect(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = good()
    request.sampling.estimator = pb.ESTIMATOR_LINEARIZED
    monkeypatch.setattr(registry.find("mlp", None), "calibration", calibration(linearized=True))
    monkeypatch.setattr("dubito_models.refining.GRADIENT_LIMIT", 1)
    [warning] = read_prediction(request, registry, LIMITS).warnings
    assert "estimator linearized has no effect on inputs of this size" in warning


def test_linear_logits_of_a_regression_are_refused(registry: Registry) -> None:
    request = good("price")
    request.sampling.estimator = pb.ESTIMATOR_LINEARIZED
    with pytest.raises(InvalidArgument, match=r"sampling.estimator: got linearized; accepted: plain"):
        read_prediction(request, registry, LIMITS)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_coverage_without_scores_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    monkeypatch.setattr(registry.find("mlp", None), "calibration", calibration() if calibrated else None)
    request = good()
    request.output.coverage = 0.9
    with pytest.raises(
        InvalidArgument, match=r"output\.coverage: got 0\.9; accepted: none: mlp version 1 has no calibration"
    ):
        read_prediction(request, registry, LIMITS)


@pytest.mark.parametrize(
    ("model", "version", "field", "accepted"),
    [
        ("nlp", None, "model", "mlp, price"),
        ("", None, "model", "mlp, price"),
        ("../mlp", None, "model", "mlp, price"),
        ("mlp", 7, "version", "1"),
        ("mlp", -1, "version", "1"),
        ("mlp", 2, "version", "1"),
    ],
)
def test_a_model_or_version_that_is_not_served_is_named(
    model: str, version: int | None, field: str, accepted: str, registry: Registry
) -> None:
    request = good()
    request.model = model
    if version is not None:
        request.version = version
    with pytest.raises(NotServed) as caught:
        read_prediction(request, registry, LIMITS)
    assert (caught.value.field, caught.value.accepted) == (field, accepted)


def test_absent_fields_take_the_defaults_of_the_version(registry: Registry, packed: Packed) -> None:
    asked = read_prediction(good(), registry, LIMITS)
    assert asked.version is packed("mlp")
    assert asked.plan == packed("mlp").engine.plan(SamplingSpec())
    assert (asked.rows, asked.id, asked.warnings) == (3, "mine", ())


def test_given_fields_reach_the_plan(registry: Registry) -> None:
    request = good("price")
    request.version = 1
    request.sampling.MergeFrom(
        pb.SamplingSpec(
            max_draws=15,
            min_draws=5,
            seed=2**64 - 1,
            design=pb.DESIGN_INDEPENDENT,
            interval_level=0.5,
            quantiles=[0.1, 0.2],
            raw_draws=True,
            stopping=pb.Stopping(rule=pb.STOPPING_RULE_NONE),
        )
    )
    plan = read_prediction(request, registry, LIMITS).plan
    assert (plan.max_draws, plan.min_draws, plan.seed, plan.design) == (15, 5, 2**64 - 1, Design.INDEPENDENT)
    assert (plan.spec.interval_level, plan.spec.quantiles, plan.spec.raw_draws) == (0.5, (0.1, 0.2), True)


def test_what_has_no_effect_is_said(registry: Registry) -> None:
    request = good()
    request.sampling.quantiles.append(0.5)
    request.output.uncalibrated = True
    first, second = read_prediction(request, registry, LIMITS).warnings
    assert "quantiles" in first
    assert "no calibration" in second


def written(asked: Prediction, predictive: Predictive) -> pb.PredictResponse:
    return write_prediction(Answer(asked, predictive, SPENT, Issued()))


def answered(request: pb.PredictRequest, registry: Registry) -> tuple[Predictive, pb.PredictResponse]:
    asked = read_prediction(request, registry, LIMITS)
    predictive = asked.version.engine.predict(asked.inputs, asked.plan.spec, asked.calibration)
    return predictive, written(asked, predictive)


def test_a_classification_is_written_whole(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(40) % 4
    scores = Reached(4, fit_classes(np.eye(4)[labels] * 0.2 + 0.2, labels))
    threshold = Selective("predictive_entropy", 1.0, 0.1, 0.05, 0.5, 0.1)
    found = calibration(conformal=(scores,), selective=threshold)
    monkeypatch.setattr(registry.find("mlp", None), "calibration", found)
    request = good()
    request.sampling.raw_draws = True
    request.output.coverage = 0.9
    predictive, reply = answered(request, registry)
    assert predictive.answer.prediction_set is not None
    np.testing.assert_array_equal(tensors.decode(reply.abstain), predictive.answer.predictive_entropy > 1.0)
    assert reply.coverage == 0.9
    answer = predictive.answer
    assert isinstance(answer, Classification)
    for name in answer.__slots__:
        np.testing.assert_array_equal(tensors.decode(getattr(reply.classification, name)), getattr(answer, name))
    np.testing.assert_array_equal(tensors.decode(reply.draws), predictive.draws)
    np.testing.assert_array_equal(tensors.decode(reply.standard_error), predictive.standard_error)
    np.testing.assert_array_equal(tensors.decode(reply.raw_draws), predictive.raw_draws)
    assert list(reply.stop_reason) == [pb.STOP_REASON_MAX_DRAWS] * 3
    assert (reply.model, reply.version, reply.id) == ("mlp", predictive_version(registry), "mine")
    assert (reply.seed, reply.design, reply.group_size) == (0, pb.DESIGN_BALANCED, predictive.group_size)
    assert (reply.calibration_id, reply.calibration_validity) == (found.id, pb.CALIBRATION_VALIDITY_EXACT)
    assert (reply.timings.queue_seconds, reply.timings.compute_seconds, reply.timings.total_seconds) == (0.25, 0.5, 1.0)
    assert reply.final


def predictive_version(registry: Registry) -> int:
    return registry.find("mlp", None).version


def test_a_regression_is_written_whole(registry: Registry) -> None:
    request = good("price")
    request.sampling.quantiles.extend([0.1, 0.9])
    predictive, reply = answered(request, registry)
    answer = predictive.answer
    assert isinstance(answer, Regression)
    for name in ("mean", "total_variance", "epistemic_variance", "interval", "quantiles"):
        np.testing.assert_array_equal(tensors.decode(getattr(reply.regression, name)), getattr(answer, name))
    assert not reply.regression.HasField("aleatoric_variance")
    assert reply.regression.interval_level == 0.9


def test_what_one_draw_cannot_tell_is_absent_not_zero(registry: Registry) -> None:
    request = good()
    request.sampling.MergeFrom(pb.SamplingSpec(max_draws=1, design=pb.DESIGN_INDEPENDENT))
    _, reply = answered(request, registry)
    assert tensors.decode(reply.draws).tolist() == [1, 1, 1]
    assert not reply.HasField("standard_error")
    for name in ("mutual_information", "plain_mutual_information", "standard_deviation", "prediction_set"):
        assert not reply.classification.HasField(name)


def test_a_partial_answer_says_so_twice(registry: Registry) -> None:
    request = good()
    asked = read_prediction(request, registry, LIMITS)
    engine = asked.version.engine
    [run] = engine.start([(asked.inputs, asked.plan)], None)
    [run] = engine.advance([run], 10)
    reply = written(asked, engine.finish([run], StopReason.DEADLINE)[0])
    assert list(reply.stop_reason) == [pb.STOP_REASON_DEADLINE] * 3
    assert reply.warnings[0] == "the deadline ended drawing after 10 of 40 draws"


@pytest.mark.parametrize(("model", "fields"), [("mlp", ("probabilities", "label")), ("price", ("mean",))])
def test_an_evaluation_is_written_whole(model: str, fields: tuple[str, ...], registry: Registry) -> None:
    source = good(model)
    asked = read_evaluation(pb.EvaluateRequest(model=model, inputs=source.inputs, id="x"), registry, LIMITS)
    evaluation = asked.version.evaluate(asked.inputs)
    reply = write_evaluation(StandardAnswer(asked, evaluation, SPENT))
    for name in ("output", *fields):
        np.testing.assert_array_equal(tensors.decode(getattr(reply, name)), getattr(evaluation, name))
    assert reply.id == "x"
    assert reply.timings.compute_seconds == 0.5


def test_models_are_listed_with_their_state(registry: Registry) -> None:
    listed = write_models(registry.entries()).models
    assert [(status.model, status.version, status.state) for status in listed] == [
        ("mlp", 1, pb.MODEL_STATE_READY),
        ("mlp", 2, pb.MODEL_STATE_FAILED),
        ("price", 1, pb.MODEL_STATE_READY),
    ]
    assert "checksum" in listed[1].reason
    assert listed[2].task == "regression"


def test_a_model_is_described_whole(registry: Registry) -> None:
    reply = write_model(registry.entry("price", None), LIMITS)
    tokens, features = reply.inputs
    assert (tokens.name, tokens.dtype, list(tokens.shape)) == ("tokens", pb.DATA_TYPE_INT64, [-1, -1])
    assert list(tokens.dimension_names) == ["rows", "length"]
    assert (list(features.shape), list(features.dimension_names)) == ([-1, 3], ["rows", ""])
    assert (reply.head, reply.outputs, reply.max_rows, reply.max_draws) == ("mean", 1, 100, 1000)
    assert [site.kind for site in reply.sites] == ["channel", "element"]
    assert set(reply.checksums) == {"program.pt2", "standard.onnx"}
    assert not reply.HasField("calibration")
    failed = write_model(registry.entry("mlp", 2), LIMITS)
    assert failed.status.state == pb.MODEL_STATE_FAILED


@pytest.fixture
def table(packed: Packed) -> Registry:
    """A model whose second input is a table; its network is not looked at."""
    return Registry([Entry("price", 1, with_table(packed("two-inputs")))])


def test_a_tables_columns_are_described(table: Registry) -> None:
    tokens, features = write_model(table.entry("price", None), LIMITS).inputs
    assert not tokens.columns
    assert features.allow_nan
    assert list(features.columns) == [
        pb.Column(name="area", kind=pb.COLUMN_KIND_NUMBER, allow_nan=True),
        pb.Column(name="city", kind=pb.COLUMN_KIND_CATEGORY, categories=["Bern", "Rome"], allow_nan=True),
        pb.Column(name="rooms", kind=pb.COLUMN_KIND_NUMBER),
    ]


@pytest.mark.parametrize(
    ("row", "column", "part"),
    [
        ([math.nan, 1, math.nan], "rooms", "no value may be missing"),
        ([math.inf, 1, 1], "area", "finite"),
        ([1, 0.5, 1], "city", "code"),
        ([1, -1, 1], "city", "code"),
    ],
)
def test_a_value_that_its_column_cannot_have_is_refused_by_the_columns_name(
    row: list[float], column: str, part: str, table: Registry
) -> None:
    request = good("price", rows=1)
    request.inputs[1].CopyFrom(tensors.encode(np.array([row], np.float32), "features"))
    with pytest.raises(InvalidArgument) as caught:
        read_prediction(request, table, LIMITS)
    assert caught.value.field == f"inputs['features'].columns[{column!r}]"
    assert part in caught.value.accepted


def test_missing_values_and_unknown_codes_are_accepted_where_the_columns_say_so(table: Registry) -> None:
    request = good("price", rows=2)
    rows = np.array([[math.nan, math.nan, 1], [1, 99, 1]], np.float32)
    request.inputs[1].CopyFrom(tensors.encode(rows, "features"))
    np.testing.assert_array_equal(read_prediction(request, table, LIMITS).inputs["features"], rows)


def test_a_calibrated_answer_says_by_what_and_how_far_it_holds(packed: Packed, tmp_path: Path) -> None:
    source = packed("mlp")
    shutil.copytree(source.folder, tmp_path / "mlp" / source.folder.name)
    version = load_version(tmp_path / "mlp" / source.folder.name)
    chance = np.random.default_rng(0)
    fitted = version.calibrate(chance.normal(size=(60, 6)).astype("f4"), chance.integers(0, 4, 60))
    calibrated = Registry([Entry("mlp", 1, version)])
    request = good()
    request.output.uncalibrated = True
    _, reply = answered(request, calibrated)
    assert (reply.calibration_id, reply.warnings) == (fitted.id, [])
    assert reply.calibration_validity == pb.CALIBRATION_VALIDITY_EXACT
    assert reply.HasField("uncalibrated_classification")
    request.sampling.seed = 1
    assert answered(request, calibrated)[1].calibration_validity == pb.CALIBRATION_VALIDITY_APPROXIMATE
    info = write_model(calibrated.entry("mlp", None), LIMITS)
    assert (info.status.calibration_id, info.calibration.id) == (fitted.id, fitted.id)
    assert (info.calibration.draws, info.calibration.design, info.calibration.rows) == (40, pb.DESIGN_BALANCED, 0)
