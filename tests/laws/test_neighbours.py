"""Law 2: neighbours do not matter; a replay is the same answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dubito_models.engine import wants
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design
from networks import sample

Packed = Callable[[str], ModelVersion]
NAMES = ["mlp", "cnn", "encoder", "weighted-attention", "self-normalizing", "path-floor", "dropped-weights", "lstm"]


def probabilities(answer: object) -> np.ndarray:
    assert isinstance(answer, Classification)
    return answer.probabilities


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
def test_a_request_alone_and_among_strangers_gets_the_same_answer(packed: Packed, name: str, design: Design) -> None:
    engine = packed(name).engine
    plan = engine.plan(SamplingSpec(max_draws=40, seed=3, design=design))
    strangers = [(sample(name, rows, seed=rows), plan) for rows in (2, 5, 1)]
    together = engine.start(strangers, None)
    together = engine.advance(together, wants(together[0]))
    for (inputs, _), run in zip(strangers, together, strict=True):
        alone = engine.predict(inputs, plan.spec)
        np.testing.assert_allclose(
            probabilities(engine.finish([run])[0].answer), probabilities(alone.answer), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_draws_in_several_passes_and_chunks_are_draws_in_one(packed: Packed, name: str) -> None:
    version = packed(name)
    engine, inputs = version.engine, sample(name, 3)
    g = engine.masks.group_size
    plan = engine.plan(SamplingSpec(max_draws=4 * g))
    [run] = engine.start([(inputs, plan)], None)
    for groups in (1, 2, 1):
        [run] = engine.advance([run], groups * g)
    whole = engine.predict(inputs, plan.spec)
    np.testing.assert_allclose(
        probabilities(engine.finish([run])[0].answer), probabilities(whole.answer), rtol=0, atol=1e-6
    )


def test_asking_for_more_draws_extends_the_draws_already_taken(packed: Packed) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 3)
    few = engine.predict(inputs, SamplingSpec(max_draws=20, raw_draws=True)).raw_draws
    many = engine.predict(inputs, SamplingSpec(max_draws=50, raw_draws=True)).raw_draws
    assert few is not None
    assert many is not None
    np.testing.assert_allclose(many[:20], few, rtol=0, atol=1e-6)


def test_a_replay_from_what_the_answer_says_repeats_it_to_the_bit(packed: Packed) -> None:
    version, inputs = packed("cnn"), sample("cnn", 4)
    first = version.engine.predict(inputs, SamplingSpec(max_draws=33, seed=77))
    used = int(first.draws[0])
    again = version.engine.predict(inputs, SamplingSpec(min_draws=used, max_draws=used, seed=first.seed))
    assert np.array_equal(probabilities(first.answer), probabilities(again.answer))


def test_the_global_generator_and_training_mode_do_not_matter(packed: Packed) -> None:
    version, inputs = packed("mlp"), sample("mlp", 2)
    first = version.engine.predict(inputs)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        torch.rand(100)
        second = version.engine.predict(inputs)
    assert np.array_equal(probabilities(first.answer), probabilities(second.answer))


def test_another_seed_gives_other_draws(packed: Packed) -> None:
    version, inputs = packed("mlp"), sample("mlp", 2)
    first, second = (version.engine.predict(inputs, SamplingSpec(seed=seed)) for seed in (1, 2))
    assert not np.allclose(probabilities(first.answer), probabilities(second.answer), atol=1e-9)
