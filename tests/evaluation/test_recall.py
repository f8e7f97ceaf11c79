"""Accuracy on tasks equals a count by hand; batches, padding and limits change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import model
from hybrid.config import ConfigError
from hybrid.data.config import MqarConfig, NeedleConfig
from hybrid.data.tasks import Examples
from hybrid.evaluation import report
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.held_out import evaluate
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores

CONTEXT = 16
MODEL = ModelConfig(
    pattern="LG", num_layers=2, window_size=4, d_model=16, num_heads=2, head_dim=8, ffn_dim=32,
    vocab_size=40,
)  # fmt: skip
MQAR = Examples("mqar", MqarConfig(num_pairs=(1, 3), num_eval_examples=21), "eval", CONTEXT, 40)
NEEDLE = Examples(
    "needle", NeedleConfig(distances=(2, 9, 5), num_eval_examples=20), "eval", CONTEXT, 40
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: model.init(MODEL, jax.random.key(0)))()


@pytest.fixture(scope="module")
def by_hand(params):
    """Nats and right or wrong of every question, row by row from the whole logits."""
    logits = jax.jit(lambda tokens: model.logits(MODEL, params, tokens))

    def count(examples):
        nll, correct, about = [], [], []
        for i in range(examples.num_rows):
            example = examples.example(i)
            of_row = np.asarray(logits(jnp.asarray(example.tokens)[None]))[0].astype(np.float64)
            for place, distance in zip(example.asked, example.distance, strict=True):
                scores, target = of_row[place], example.targets[place]
                nll.append(np.log(np.sum(np.exp(scores))) - scores[target])
                correct.append(all(scores[j] < scores[target] for j in range(40) if j != target))
                about.append((i, place, distance, example.num_pairs))
        return np.array(nll), np.array(correct), np.array(about)

    return count


@pytest.mark.parametrize("examples", [MQAR, NEEDLE], ids=lambda examples: examples.name)
@pytest.mark.parametrize("batch_size", [0, 4])
def test_scores_equal_those_counted_by_hand(examples, batch_size, params, by_hand):
    config = EvalConfig(batch_size=batch_size)
    result = evaluate(MODEL, params, examples, config, context_length=CONTEXT)
    nll, correct, about = by_hand(examples)
    scores = result.records
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-5, atol=1e-5)
    assert scores.correct.tolist() == correct.tolist()
    columns = (scores.document, scores.position, scores.distance, scores.num_pairs)
    np.testing.assert_array_equal(np.stack(columns, axis=1), about)
    assert result.loss == pytest.approx(nll.mean(), rel=1e-6)
    assert result.accuracy == correct.mean()
    assert result.num_tokens == len(nll) == examples.num_predicted


# From here on the model is a rule, so that shares can be checked by hand.


def rule(params, batch):
    """Nats are the target's id; right where it is even."""
    del params
    is_top = (batch.targets % 2 == 0) & batch.loss_mask
    return TokenScores(batch.targets.astype(jnp.float32), is_top)


DEFAULTS = EvalConfig()


def run(examples, config=DEFAULTS, **arguments):
    arguments = {"context_length": CONTEXT, "score_fn": rule} | arguments
    return evaluate(MODEL, None, examples, config, **arguments)


@pytest.mark.parametrize("examples", [MQAR, NEEDLE], ids=lambda examples: examples.name)
def test_accuracy_is_split_by_distance_and_by_number_of_pairs(examples):
    result, found = run(examples), []
    for i in range(examples.num_rows):
        example = examples.example(i)
        for place, distance in zip(example.asked, example.distance, strict=True):
            found.append((int(distance), example.num_pairs, example.targets[place] % 2 == 0))
    for column, groups in ((0, result.by_distance), (1, result.by_num_pairs)):
        assert list(groups) == sorted({one[column] for one in found})
        for value, share in groups.items():
            right = [one[2] for one in found if one[column] == value]
            assert (share.num, share.accuracy) == (len(right), np.mean(right))


@pytest.mark.parametrize("examples", [MQAR, NEEDLE], ids=lambda examples: examples.name)
@pytest.mark.parametrize("max_tokens", [1, 2, 13, 1000])
@pytest.mark.parametrize("batch_multiple", [1, 8])
def test_max_tokens_stops_after_exactly_that_many(examples, max_tokens, batch_multiple):
    whole = run(examples)
    config = EvalConfig(max_tokens=max_tokens, batch_size=3)
    shapes = set()

    def place(batch):
        shapes.add(batch.tokens.shape)
        return batch

    part = run(examples, config, place=place, batch_multiple=batch_multiple)
    expected = min(max_tokens, whole.num_tokens)
    assert part.num_tokens == expected
    for name, column in part.records.columns().items():
        assert column.tolist() == getattr(whole.records, name)[:expected].tolist()
    assert shapes == {(8 if batch_multiple == 8 else 3, CONTEXT)}


def test_of_equal_logits_the_first_is_the_answer(params):
    """A model that knows nothing isn't right everywhere."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    result = evaluate(MODEL, zeros, NEEDLE, EvalConfig(), context_length=CONTEXT)
    assert result.accuracy == 0
    assert result.loss == pytest.approx(np.log(40), rel=1e-6)


def test_nothing_is_scored_where_nothing_is_asked(params):
    batch = jax.tree.map(jnp.asarray, _batch_of(MQAR))
    nll, is_top = jax.jit(lambda params: model.score(MODEL, params, batch, with_top=True))(params)
    plain, _ = jax.jit(lambda params: model.score(MODEL, params, batch))(params)
    np.testing.assert_allclose(nll, plain, rtol=1e-5, atol=1e-6)
    unasked = ~np.asarray(batch.loss_mask)
    assert not np.asarray(nll)[unasked].any()
    assert not np.asarray(is_top)[unasked].any()


def _batch_of(examples):
    kept = []
    run(examples, place=lambda batch: kept.append(batch) or batch)
    return kept[0]


def test_each_context_length_has_examples_of_its_own():
    result = run(NEEDLE, EvalConfig(context_length=(12, 0, 24)))
    assert [one.context_length for one in result.by_context] == [12, CONTEXT, 24]
    assert result.context_length == 24
    assert set(result.records.position.tolist()) == {23}
    assert set(result.by_context[0].records.position.tolist()) == {11}


def test_the_result_has_the_documented_keys():
    values = run(MQAR, EvalConfig(context_length=(16, 20))).to_dict(step=3)
    keys = {
        "loss", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "by_position", "stride",
        "context_length", "bos", "accuracy", "by_distance", "by_num_pairs", "step",
    }  # fmt: skip
    assert set(values) == keys | {"by_context"}
    assert set(values["by_context"][0]) == keys
    assert set(values["by_distance"][0]) == {"distance", "accuracy", "num"}
    assert set(values["by_num_pairs"][0]) == {"num_pairs", "accuracy", "num"}
    assert (values["bits_per_byte"], values["num_bytes"]) == (None, None)


def test_a_stop_ends_without_a_result_and_progress_counts_batches():
    heard = []
    config = EvalConfig(batch_size=8)
    run(NEEDLE, config, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    asked = iter([False, True])
    assert run(NEEDLE, config, should_stop=lambda: next(asked)) is None


def test_a_length_that_the_task_does_not_fit_is_refused():
    with pytest.raises(ConfigError) as caught:
        run(NEEDLE, EvalConfig(context_length=(10,)))
    assert caught.value.key == "eval.context_length"


def test_the_table_shows_accuracy_and_joins_many_distances():
    about = {"step": 12, "config": "configs/tiny.py"}
    shown = report.table(run(NEEDLE), **about)
    for piece in ("accuracy", "distance", "pairs", "questions", "\n              9 "):
        assert piece in shown
    assert "bytes" not in shown
    many = dataclasses.replace(NEEDLE.config, distances=tuple(range(1, 15)))
    result = run(dataclasses.replace(NEEDLE, config=many))
    assert len(result.by_distance) == 14
    lines = report.table(result, **about).splitlines()
    row = next(line for line in lines if line.split()[:2] == ["[4,", "8)"])
    inside = (result.records.distance >= 4) & (result.records.distance < 8)
    share = f"{result.records.correct[inside].mean():.2%}"
    assert row.split()[2:] == [share, str(inside.sum())]
    assert "accuracy" in report.table(run(MQAR, EvalConfig(context_length=(16, 20))), **about)
