"""`eval.mode=cached`: the losses of the forward, chunk by chunk, for every kind of row."""

import dataclasses

import numpy as np
import pytest
from inference.small_models import SWITCHES, config_of, params_of

from hybrid.data.config import NeedleConfig
from hybrid.data.pipeline import EvalDocuments
from hybrid.data.tasks import Examples
from hybrid.evaluation import held_out
from hybrid.evaluation.config import EvalConfig
from hybrid.inference.config import InferenceConfig

pytestmark = pytest.mark.usefixtures("x64")


def documents(bos="document"):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 38, n).astype(np.int32) for n in (70, 3, 31, 1, 12)]
    sizes = [np.ones(len(part), np.int64) for part in tokens]
    names = tuple(map(str, range(len(tokens))))
    return EvalDocuments(tuple(tokens), tuple(sizes), names, bos, 38, 39, "", "")


def scored(config, mode, inference=None, bos="document", **keys):
    evaluated = EvalConfig(mode=mode, context_length=(24,), **keys)
    return held_out.evaluate(
        config, params_of(config), documents(bos), evaluated, context_length=24, inference=inference
    )


@pytest.mark.parametrize("name", SWITCHES)
def test_the_same_loss_for_every_token(name):
    config = config_of(name)
    forward = scored(config, "forward")
    cached = scored(config, "cached", InferenceConfig(prefill_chunk=5))
    assert cached.num_tokens == forward.num_tokens
    np.testing.assert_allclose(cached.per_token, forward.per_token, rtol=0, atol=1e-6)
    assert abs(cached.loss - forward.loss) < 1e-12


@pytest.mark.parametrize("keys", [{"stride": 7}, {"max_tokens": 40}, {"bos": "window"}])
def test_with_strides_limits_and_bos_in_every_window(keys):
    config = config_of("unified")
    forward, cached = (scored(config, mode, **keys) for mode in ("forward", "cached"))
    np.testing.assert_allclose(cached.per_token, forward.per_token, rtol=0, atol=1e-6)
    for one, other in zip(cached.by_position, forward.by_position, strict=True):
        assert (one.start, one.num_tokens) == (other.start, other.num_tokens)


def test_questions_of_a_task():
    config = dataclasses.replace(config_of("unified"), vocab_size=40)
    examples = Examples(
        "needle", NeedleConfig(distances=(2, 9), num_eval_examples=8), "eval", 16, 40
    )
    forward, cached = (
        held_out.evaluate(
            config, params_of(config), examples, EvalConfig(mode=mode), context_length=16
        )
        for mode in ("forward", "cached")
    )
    np.testing.assert_allclose(cached.records.nll, forward.records.nll, atol=1e-6)
    np.testing.assert_array_equal(cached.records.correct, forward.records.correct)


def test_remat_and_unrolled_models_are_scored_too():
    config = dataclasses.replace(config_of("unified"), remat="full", unroll=True)
    forward, cached = (scored(config, mode) for mode in ("forward", "cached"))
    assert abs(cached.loss - forward.loss) < 1e-12


def test_a_narrow_cache_shows_in_the_loss():
    config = config_of("unified")
    forward, cached = (
        scored(config, "forward"),
        scored(config, "cached", InferenceConfig(cache_dtype="int8")),
    )
    assert 1e-7 < abs(cached.loss - forward.loss) < 0.05 * forward.loss
