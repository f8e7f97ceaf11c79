"""Scores in float64 equal those of each window run alone, dense; packing changes nothing.

The windows here are cut from the documented rule, one token after the other, not from
`windows.py`: what the two agree on is the rule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid import model
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import held_out, perplexity, windows
from hybrid.evaluation.config import EvalConfig
from hybrid.model.config import ModelConfig

CONTEXT, BOS, PAD, EOS = 16, 30, 31, 29
POLICIES = ("document", "window", "never")
MODEL = ModelConfig(
    pattern="LG", num_layers=2, window_size=4, d_model=32, num_heads=2, head_dim=8, ffn_dim=32,
    vocab_size=32, dtype="float64",
)  # fmt: skip


def text(bos, lengths=(1, 45, 7, 3, 23, 16, 12)):
    rng = np.random.default_rng(1)
    tokens = tuple(np.append(rng.integers(0, 29, n), EOS).astype(np.int32) for n in lengths)
    names = tuple(map(str, range(len(tokens))))
    return EvalDocuments(tokens, None, names, bos, None if bos == "never" else BOS, PAD, "", "")


def windows_of(document, bos, context, stride):
    """(inputs, targets, how many of the last are new) of one document, by the documented rule."""
    sequence = document.tolist() if bos == "never" else [BOS, *document.tolist()]
    new_at_most = stride or (context - 1 if bos == "window" else context)
    done = 0  # sequence[1 : done + 1] has been predicted
    while done < len(sequence) - 1:
        # The first window is full; each later one ends `new_at_most` tokens after the last.
        last = min(done + (new_at_most if done else context), len(sequence) - 1)
        # Where the window starts whose full length would end `new_at_most` after `done`.
        first = done + new_at_most - context if done else 0
        inputs = list(sequence[first:last])
        if bos == "window":
            inputs[0] = BOS
        yield inputs, sequence[first + 1 : last + 1], last - done
        done = last


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        return jax.jit(lambda: model.init(MODEL, jax.random.key(0)))()


@pytest.fixture(scope="module")
def dense(params):
    """Nats of one window's targets: a row of its own, the whole softmax."""

    @jax.jit
    def nll(tokens, targets):
        log_p = jax.nn.log_softmax(model.logits(MODEL, params, tokens)[0], axis=-1)
        return -jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]

    def score(inputs, targets):
        fill = [PAD] * (CONTEXT - len(inputs))
        row = jnp.asarray([inputs + fill], jnp.int32)
        return np.asarray(nll(row, jnp.asarray(targets + fill, jnp.int32)))[: len(inputs)]

    return score


@pytest.fixture
def scores(params, monkeypatch):
    """Runs `evaluate` and gives what it sums: nats in float64 and positions, in input order."""
    summed, summarize = [], perplexity.summarize

    def recorded(found, *rest):
        summed.append((found.nll, found.position))
        return summarize(found, *rest)

    monkeypatch.setattr(perplexity, "summarize", recorded)

    def run(documents, **keys):
        config = EvalConfig(**keys)
        held_out.evaluate(MODEL, params, documents, config, context_length=CONTEXT)
        return summed[-1]

    return run


@pytest.mark.parametrize("stride", [0, 1, 5, 12])
@pytest.mark.parametrize("bos", POLICIES)
def test_scores_equal_dense_scores_of_each_window_alone_in_float64(bos, stride, scores, dense, x64):
    documents = text(bos)
    nll, positions = scores(documents, stride=stride, batch_size=4)
    expected, at = [], []
    for document in documents.tokens:
        for inputs, targets, num_new in windows_of(document, bos, CONTEXT, stride):
            expected += dense(inputs, targets)[-num_new:].tolist()
            at += range(len(inputs) - num_new, len(inputs))
    assert nll.dtype == np.float64
    np.testing.assert_allclose(nll, expected, rtol=0, atol=1e-10)
    assert positions.tolist() == at


@pytest.mark.parametrize("bos", POLICIES)
def test_packing_several_windows_in_a_row_changes_nothing(bos, scores, monkeypatch, x64):
    documents = text(bos)
    packed = scores(documents, stride=5, batch_size=4)
    assert any(len(row) > 1 for row in _plan(documents).rows)
    monkeypatch.setattr(windows, "best_fit", lambda each, _: tuple((one,) for one in each))
    assert all(len(row) == 1 for row in _plan(documents).rows)
    alone = scores(documents, stride=5, batch_size=4)
    np.testing.assert_allclose(packed[0], alone[0], rtol=0, atol=1e-12)
    assert packed[1].tolist() == alone[1].tolist()


def _plan(documents):
    lengths = [len(tokens) for tokens in documents.tokens]
    return windows.pack_windows(lengths, context_length=CONTEXT, stride=5, bos=documents.bos)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data())
def test_windows_are_those_of_the_documented_rule(data):
    bos, context = data.draw(st.sampled_from(POLICIES)), data.draw(st.integers(2, 12))
    stride = data.draw(st.integers(0, context - (bos == "window")))
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=5))
    packed = windows.pack_windows(lengths, context_length=context, stride=stride, bos=bos)
    documents = [np.arange(n, dtype=np.int32) for n in lengths]
    found = sorted((w for row in packed.rows for w in row), key=lambda window: window.offset)
    expected = [
        (index, inputs, targets, num_new)
        for index, document in enumerate(documents)
        for inputs, targets, num_new in windows_of(document, bos, context, stride)
    ]
    assert len(found) == len(expected)
    for window, (index, inputs, targets, num_new) in zip(found, expected, strict=True):
        cut = windows._cut(documents[index], window, bos, BOS)
        assert [part.tolist() for part in cut] == [inputs, targets]
        assert (window.document, window.num_scored) == (index, num_new)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data())
def test_context_is_counted_in_tokens_of_text_whatever_stands_for_bos(data):
    bos, context = data.draw(st.sampled_from(POLICIES)), data.draw(st.integers(2, 12))
    stride = data.draw(st.integers(1, context - (bos == "window")))
    length = data.draw(st.integers(0, 40))
    packed = windows.pack_windows([length], context_length=context, stride=stride, bos=bos)
    for window in (window for row in packed.rows for window in row):
        replaced = bos == "window" or (bos == "document" and window.start == 0)
        before = window.start + window.first + (bos == "never")  # the document's, all of them
        seen = window.first + 1 - replaced
        assert seen >= min(before, context - stride)
