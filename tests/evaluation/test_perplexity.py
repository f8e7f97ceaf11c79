"""Scores equal those of each window run alone; sums, buckets and bytes add up."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import model
from hybrid.config import ConfigError
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import report
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.held_out import evaluate
from hybrid.evaluation.result import doubling_buckets
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores

CONTEXT = 16
BOS, PAD, EOS = 30, 31, 29
MODEL = ModelConfig(
    pattern="LG",
    num_layers=2,
    window_size=4,
    d_model=16,
    num_heads=2,
    head_dim=8,
    ffn_dim=32,
    vocab_size=32,
)


def documents_of(tokens, num_bytes, bos="document"):
    names = tuple(f"document {i}" for i in range(len(tokens)))
    return EvalDocuments(tuple(tokens), num_bytes, names, bos, BOS, PAD, "", "")


def text(lengths=(1, 45, 7, 3, 23, 16, 12), bos="document"):
    rng = np.random.default_rng(1)
    tokens = [np.append(rng.integers(0, 29, n), EOS).astype(np.int32) for n in lengths]
    num_bytes = tuple(np.append(rng.integers(1, 5, n), 0) for n in lengths)
    return documents_of(tokens, num_bytes, bos)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: model.init(MODEL, jax.random.key(0)))()


@pytest.fixture(scope="module")
def score_alone(params):
    """Nats of the targets of one window, run by itself in a row padded at its end."""
    logits = jax.jit(lambda tokens: model.logits(MODEL, params, tokens))

    def score(inputs, targets):
        row = jnp.asarray([list(inputs) + [PAD] * (CONTEXT - len(inputs))])
        log_p = jax.nn.log_softmax(logits(row)[0], axis=-1)
        return [-float(log_p[i, target]) for i, target in enumerate(targets)]

    return score


def brute_force(text, score, stride):
    """Nats and positions of every predicted token, window by window."""
    nll, positions = [], []
    for document in text.tokens:
        sequence = document.tolist() if text.bos == "never" else [BOS, *document.tolist()]
        last = 0  # index of the last token predicted so far
        start = 0
        while last < len(sequence) - 1:
            inputs = sequence[start : min(start + CONTEXT, len(sequence) - 1)]
            targets = sequence[start + 1 : start + 1 + len(inputs)]
            if text.bos == "window":
                inputs[0] = BOS
            scores = score(inputs, targets)
            new = last - start
            nll += scores[new:]
            positions += range(new, len(inputs))
            last, start = start + len(inputs), start + stride
    return np.array(nll), np.array(positions)


@pytest.mark.parametrize(
    ("bos", "stride", "step"),
    [
        ("document", 0, 16),
        ("document", 5, 5),
        ("window", 0, 15),
        ("window", 6, 6),
        ("never", 0, 16),
    ],
)
def test_scores_equal_those_of_each_window_run_alone(params, score_alone, bos, stride, step):
    documents = text(bos=bos)
    result = evaluate(MODEL, params, documents, EvalConfig(stride=stride), context_length=CONTEXT)
    nll, positions = brute_force(documents, score_alone, step)
    np.testing.assert_allclose(result.per_token, nll, rtol=1e-5, atol=1e-5)
    assert result.num_tokens == len(nll)
    assert result.loss == pytest.approx(nll.mean(), rel=1e-6)
    assert (result.context_length, result.stride, result.bos) == (CONTEXT, stride or CONTEXT, bos)
    for bucket in result.by_position:
        inside = (positions >= bucket.start) & (positions < bucket.end)
        assert bucket.num_tokens == inside.sum()
        assert bucket.loss == pytest.approx(nll[inside].mean(), rel=1e-5)
    assert sum(bucket.num_tokens for bucket in result.by_position) == len(nll)


# From here on the model is a table, so that sums can be checked by hand.


def table_nll(params, batch):
    """Nats of a target: its id; 1000 where nothing is predicted."""
    del params
    return TokenScores(jnp.where(batch.loss_mask, batch.targets, 1000.0), None)


DEFAULTS = EvalConfig()


def run(documents, config=DEFAULTS, **arguments):
    arguments = {"context_length": CONTEXT, "score_fn": table_nll} | arguments
    return evaluate(MODEL, None, documents, config, **arguments)


def predicted(documents):
    skip = 1 if documents.bos == "never" else 0
    return np.concatenate([tokens[skip:] for tokens in documents.tokens])


@pytest.mark.parametrize("bos", ["document", "window", "never"])
@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_per_token_is_float32_in_input_order(bos, batch_size):
    documents = text(bos=bos)
    result = run(documents, EvalConfig(stride=7, batch_size=batch_size))
    assert result.per_token.dtype == np.float32
    assert result.per_token.tolist() == predicted(documents).tolist()


@pytest.mark.parametrize("bos", ["document", "never"])
def test_bits_per_byte_is_total_nats_over_ln_2_and_bytes_of_predicted_tokens(bos):
    documents = text(bos=bos)
    skip = 1 if bos == "never" else 0
    num_bytes = sum(int(counts[skip:].sum()) for counts in documents.num_bytes)
    result = run(documents)
    assert result.num_bytes == num_bytes
    nats = predicted(documents).sum()
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(nats / result.num_tokens), rel=1e-12)


@pytest.mark.parametrize("bos", ["document", "window", "never"])
@pytest.mark.parametrize("stride", [0, 5])
def test_without_eos_a_document_is_its_text_alone(bos, stride):
    documents = dataclasses.replace(text(bos=bos), has_eos=True)
    bare = documents_of(
        [tokens[:-1] for tokens in documents.tokens],
        tuple(counts[:-1] for counts in documents.num_bytes),
        bos,
    )
    with_eos, without = (
        run(documents, EvalConfig(stride=stride, count_eos=count)) for count in (True, False)
    )
    expected = run(bare, EvalConfig(stride=stride))
    assert without.per_token.tolist() == expected.per_token.tolist()
    assert (without.loss, without.bits_per_byte) == (expected.loss, expected.bits_per_byte)
    assert without.num_bytes == with_eos.num_bytes
    one_token = sum(len(tokens) == 1 for tokens in documents.tokens) if bos == "never" else 0
    assert with_eos.num_tokens - without.num_tokens == len(documents) - one_token
    assert EOS not in without.per_token
    assert with_eos.to_dict() == run(text(bos=bos), EvalConfig(stride=stride)).to_dict()
    assert (with_eos.to_dict()["count_eos"], without.to_dict()["count_eos"]) == (True, False)


def test_eos_adds_bits_to_each_byte_of_short_documents():
    documents = dataclasses.replace(text((4,) * 10), has_eos=True)
    with_eos, without = (run(documents, EvalConfig(count_eos=count)) for count in (True, False))
    nats_of_eos = 10 * EOS  # the table's
    added = nats_of_eos / math.log(2) / with_eos.num_bytes
    assert with_eos.bits_per_byte - without.bits_per_byte == pytest.approx(added)


def test_bits_per_byte_is_null_where_bytes_are_unknown():
    result = run(dataclasses.replace(text(), num_bytes=None))
    assert (result.bits_per_byte, result.num_bytes) == (None, None)


@pytest.mark.parametrize("bos", ["document", "window", "never"])
@pytest.mark.parametrize("max_tokens", [1, 2, 20, 64])
def test_max_tokens_stops_after_exactly_that_many(bos, max_tokens):
    documents = text(bos=bos)
    whole, part = run(documents), run(documents, EvalConfig(max_tokens=max_tokens))
    assert part.num_tokens == max_tokens
    assert part.per_token.tolist() == whole.per_token[:max_tokens].tolist()
    skip = 1 if bos == "never" else 0
    counts = np.concatenate([counts[skip:] for counts in documents.num_bytes])
    assert part.num_bytes == counts[:max_tokens].sum()


def test_position_buckets_double():
    buckets = doubling_buckets(np.arange(6.0), np.array([0, 1, 2, 3, 4, 9], np.int32))
    assert [(b.start, b.end, b.num_tokens) for b in buckets] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 4, 2),
        (4, 8, 1),
        (8, 16, 1),
    ]
    assert [b.loss for b in buckets] == [0, 1, 2.5, 4, 5]


def test_several_context_lengths_give_the_largest_and_all_in_the_order_given():
    def nll_of_position(params, batch):
        return TokenScores(batch.positions.astype(jnp.float32), None)

    config = EvalConfig(context_length=(8, 0, 4))
    result = run(text(), config, score_fn=nll_of_position)
    assert [one.context_length for one in result.by_context] == [8, CONTEXT, 4]
    assert [one.stride for one in result.by_context] == [8, CONTEXT, 4]
    assert result.context_length == CONTEXT
    assert result.loss == result.by_context[1].loss
    assert result.per_token.max() == CONTEXT - 1
    alone = run(text(), EvalConfig(context_length=(4,)), score_fn=nll_of_position)
    assert alone.to_dict() == result.by_context[2].to_dict()
    assert "by_context" not in alone.to_dict()
    assert result.to_dict(step=3)["by_context"][0]["step"] == 3


def test_the_result_has_the_documented_keys():
    about = {"step": 8, "config": "configs/tiny.py", "overrides": {}}
    values = run(text()).to_dict(**about)
    assert set(values) == {
        "loss", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "by_position",
        "step", "context_length", "stride", "bos", "count_eos", "config", "overrides", "repeats",
    }  # fmt: skip
    assert set(values["by_position"][0]) == {"start", "end", "loss", "num_tokens"}


def test_numbers_that_json_cannot_write_are_null():
    def constant(value):
        return lambda _, batch: TokenScores(jnp.full(batch.tokens.shape, value), None)

    values = run(text(), score_fn=constant(jnp.nan))
    assert values.to_dict()["loss"] is None
    assert values.to_dict()["by_position"][0]["loss"] is None
    huge = run(text(), score_fn=constant(1e4))
    assert huge.loss == 1e4
    assert huge.to_dict()["perplexity"] is None


def test_loss_is_summed_in_float64():
    documents = documents_of([np.zeros(200_000, np.int32)], None)

    def tenth(params, batch):
        return TokenScores(jnp.full(batch.tokens.shape, 0.1, jnp.float32), None)

    result = run(documents, score_fn=tenth, context_length=4096)
    assert result.loss == pytest.approx(float(np.float32(0.1)), rel=1e-14)


def test_a_stop_is_asked_for_before_each_batch_and_ends_without_a_result():
    asked, scored = [], []

    def score_fn(params, batch):
        scored.append(batch)
        return table_nll(params, batch)

    def should_stop():
        asked.append(True)
        return len(asked) == 3

    config = EvalConfig(batch_size=1)
    assert run(text(), config, score_fn=score_fn, should_stop=should_stop) is None
    assert len(scored) == 2


def test_progress_counts_batches_to_the_end():
    heard = []
    run(text(), EvalConfig(batch_size=1), progress=lambda done, total: heard.append((done, total)))
    total = heard[0][1]
    assert heard == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("documents", "config", "key"),
    [
        (documents_of([], ()), EvalConfig(), "data.paths"),
        (text(lengths=(0,), bos="never"), EvalConfig(), "data.paths"),
        (text(), EvalConfig(stride=CONTEXT + 1), "eval.stride"),
        (text(), EvalConfig(stride=5, context_length=(16, 4)), "eval.stride"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_key(documents, config, key):
    with pytest.raises(ConfigError) as caught:
        run(documents, config)
    assert caught.value.key == key


def test_the_table_shows_totals_lengths_and_positions():
    about = {"step": 12, "config": "configs/tiny.py"}
    shown = report.table(run(text(), EvalConfig(context_length=(16, 4))), **about)
    for piece in (
        "step 12",
        "loss",
        "perplexity",
        "bits per byte",
        "tokens",
        "bytes",
        "[8, 16)",
        "count_eos",
    ):
        assert piece in shown
    unknown = run(dataclasses.replace(text(), num_bytes=None))
    assert "unknown" in report.table(unknown, **about)
