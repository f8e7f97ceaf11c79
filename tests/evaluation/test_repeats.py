"""Repeated bigrams by distance against a count over all earlier tokens; raw rows on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.held_out import evaluate
from hybrid.evaluation.repeats import repeat_distances
from hybrid.evaluation.token_records import TokenRecords, load_records, save_records
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores

CONTEXT, BOS, PAD, EOS = 16, 30, 31, 29
MODEL = ModelConfig(vocab_size=32)


def brute_force(tokens, targets, segment_ids):
    found = np.zeros_like(tokens)
    for row, column in np.ndindex(tokens.shape):
        for earlier in range(column - 1, -1, -1):
            same = (
                tokens[row, earlier] == tokens[row, column]
                and targets[row, earlier] == targets[row, column]
                and segment_ids[row, earlier] == segment_ids[row, column] != 0
            )
            if same:
                found[row, column] = column - earlier
                break
    return found


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 4), length=st.integers(1, 30),
    vocab_size=st.integers(1, 5), scale=st.sampled_from([1, 2**18]),
)  # fmt: skip
def test_distances_equal_those_of_a_search_through_all_earlier_tokens(
    seed, rows, length, vocab_size, scale
):
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, vocab_size, (2, rows, length)).astype(np.int32) * np.int32(
        scale
    )
    segment_ids = np.sort(rng.integers(0, 3, (rows, length)).astype(np.int32), axis=1)[:, ::-1]
    found = repeat_distances(tokens, targets, segment_ids)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, brute_force(tokens, targets, segment_ids))


def documents(bos="document", lengths=(1, 45, 7, 3, 23, 16, 12)):
    rng = np.random.default_rng(1)
    tokens = tuple(np.append(rng.integers(0, 3, n), EOS).astype(np.int32) for n in lengths)
    names = tuple(map(str, range(len(tokens))))
    return EvalDocuments(tokens, None, names, bos, None if bos == "never" else BOS, PAD, "", "")


def nll_of_target(params, batch):
    del params
    return TokenScores(batch.targets + 1.0, None)


DEFAULTS = EvalConfig()


def run(text, config=DEFAULTS):
    return evaluate(MODEL, None, text, config, context_length=CONTEXT, score_fn=nll_of_target)


@pytest.mark.parametrize("bos", ["document", "window", "never"])
@pytest.mark.parametrize("stride", [0, 5])
def test_a_repeat_is_looked_for_in_its_own_window(bos, stride):
    """Window by window from the documented rule, whatever shares a row or batch."""
    text = documents(bos)
    step = stride or (CONTEXT - 1 if bos == "window" else CONTEXT)
    expected, of_document = [], []
    for number, document in enumerate(text.tokens):
        sequence = document.tolist() if bos == "never" else [BOS, *document.tolist()]
        last = start = 0
        while last < len(sequence) - 1:
            window = sequence[start : start + CONTEXT + 1]
            if bos == "window":
                window[0] = BOS
            for end in range(last - start + 1, len(window)):
                bigram = window[end - 1 : end + 1]
                sights = [e for e in range(1, end) if window[e - 1 : e + 1] == bigram]
                expected.append(end - max(sights) if sights else 0)
                of_document.append(number)
            last, start = start + len(window) - 1, start + step
    scores = run(text, EvalConfig(stride=stride, batch_size=2)).records
    assert scores.repeat_distance.tolist() == expected
    assert scores.document.tolist() == of_document
    assert max(expected) > 4


def test_losses_on_repeats_are_means_over_doubling_distances():
    result = run(documents())
    scores = result.records
    for bucket in result.repeats:
        inside = (scores.repeat_distance >= bucket.start) & (scores.repeat_distance < bucket.end)
        assert bucket.num_tokens == inside.sum()
        assert bucket.loss == pytest.approx(scores.nll[inside].mean(), rel=1e-6)
    assert [bucket.start for bucket in result.repeats] == [1, 2, 4, 8]
    assert sum(b.num_tokens for b in result.repeats) == np.count_nonzero(scores.repeat_distance)
    values = result.to_dict()["repeats"]
    assert set(values[0]) == {"start", "end", "loss", "num_tokens"}
    assert result.accuracy is None


def test_text_without_repeats_has_none():
    text = documents(lengths=(1, 1))
    assert run(text).repeats == ()


def test_scores_are_saved_and_read_column_by_column(tmp_path):
    result = run(documents(), EvalConfig(context_length=(8, 16)))
    scores = result.records_by_length
    assert list(scores) == [8, 16]
    scores[32] = TokenRecords(
        nll=np.ones(2, np.float32), position=np.arange(2, dtype=np.int32),
        document=np.zeros(2, np.int32), correct=np.array([True, False]),
        distance=np.array([4, 9], np.int32), num_pairs=np.array([1, 2], np.int32),
    )  # fmt: skip
    save_records(tmp_path / "scores.npz", scores)
    with np.load(tmp_path / "scores.npz") as file:
        assert "8/nll" in file.files
        assert "32/repeat_distance" not in file.files
    found = load_records(tmp_path / "scores.npz")
    assert list(found) == [8, 16, 32]
    for length, of_length in scores.items():
        columns = of_length.columns()
        assert set(found[length].columns()) == set(columns)
        for name, column in columns.items():
            read = getattr(found[length], name)
            np.testing.assert_array_equal(read, column)
            assert read.dtype == column.dtype
    assert {column.dtype for column in scores[8].columns().values()} == {
        np.dtype("float32"), np.dtype("int32"),
    }  # fmt: skip
