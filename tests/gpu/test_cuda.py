"""On a GPU the laws hold as on a CPU, and both say the same.

Float32 is float32 here: torch lets convolutions round to TF32 unless told otherwise. What is compared between devices
is compared within 1e-4 of its scale: sums are taken in another order there.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu_cases import ALL, CASES, FANNED, build, calibrate, make_masks, open_engine, open_program, rows
from torch import Tensor

from dubito_models.audit import ROUNDING, audit, audit_rounding, difference
from dubito_models.engine import Engine, wants
from dubito_models.heads import Task
from dubito_models.precision import Precision
from dubito_models.predictive import Classification, Predictive, Regression, StopReason
from dubito_models.recording import CudaGraphs, Recorder
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NAMES = sorted(CASES)
WITH_FANS = sorted(ALL)
FEW = ["perceptron", "images", "encoder", "recurrent"]
DESIGNS = [Design.BALANCED, Design.INDEPENDENT]
NEAR = 1e-4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


@functools.cache
def engines(name: str) -> tuple[Engine, Engine]:
    """Return a case's engine on the CPU and on the GPU; made once."""
    return open_engine(name, CPU), open_engine(name, GPU)


def given(engine: Engine, x: Tensor) -> dict[str, Tensor]:
    """Return rows as an engine takes them, by name."""
    return dict.fromkeys(engine.program.inputs, x)


def numbers(found: Predictive) -> np.ndarray:
    """Return what an answer says of the mean, (B, K)."""
    answer = found.answer
    return answer.probabilities if isinstance(answer, Classification) else answer.mean


def assert_same_answer(one: Predictive, other: Predictive) -> None:
    """Hold every number of two answers to each other."""
    fields = Classification if isinstance(one.answer, Classification) else Regression
    for field in fields.__dataclass_fields__:
        mine, theirs = getattr(one.answer, field), getattr(other.answer, field)
        if field == "label":
            certain = np.sort(one.answer.probabilities, -1)  # type: ignore[union-attr]
            clear = certain[:, -1] - certain[:, -2] > NEAR
            np.testing.assert_array_equal(mine[clear], theirs[clear])
        elif isinstance(mine, np.ndarray):
            scale = max(1.0, np.abs(mine).max())
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=NEAR * scale, err_msg=field)
        else:
            assert mine == theirs, field
    assert (one.seed, one.design, one.stop_reason) == (other.seed, other.design, other.stop_reason)
    np.testing.assert_array_equal(one.draws, other.draws)


@pytest.mark.parametrize("name", WITH_FANS)
@pytest.mark.parametrize("design", DESIGNS)
@torch.inference_mode()
def test_masks_are_the_same_bits(name: str, design: Design) -> None:
    here, there = (make_masks(open_program(name, device), name) for device in (CPU, GPU))
    symbols = {"rows": 3, "length": ALL[name].shape[0] + 1}
    for seed in (0, 7, 2**64 - 1):
        for own in (None, torch.tensor([0, 5, 2**20])):
            for first, count in ((0, 12), (here.group_size, 3)):
                expected = here.draws(symbols, seed, design, first, count, own)
                found = there.draws(symbols, seed, design, first, count, own)
                for mine, theirs in zip(expected, found, strict=True):
                    assert theirs.device == GPU
                    assert torch.equal(mine, theirs.cpu())


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_draw_is_that_draw_of_the_cpu_and_many_are_the_loop(name: str) -> None:
    here, there = engines(name)
    x = rows(name, 5)
    masks = here.masks.draws({"rows": 5, "length": CASES[name].shape[0]}, 5, Design.BALANCED, 0, 6)
    moved = [mask.to(GPU) for mask in masks]
    expected_boundary = here.program.prefix(given(here, x))
    boundary = there.program.prefix(given(there, x.to(GPU)))
    expected = torch.stack([here.program.suffix(expected_boundary, [mask[i] for mask in masks]) for i in range(6)])
    looped = torch.stack([there.program.suffix(boundary, [mask[i] for mask in moved]) for i in range(6)])
    assert looped.device == GPU
    assert difference(looped.cpu(), expected) < NEAR
    assert difference(there.program.many(boundary, moved), looped) < NEAR


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_holds(name: str) -> None:
    """With every dropout bypassed it is the module in evaluation mode on the CPU; rows do not influence each other."""
    _, there = engines(name)
    network = build(name)

    def standard(inputs: dict[str, np.ndarray]) -> np.ndarray:
        [x] = inputs.values()
        return network(torch.from_numpy(x)).numpy()

    found = audit(there.program, standard, there.masks, [given(there, rows(name, 3))])
    assert found.vmapped


@pytest.mark.parametrize("name", WITH_FANS)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("design", DESIGNS)
def test_an_answer_is_that_of_the_cpu(name: str, seed: int | None, design: Design) -> None:
    here, there = engines(name)
    spec = SamplingSpec(max_draws=40, seed=seed, design=design, quantiles=(0.25,), raw_draws=True)
    x = rows(name, 6)
    one, other = here.predict(given(here, x), spec), there.predict(given(there, x), spec)
    assert_same_answer(one, other)
    assert one.raw_draws is not None
    assert other.raw_draws is not None
    scale = max(1.0, np.abs(one.raw_draws).max())
    np.testing.assert_allclose(other.raw_draws, one.raw_draws, rtol=0, atol=NEAR * scale)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dropped-weights"])
def test_masks_of_its_own_for_each_row_give_the_answer_of_the_cpu(name: str) -> None:
    here, there = engines(name)
    spec = SamplingSpec(max_draws=20, scope=MaskScope.ROW)
    x = rows(name, 4)
    assert_same_answer(here.predict(given(here, x), spec), there.predict(given(there, x), spec))


@pytest.mark.parametrize("name", ["perceptron", "regression"])
def test_the_covariance_of_rows_is_that_of_the_cpu(name: str) -> None:
    here, there = engines(name)
    x = rows(name, 4)
    one, other = (engine.predict(given(engine, x), SamplingSpec(joint=True)) for engine in (here, there))
    assert one.joint_covariance is not None
    assert other.joint_covariance is not None
    np.testing.assert_allclose(other.joint_covariance, one.joint_covariance, rtol=0, atol=NEAR)


@pytest.mark.parametrize("name", ["perceptron", "regression", "integrated"])
def test_a_calibration_made_there_says_what_one_made_here_does(name: str) -> None:
    here, there = engines(name)
    mine, theirs = calibrate(here, name), calibrate(there, name)
    assert (theirs.method, theirs.linearized, theirs.control_variate, theirs.drawn) == (
        mine.method, mine.linearized, mine.control_variate, mine.drawn,
    )  # fmt: skip
    assert theirs.parameters == pytest.approx(mine.parameters, rel=0.01)


@pytest.mark.parametrize("name", ["perceptron", "regression", "integrated"])
def test_a_refined_answer_is_that_of_the_cpu(name: str) -> None:
    """By linear logits, or by control variates."""
    here, there = engines(name)
    classes = here.head.task is Task.CLASSIFICATION
    calibration = replace(calibrate(here, name), linearized=classes, control_variate=not classes)
    spec = SamplingSpec(estimator=Estimator.LINEARIZED if classes else None)
    x = rows(name, 6)
    assert_same_answer(*(engine.predict(given(engine, x), spec, calibration) for engine in (here, there)))


@pytest.mark.parametrize("name", WITH_FANS)
def test_a_request_alone_and_among_strangers_gets_the_same_answer(name: str) -> None:
    _, there = engines(name)
    plan = there.plan(SamplingSpec(max_draws=40, seed=3))
    strangers = [(given(there, rows(name, count, seed=count)), plan) for count in (2, 5, 1)]
    together = there.start(strangers, None)
    together = there.advance(together, wants(together[0]))
    for (inputs, _), run in zip(strangers, together, strict=True):
        alone = there.predict(inputs, plan.spec)
        np.testing.assert_allclose(numbers(there.finish([run])[0]), numbers(alone), rtol=0, atol=NEAR)


@pytest.mark.parametrize("name", FEW)
def test_draws_in_several_passes_are_draws_in_one(name: str) -> None:
    _, there = engines(name)
    inputs, g = given(there, rows(name, 3)), there.masks.group_size
    plan = there.plan(SamplingSpec(max_draws=4 * g))
    [run] = there.start([(inputs, plan)], None)
    for groups in (1, 2, 1):
        [run] = there.advance([run], groups * g)
    np.testing.assert_allclose(
        numbers(there.finish([run])[0]), numbers(there.predict(inputs, plan.spec)), rtol=0, atol=NEAR
    )


@pytest.mark.parametrize("name", [*FEW, *FANNED])
def test_what_ran_before_does_not_matter(name: str) -> None:
    """Shapes and seeds by turns, so that nothing kept for one call answers another; and a replay is the same bits."""
    here, there = engines(name)
    requests = [(count, seed, draws) for seed in (None, 4) for count in (1, 3, 8, 3, 1) for draws in (16, 40)]
    first: dict[tuple[int, int | None, int], np.ndarray] = {}
    for number, (count, seed, draws) in enumerate(requests):
        x, spec = rows(name, count, seed=number), SamplingSpec(max_draws=draws, seed=seed)
        found = there.predict(given(there, x), spec)
        assert_same_answer(here.predict(given(here, x), spec), found)
        again = rows(name, count, seed=99)
        repeated = numbers(there.predict(given(there, again), spec))
        np.testing.assert_array_equal(repeated, first.setdefault((count, seed, draws), repeated))


@pytest.mark.parametrize("name", FEW)
def test_a_run_keeps_what_it_drew_while_others_draw(name: str) -> None:
    _, there = engines(name)
    g = there.masks.group_size
    plan = there.plan(SamplingSpec(max_draws=2 * g))
    inputs = given(there, rows(name, 3))
    alone = numbers(there.predict(inputs, plan.spec))
    [kept] = there.start([(inputs, plan)], None)
    [kept] = there.advance([kept], g)
    for seed in range(3):  # of the same shapes, so whatever is used again is used again
        there.predict(given(there, rows(name, 3, seed=seed + 50)), SamplingSpec(max_draws=g, seed=seed))
    [kept] = there.advance([kept], g)
    there.predict(given(there, rows(name, 3, seed=60)))
    np.testing.assert_allclose(numbers(there.finish([kept])[0]), alone, rtol=0, atol=NEAR)


def test_another_seed_gives_other_draws() -> None:
    _, there = engines("perceptron")
    inputs = given(there, rows("perceptron", 2))
    one, other = (numbers(there.predict(inputs, SamplingSpec(seed=seed))) for seed in (1, 2))
    assert not np.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "stopping"),
    [
        ("perceptron", Stopping(StoppingRule.DECISION)),
        ("perceptron", Stopping(StoppingRule.TOLERANCE, target=0.01, quantity=Quantity.MEAN)),
        ("regression", Stopping(StoppingRule.TOLERANCE, target=0.005, quantity=Quantity.MEAN)),
    ],
)
def test_rows_stop_where_they_stop_on_the_cpu(name: str, stopping: Stopping) -> None:
    """All but one in a hundred: a rule may look at a number that stands on its threshold to rounding."""
    here, there = engines(name)
    x = rows(name, 200)
    spec = SamplingSpec(max_draws=320, stopping=stopping)
    one, other = here.predict(given(here, x), spec), there.predict(given(there, x), spec)
    same = one.draws == other.draws
    assert same.mean() >= 0.99
    assert len(np.unique(other.draws)) > 1
    assert StopReason.MAX_DRAWS not in np.array(other.stop_reason)[other.draws < other.draws.max()]
    np.testing.assert_allclose(numbers(other)[same], numbers(one)[same], rtol=0, atol=NEAR)


@pytest.mark.parametrize("name", ["perceptron", "images", "encoder"])
def test_bfloat16_moves_no_draw_by_more_than_packing_accepts(name: str) -> None:
    exact, rounded = (open_program(name, GPU, precision) for precision in Precision)
    assert rounded.rounded_products > 0
    inputs = dict.fromkeys(exact.inputs, rows(name, 4))
    found = audit_rounding(exact, rounded, make_masks(exact, name), [inputs])
    assert found.vmapped
    assert found.draw <= ROUNDING


@pytest.mark.parametrize("name", ["perceptron", "images", "encoder"])
def test_draws_in_bfloat16_are_those_of_the_cpu_to_its_rounding(name: str) -> None:
    here, there = (open_engine(name, device, Precision.BFLOAT16) for device in (CPU, GPU))
    x = rows(name, 4)
    one, other = (numbers(engine.predict(given(engine, x), SamplingSpec(max_draws=40))) for engine in (here, there))
    np.testing.assert_allclose(other, one, rtol=0, atol=2.0**-7)


@pytest.mark.parametrize("name", FEW)
def test_memory_comes_back_when_the_engine_goes(name: str) -> None:
    def use() -> None:
        engine = open_engine(name, GPU)
        for count in (1, 4):
            for seed in (None, 1):
                engine.predict(given(engine, rows(name, count)), SamplingSpec(max_draws=40, seed=seed))

    def taken() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    use()  # what torch's libraries take for themselves, once
    before = taken()
    use()
    assert taken() <= before


@pytest.mark.parametrize("name", FEW)
def test_drawing_waits_for_nothing(name: str) -> None:
    """Once its shapes are known, a run without a stopping rule draws without a look of the host's at the device."""
    _, there = engines(name)
    inputs = given(there, rows(name, 3))
    for seed in (None, 8):
        spec = SamplingSpec(max_draws=40, seed=seed)
        there.predict(inputs, spec)
        [run] = there.start([(inputs, there.plan(spec))], None)
        draws = wants(run)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            there.advance([run], draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", WITH_FANS)
def test_recorded_passes_answer_as_others_do(name: str) -> None:
    plain = engines(name)[1]
    recorder = Recorder(CudaGraphs(GPU), plain.program.select)
    engine = Engine(plain.program, plain.masks, plain.head, plain.defaults, vmapped=plain.vmaps, recorder=recorder)
    for count in (4, 4, 4, 4, 3, 4):
        x = given(plain, rows(name, count))
        assert_same_answer(plain.predict(x, SamplingSpec(max_draws=40)), engine.predict(x, SamplingSpec(max_draws=40)))
