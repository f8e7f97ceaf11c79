"""Every token is predicted once, in the right window, wherever packing puts it. No model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError
from hybrid.evaluation import windows
from hybrid.evaluation.config import EvalConfig

BOS, PAD = 1000, 1001
BOS_POLICIES = ("document", "window", "never")


def make_documents(lengths):
    """Documents whose tokens say which document and place they are."""
    return [100 * i + np.arange(n, dtype=np.int32) % 100 for i, n in enumerate(lengths)]


@st.composite
def cases(draw):
    context = draw(st.integers(2, 12))
    return {
        "lengths": draw(st.lists(st.integers(0, 40), min_size=1, max_size=6)),
        "context_length": context,
        "stride": draw(st.integers(0, context)),
        "bos": draw(st.sampled_from(BOS_POLICIES)),
        "max_tokens": draw(st.sampled_from([0, 0, 1, 7, 30])),
        "batch_size": draw(st.sampled_from([0, 1, 3])),
        "batch_multiple": draw(st.sampled_from([1, 2])),
    }


def scored(case):
    """(document, its token index, inputs of the segment up to the predicting one, target)
    of every predicted token, by its place in the input order; read off the batches alone."""
    documents = make_documents(case["lengths"])
    packed = windows.pack_windows(
        case["lengths"], **{k: v for k, v in case.items() if k != "lengths"}
    )
    found = {}
    for batch, pieces in windows.batches(packed, documents, BOS, PAD):
        assert batch.tokens.shape == (packed.batch_size, packed.row_length)
        counted = 0
        for window, row, column in pieces:
            for i in range(window.first, window.length):
                assert batch.loss_mask[row, column + i]
                inputs = batch.tokens[row, column : column + i + 1]
                place = window.offset + i - window.first
                assert place not in found
                found[place] = (inputs, int(batch.targets[row, column + i]), window)
                counted += 1
        assert counted == batch.loss_mask.sum()
    return packed, documents, [found[place] for place in sorted(found)]


def expected_targets(case, documents):
    skip = 1 if case["bos"] == "never" else 0
    targets = [int(token) for document in documents for token in document[skip:]]
    return targets[: case["max_tokens"]] if case["max_tokens"] else targets


SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


@SETTINGS
@given(cases())
def test_every_token_is_predicted_once_in_input_order(case):
    packed, documents, found = scored(case)
    assert [target for _, target, _ in found] == expected_targets(case, documents)
    assert packed.num_tokens == len(found)


@SETTINGS
@given(cases())
def test_inputs_are_the_text_before_the_target(case):
    _, documents, found = scored(case)
    for inputs, target, window in found:
        document = documents[window.document].tolist()
        before = document[: document.index(target)]
        if case["bos"] == "window" or (case["bos"] == "document" and window.start == 0):
            assert inputs[0] == BOS
            inputs = inputs[1:]
        assert inputs.tolist() == before[len(before) - len(inputs) :]


@SETTINGS
@given(cases())
def test_context_is_at_least_context_length_minus_stride(case):
    _, documents, found = scored(case)
    stride = case["stride"] or case["context_length"]
    for inputs, target, window in found:
        there = documents[window.document].tolist().index(target) + (case["bos"] != "never")
        assert len(inputs) >= min(there, case["context_length"] - stride, case["context_length"])
        assert len(inputs) <= case["context_length"]


@SETTINGS
@given(cases())
def test_windows_of_a_row_are_segments_with_positions_from_0(case):
    documents = make_documents(case["lengths"])
    packed = windows.pack_windows(
        case["lengths"], **{k: v for k, v in case.items() if k != "lengths"}
    )
    for batch, pieces in windows.batches(packed, documents, BOS, PAD):
        covered = np.zeros(batch.tokens.shape, int)
        for window, row, column in pieces:
            span = slice(column, column + window.length)
            covered[row, span] += 1
            assert batch.positions[row, span].tolist() == list(range(window.length))
            assert len(set(batch.segment_ids[row, span].tolist())) == 1
        assert covered.max(initial=0) <= 1
        assert np.array_equal(batch.segment_ids > 0, covered == 1)
        segments = [(row, batch.segment_ids[row, column]) for _, row, column in pieces]
        assert len(set(segments)) == len(segments)


def test_without_a_stride_windows_share_only_their_boundary_token():
    packed = windows.pack_windows([9], context_length=4)
    spans = sorted((w.start, w.length, w.first) for row in packed.rows for w in row)
    assert spans == [(0, 4, 0), (4, 4, 0), (8, 1, 0)]


def test_a_later_window_under_bos_window_is_bos_then_the_boundary_token():
    document = np.arange(10, 17, dtype=np.int32)
    packed = windows.pack_windows([7], context_length=4, bos="window", batch_size=1)
    batch, pieces = list(windows.batches(packed, [document], BOS, PAD))[1]
    assert pieces[0].window == windows.Window(0, 3, 4, 1, 4, 3)
    assert batch.tokens.tolist() == [[BOS, 13, 14, 15]]
    assert batch.targets.tolist() == [[13, 14, 15, 16]]
    assert batch.loss_mask.tolist() == [[False, True, True, True]]


def test_packing_wastes_little_on_documents_of_very_different_length():
    lengths = np.random.default_rng(0).lognormal(6, 1.5, 200).astype(int).tolist()
    packed = windows.pack_windows(lengths, context_length=256)
    columns = packed.num_batches * packed.batch_size * packed.row_length
    assert columns < 1.06 * packed.num_tokens


def test_rows_are_as_short_as_the_text_allows():
    assert windows.pack_windows([5, 9], context_length=4096).row_length == 16
    assert windows.pack_windows([5, 9], context_length=12).row_length == 12


def test_batches_fit_the_devices():
    packed = windows.pack_windows([1000], context_length=8, batch_multiple=4)
    assert packed.batch_size % 4 == 0
    assert (
        windows.pack_windows([1000], context_length=8, batch_size=3, batch_multiple=4).batch_size
        == 4
    )


def test_lengths_resolve_to_trainings_in_the_order_given():
    assert EvalConfig(context_length=(512, 0, 64)).lengths(128) == (512, 128, 64)
    assert EvalConfig(context_length=(512, 0)).first_length_only().context_length == (512,)


@pytest.mark.parametrize(
    ("act", "key"),
    [
        (lambda: EvalConfig(stride=65).lengths(64), "eval.stride"),
        (lambda: EvalConfig(stride=65, context_length=(128, 64)).lengths(256), "eval.stride"),
        (lambda: EvalConfig(context_length=()), "context_length"),
        (lambda: windows.pack_windows([4], context_length=4, stride=5), "eval.stride"),
        (lambda: windows.pack_windows([4], context_length=1, bos="window"), "eval.context_length"),
    ],
)
def test_impossible_windows_are_refused_by_key(act, key):
    with pytest.raises(ConfigError) as caught:
        act()
    assert caught.value.key == key
