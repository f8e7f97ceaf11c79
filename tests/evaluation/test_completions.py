"""Losses on completions equal those of a mask made by hand, in training and evaluation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid import experiment, model
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.batch import Batch, stacked
from hybrid.data.config import DataConfig
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import target, windows
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.held_out import evaluate
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores

CONTEXT = 16
BOS, PAD = 257, 256
MODEL = ModelConfig(
    pattern="LG", num_layers=2, window_size=4, d_model=16, num_heads=2, head_dim=8, ffn_dim=32,
    vocab_size=260,
)  # fmt: skip
PAIRS = [("2 + 2 = ", "4"), ("a", "bcdefg"), ("", "hi"), ("so", "")]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: model.init(MODEL, jax.random.key(0)))()


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = (f"{tmp_path}/x.jsonl",)
    keys = {"prompt_field": "prompt", "cache_dir": str(tmp_path / "cache"), "packing": "best_fit"}
    return DataConfig(source="jsonl", paths=paths, eval_paths=paths, **keys)


@pytest.fixture
def by_hand(params):
    """Nats of each predicted token: documents one by one, the mask written out."""
    logits = jax.jit(lambda tokens: model.logits(MODEL, params, tokens))
    found = []
    for prompt, answer in PAIRS:
        tokens = [BOS, *prompt.encode(), *answer.encode(), 258]
        row = np.full((1, CONTEXT), PAD, np.int32)
        row[0, : len(tokens)] = tokens
        log_p = jax.nn.log_softmax(logits(row)[0], axis=-1)
        first = 1 + len(prompt)
        found += [-float(log_p[i - 1, tokens[i]]) for i in range(first, len(tokens))]
    return np.array(found)


def test_the_evaluations_loss_is_that_of_a_mask_made_by_hand(pairs, params, by_hand):
    documents = pipeline.open_held_out(pairs, vocab_size=260)
    result = evaluate(MODEL, params, documents, EvalConfig(), context_length=CONTEXT)
    np.testing.assert_allclose(result.per_token, by_hand, rtol=1e-5, atol=1e-5)
    assert result.loss == pytest.approx(by_hand.mean(), rel=1e-6)
    num_bytes = sum(len(answer) for _, answer in PAIRS)
    assert (result.num_tokens, result.num_bytes) == (num_bytes + len(PAIRS), num_bytes)
    nats = float(by_hand.sum())
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
    positions = [i for p, a in PAIRS for i in range(len(p), len(p) + len(a) + 1)]
    for bucket in result.by_position:
        inside = [n for n, i in enumerate(positions) if bucket.start <= i < bucket.end]
        assert bucket.num_tokens == len(inside)
        assert bucket.loss == pytest.approx(by_hand[inside].mean(), rel=1e-5)


def test_trainings_loss_is_that_of_a_mask_made_by_hand(pairs, params, by_hand):
    rows = pipeline.open_rows(pairs, context_length=CONTEXT, seed=0, vocab_size=260)
    batch = stacked([rows.row(number) for number in range(rows.num_rows)])
    sums = jax.jit(model.loss_sums, static_argnums=0)(MODEL, params, batch)
    assert int(sums.count) == len(by_hand)
    assert float(sums.nll) == pytest.approx(by_hand.sum(), rel=1e-5)


def test_another_text_is_scored_whole():
    """An override of the source by one without fields leaves the run's fields behind."""
    values = experiment.to_dict(experiment.from_config({}))
    values["data"] |= {"source": "jsonl", "paths": ["x.jsonl"], "prompt_field": "prompt"}
    changed = target.changed(values, {"data.source": "text", "data.paths": ("x.txt",)})
    assert changed.data.pair is None
    assert target.changed(values, {"data.paths": ("y.jsonl",)}).data.pair is not None


# --- Windows, with a table in the place of a model -----------------------------------------------


@st.composite
def cases(draw):
    """Lengths of documents, masks, and how windows lie."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    size, context = sum(lengths), draw(st.integers(2, 9))
    return {
        "lengths": lengths,
        "bits": draw(st.lists(st.booleans(), min_size=size, max_size=size)),
        "bos": draw(st.sampled_from(["document", "window", "never"])),
        "context": context,
        "stride": draw(st.integers(0, context)),
        "max_tokens": draw(st.sampled_from([0, 0, 1, 5])),
    }


def documents_of(case):
    """Documents whose tokens count on over all of them."""
    ends = np.cumsum(case["lengths"])
    tokens = tuple(np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1]))
    masks = tuple(np.split(np.array(case["bits"], bool), ends[:-1]))
    counts = tuple(np.arange(1, 1 + length) for length in case["lengths"])
    names = tuple(map(str, range(len(tokens))))
    return EvalDocuments(tokens, counts, names, case["bos"], BOS, PAD, "", "", predicted=masks)


def table_nll(params, batch: Batch) -> TokenScores:
    """Nats of a target: its id; 1000 where nothing is predicted, or from the wrong token."""
    del params
    is_next = (batch.tokens == batch.targets - 1) | (batch.tokens == BOS)
    return TokenScores(jnp.where(batch.loss_mask & is_next, batch.targets, 1000.0), None)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(cases())
def test_predicted_tokens_alone_are_scored_in_input_order(case):
    documents = documents_of(case)
    skipped = int(documents.bos == "never")
    wanted = [
        (int(token), number, int(count))
        for number, columns in enumerate(
            zip(documents.tokens, documents.num_bytes, documents.predicted, strict=True)
        )
        for token, count, is_predicted in list(zip(*columns, strict=True))[skipped:]
        if is_predicted
    ]
    wanted = wanted[: case["max_tokens"]] if case["max_tokens"] else wanted
    config = EvalConfig(stride=case["stride"], max_tokens=case["max_tokens"], batch_size=3)
    keys = {"context_length": case["context"], "score_fn": table_nll}
    if not wanted:
        with pytest.raises(ConfigError, match="no token to predict"):
            evaluate(MODEL, None, documents, config, **keys)
        return
    result = evaluate(MODEL, None, documents, config, **keys)
    assert result.per_token.tolist() == [token for token, _, _ in wanted]
    assert result.records.document.tolist() == [number for _, number, _ in wanted]
    assert result.num_bytes == sum(count for _, _, count in wanted)
    least = case["context"] - (case["stride"] or case["context"])
    starts = np.cumsum([0, *case["lengths"]])
    for (token, number, _), position in zip(wanted, result.records.position, strict=True):
        there = token - starts[number] - skipped
        assert min(there, least) <= position <= min(there, case["context"] - 1)


@pytest.mark.parametrize(
    ("bos", "stride", "spans"),
    [
        ("document", 0, [(84, 16, 11)]),
        ("document", 2, [(81, 16, 14), (83, 16, 14), (84, 16, 15)]),
        ("window", 0, [(84, 16, 11)]),
        ("never", 0, [(83, 16, 11)]),
    ],
)
def test_an_answer_has_all_of_its_prompt_before_it_that_fits(bos, stride, spans):
    """Windows are (start, length, first scored column); those without an answer are left out."""
    keys = {"context_length": 16, "stride": stride, "bos": bos}
    packed = windows.pack_windows([100], predicted=[np.arange(100) >= 95], **keys)
    found = sorted((w.start, w.length, w.first) for row in packed.rows for w in row)
    assert (packed.num_tokens, found) == (5, spans)


def test_answers_of_one_window_are_scored_in_it_together():
    mask = np.isin(np.arange(40), [3, 4, 9, 30])
    packed = windows.pack_windows([40], context_length=12, predicted=[mask])
    found = sorted((w.start, w.length, w.first, w.num_scored) for row in packed.rows for w in row)
    assert found == [(0, 10, 3, 3), (19, 12, 11, 1)]
