"""Decoding, prompts in chunks of any size and the plain forward give the same logits."""

import jax
import numpy as np
import pytest
from inference.small_models import (
    BATCH,
    CASES,
    LAYOUTS,
    SWITCHES,
    TIME,
    WINDOW,
    config_of,
    logits_of,
    params_of,
    tokens_of,
)

from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session

TOLERANCE = {"float64": 1e-10, "float32": 1e-3}


def session_of(config, layout="value", **keys):
    return Session(config, params_of(config), InferenceConfig(unified_cache=layout, **keys))


def assert_chunks_give(session, tokens, wanted, chunk: int, exact: bool, tolerance: float):
    """Reads `tokens` `chunk` at a time; every logits that come equal the forward's.

    exact: programs of exactly that width; else padded ones, the same for all chunks.
    """
    cache = session.empty(*tokens.shape)
    for start in range(0, tokens.shape[1], chunk):
        part = tokens[:, start : start + chunk]
        cache, logits = session.prefill(cache, part, chunk=part.shape[1] if exact else 0)
        last = start + part.shape[1] - 1
        np.testing.assert_allclose(logits, wanted[:, last], rtol=0, atol=tolerance)


# Every layer kind and switch, and every form of the cache; the other pairs are slow tests.
MAIN = [(name, "value") for name in SWITCHES] + [("unified", layout) for layout in LAYOUTS[1:]]
OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in MAIN]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "layout"), MAIN + OTHERS)
def test_chunks_of_every_size_and_single_tokens(name, layout):
    assert TIME > 2 * WINDOW
    config = config_of(name)
    tokens, session = tokens_of(config), session_of(config, layout)
    wanted = logits_of(config, tokens)
    for chunk in range(1, TIME + 1):
        assert_chunks_give(session, tokens, wanted, chunk, False, TOLERANCE["float64"])
    assert_chunks_give(session, tokens, wanted, 1, True, TOLERANCE["float64"])


OF_A_WEEK = [("unified", layout) for layout in LAYOUTS[1:]] + [
    ("separate keys and values", "value"),
    ("two windows", "value"),
]
WIDTHS = [
    pytest.param("unified", LAYOUTS[0], marks=pytest.mark.slow),
    pytest.param("unified ones reused from inside a period", "value", marks=pytest.mark.slow),
    *(pytest.param(*case, marks=pytest.mark.weekly) for case in OF_A_WEEK),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "layout"), WIDTHS)
def test_programs_of_every_width_scanned_and_some_looped(name, layout):
    config = config_of(name)
    tokens = tokens_of(config)
    wanted = logits_of(config, tokens)
    for layers, slack, widths in (("scan", 0, range(1, TIME + 1)), ("loop", 3, (1, 3, 6, TIME))):
        session = session_of(config, layout, layers=layers, slack=slack)
        for width in widths:
            assert_chunks_give(session, tokens, wanted, width, True, TOLERANCE["float64"])
    jax.clear_caches()  # programs of many shapes, each with memory maps of its own


@pytest.mark.parametrize("layers", ["scan", "loop"])
def test_float32(layers):
    config = config_of("unified", "float32")
    tokens = tokens_of(config)
    session = session_of(config, "value", layers=layers)
    for chunk, exact in ((1, True), (3, False), (TIME, True)):
        wanted = logits_of(config, tokens)
        assert_chunks_give(session, tokens, wanted, chunk, exact, TOLERANCE["float32"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["unified", "reused keys and values", "experts"])
def test_rows_of_different_lengths_and_their_continuation(name):
    """Each row equals itself alone, at its end and behind ten greedy tokens."""
    config, lengths = config_of(name), [TIME, 3]
    session, tokens = session_of(config), tokens_of(config)
    cache, logits = session.prefill(session.empty(BATCH, TIME + 10), tokens, lengths)
    behind = np.asarray(logits)
    step = session.decode(cache, logits, 10)
    for row, length in enumerate(lengths):
        text = [*tokens[row, :length], *np.asarray(step.tokens)[row, :10]]
        whole = logits_of(config, np.array([text], np.int32))[0]
        np.testing.assert_allclose(behind[row], whole[length - 1], atol=1e-10)
        np.testing.assert_allclose(step.logits[row], whole[-1], atol=1e-10)
        np.testing.assert_array_equal(text[length:], whole[length - 1 : -1].argmax(-1))


@pytest.mark.usefixtures("x64")
def test_the_cache_may_be_in_another_dtype_than_the_model():
    config = config_of("unified")
    tokens = tokens_of(config)
    wanted = logits_of(config, tokens)[:, -1]
    errors = []
    for dtype in ("float64", "float32", "bfloat16", "int8"):
        session = session_of(config, cache_dtype=dtype)
        cache, logits = session.prefill(session.empty(BATCH, TIME), tokens)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} - {"bfloat16"} <= {dtype}
        errors.append(float(np.abs(logits - wanted).max() / np.abs(wanted).max()))
    assert errors == sorted(errors)
    assert errors[1] < 1e-5
    assert 1e-5 < errors[2] < errors[3] < 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("layout", ["value", "value_and_rotated"])
def test_an_int8_cache_does_not_depend_on_the_chunks(layout):
    config = config_of("unified")
    tokens = tokens_of(config)
    session = session_of(config, layout, cache_dtype="int8")
    whole = session.prefill(session.empty(BATCH, TIME), tokens, chunk=TIME)[1]
    for chunk in (1, 5):
        cut = session.prefill(session.empty(BATCH, TIME), tokens, chunk=chunk)[1]
        np.testing.assert_allclose(cut, whole, atol=1e-9)
