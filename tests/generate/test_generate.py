"""`hybrid.generate`: shapes, padding, stops, seeds, and the tokens that the forward would take."""

import pathlib

import jax
import jax.monitoring
import numpy as np
import pytest
from inference.small_models import config_of, logits_of, params_of, tokens_of

import hybrid
from hybrid.config import ConfigError
from hybrid.inference.config import InferenceConfig
from hybrid.origin import Origin

PAD = 256


@pytest.fixture(scope="module")
def model():
    config = config_of("unified", "float32")
    origin = Origin(pathlib.Path("."), {}, "byte", "document", run={})
    return hybrid.Model(config, params_of(config), origin)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_of(model.config, 3, 10)


def greedy(config, row, count):
    """The likeliest tokens, each by a forward of its own."""
    row = list(row)
    for _ in range(count):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(row)] = row
        row.append(int(logits_of(config, padded)[0, len(row) - 1].argmax()))
    return row


def test_greedy_tokens_are_those_of_the_forward(model, tokens):
    out = hybrid.generate(model, tokens, max_new_tokens=8)
    assert out.shape == (3, 18)
    assert out.dtype == np.int32
    for row in range(3):
        assert out[row].tolist() == greedy(model.config, tokens[row], 8)


def test_prompts_of_different_lengths_go_on_where_they_end(model, tokens):
    out = np.asarray(hybrid.generate(model, tokens, max_new_tokens=5, lengths=[10, 1, 4]))
    assert out.shape == (3, 15)
    for row, length in enumerate((10, 1, 4)):
        assert out[row, : length + 5].tolist() == greedy(model.config, tokens[row, :length], 5)
        assert np.all(out[row, length + 5 :] == PAD)


def test_a_row_ends_behind_its_stop_token_and_the_others_go_on(model, tokens):
    free = np.asarray(hybrid.generate(model, tokens, max_new_tokens=12))
    stop = int(free[0, 13])
    out = np.asarray(hybrid.generate(model, tokens, max_new_tokens=12, stop_tokens=[stop]))
    for row in range(3):
        new = free[row, 10:].tolist()
        count = new.index(stop) + 1 if stop in new else 12
        assert out[row, : 10 + count].tolist() == free[row, : 10 + count].tolist()
        assert np.all(out[row, 10 + count :] == PAD)


def test_more_tokens_than_a_call_of_the_loop_takes(model, tokens):
    heard = []
    out = hybrid.generate(model, tokens[:1], max_new_tokens=100, on_tokens=heard.append)
    assert np.concatenate(heard, axis=1).tolist() == out[:, 10:].tolist()
    first = hybrid.generate(model, out[:, :70], max_new_tokens=40)
    assert first.tolist() == out.tolist()


def test_no_new_tokens(model, tokens):
    assert hybrid.generate(model, tokens, max_new_tokens=0).tolist() == tokens.tolist()


def test_draws_repeat_with_the_seed_and_do_not_depend_on_the_batch(model, tokens):
    keys = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    first = hybrid.generate(model, tokens, seed=5, **keys)
    assert first.tolist() == hybrid.generate(model, tokens, seed=5, **keys).tolist()
    assert first.tolist() != hybrid.generate(model, tokens, seed=6, **keys).tolist()
    alone = hybrid.generate(model, tokens[:1], seed=5, **keys)
    assert alone[0].tolist() == first[0].tolist()
    by_row = hybrid.generate(model, tokens, seed=[1, 2, 5], **keys)
    other = hybrid.generate(model, tokens[[2, 0]], seed=[5, 1], **keys)
    assert other.tolist() == by_row[np.array([2, 0])].tolist()


@pytest.mark.parametrize("layout", ["value_and_rotated", "keys_and_values"])
def test_layouts_of_the_cache_give_the_same_tokens(model, tokens, layout):
    inference = InferenceConfig(unified_cache=layout, slack=2, prefill_chunk=4, layers="scan")
    out = hybrid.generate(model, tokens, max_new_tokens=8, inference=inference)
    assert out.tolist() == hybrid.generate(model, tokens, max_new_tokens=8).tolist()


def test_nothing_is_compiled_again_for_other_lengths_numbers_and_settings(model, tokens):
    compiled = []
    hybrid.generate(model, tokens, 5, 1.0, top_k=3, lengths=[3, 9, 8], stop_tokens=[1])
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **keys: (
            compiled.append(event)
            if event == "/jax/core/compile/backend_compile_duration"
            else None
        )
    )
    try:
        hybrid.generate(model, tokens, 9, 0.7, top_k=5, top_p=0.5, lengths=[2, 5, 9], seed=3)
        hybrid.generate(model, tokens[:, :7], 70, 0.1, top_k=5, stop_tokens=[2, 3])
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"stop_tokens": list(range(9))}, "stop_tokens"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**40}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"max_new_tokens": 2**31}, "max_new_tokens"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(model, tokens, keys, name):
    with pytest.raises(ConfigError) as error:
        hybrid.generate(model, tokens, **keys)
    assert error.value.key == name


def outcome(call, tokens):
    """The refusal of a call, or that there was none."""
    try:
        call(tokens)
    except ValueError as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tokens: tokens + 39, "below vocab_size (40), got"),
        (lambda tokens: tokens - 39, "below vocab_size (40), got -"),
        (lambda tokens: tokens.astype(np.int64) + 2**40, "below vocab_size"),
        (lambda tokens: tokens + 0.5, "must be integers, got float64"),
        (lambda tokens: jax.numpy.asarray(tokens, "float32"), "must be integers, got float32"),
        (lambda tokens: tokens > 3, "must be integers, got bool"),
        (lambda tokens: tokens.astype(np.uint8), None),
        (lambda tokens: tokens.tolist(), None),
    ],
)
def test_ids_that_are_none_are_refused_by_the_model_as_by_generate(model, tokens, change, problem):
    calls = (model, lambda tokens: hybrid.generate(model, tokens, max_new_tokens=8))
    first, second = (outcome(call, change(tokens)) for call in calls)
    assert first == second
    assert (first is None) if problem is None else (problem in first[1])


def test_a_traced_call_is_the_same_function(model, tokens):
    np.testing.assert_allclose(jax.jit(model)(tokens), model(tokens), rtol=0, atol=1e-5)
