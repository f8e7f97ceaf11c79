"""Rows hold every token, predict each once, and keep documents apart."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data.cache import TokenStream
from hybrid.data.packing import Packing

PAD, BOS, EOS = 256, 257, 258
DOCUMENTS = st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=8)
POLICIES = st.sampled_from(["document", "window", "never"])


def lay_out(documents, policy):
    """The stream, with document number and place of each of its tokens."""
    bos = [] if policy == "never" else [BOS]
    pieces = [bos + list(document) + [EOS] for document in documents]
    starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
    return pieces, TokenStream(np.concatenate(pieces).astype(np.uint16), starts)


def packed(documents, policy, context_length, cross_document=False):
    pieces, stream = lay_out(documents, policy)
    bos = BOS if policy == "window" else None
    return pieces, Packing(
        stream, context_length, pad_id=PAD, window_bos=bos, cross_document=cross_document
    )


def test_the_drawing_in_the_docstring_is_what_happens():
    hello, world = b"hello", b"world"
    _, rows = packed([hello, world], "document", 5)
    first, second, third = (rows.row(r) for r in range(rows.num_rows))
    assert first["tokens"].tolist() == [BOS, *b"hell"]
    assert first["targets"].tolist() == [*hello]
    assert second["targets"].tolist() == [EOS, BOS, *b"wor"]
    assert second["loss_mask"].tolist() == [True, False, True, True, True]
    assert second["tokens"].tolist() == [ord("o"), EOS, BOS, *b"wo"]
    assert second["segment_ids"].tolist() == [1, 1, 2, 2, 2]
    assert second["positions"].tolist() == [0, 1, 0, 1, 2]
    assert third["targets"].tolist() == [*b"ld", EOS, PAD, PAD]
    assert third["loss_mask"].tolist() == [True, True, True, False, False]
    assert third["segment_ids"].tolist() == [1, 1, 1, 1, 0]
    assert third["positions"].tolist() == [0, 1, 2, 3, 0]


def test_a_window_opens_with_bos_and_does_not_score_the_boundary_again():
    _, rows = packed([b"hello"], "window", 4)
    first, second = rows.row(0), rows.row(1)
    assert rows.num_rows == 2
    assert first["tokens"].tolist() == [BOS, *b"hel"]
    assert first["targets"].tolist() == [*b"hell"]
    assert second["tokens"].tolist() == [BOS, *b"lo", EOS]
    assert second["targets"].tolist() == [*b"lo", EOS, PAD]
    assert second["loss_mask"].tolist() == [False, True, True, False]
    assert second["segment_ids"].tolist() == [1, 1, 1, 1]
    assert second["positions"].tolist() == [0, 1, 2, 3]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(DOCUMENTS, POLICIES, st.integers(2, 12), st.booleans())
def test_every_token_is_predicted_once_in_order(documents, policy, length, cross_document):
    pieces, rows = packed(documents, policy, length, cross_document)
    fields = [rows.row(r) for r in range(rows.num_rows)]
    predicted = [t for row in fields for t in row["targets"][row["loss_mask"]].tolist()]
    assert predicted == [token for piece in pieces for token in piece[1:]]
    assert rows.num_predicted == len(predicted)
    assert all(len(values) == length for row in fields for values in row.values())


@settings(derandomize=True, deadline=None, max_examples=150)
@given(DOCUMENTS, POLICIES, st.integers(2, 12))
def test_segments_are_stretches_of_documents(documents, policy, length):
    """What a predicted token sees in its segment is its own document, right up to it."""
    pieces, rows = packed(documents, policy, length)
    expected = [piece[: end + 1] for piece in pieces for end in range(1, len(piece))]
    seen = []
    for row in (rows.row(r) for r in range(rows.num_rows)):
        for place in np.flatnonzero(row["loss_mask"]):
            same = row["segment_ids"][: place + 1] == row["segment_ids"][place]
            assert row["positions"][place] == same.sum() - 1
            seen.append([*row["tokens"][: place + 1][same].tolist(), int(row["targets"][place])])
    assert len(seen) == len(expected)
    for context, document in zip(seen, expected, strict=True):
        if policy == "window":
            assert context[0] == BOS
            assert BOS not in context[1:]
            context = context[1:]
        assert context == document[-len(context) :]


def test_crossing_documents_makes_a_row_one_segment_and_predicts_the_same():
    _, apart = packed([b"abc", b"de", b"fgh"], "document", 8)
    _, joined = packed([b"abc", b"de", b"fgh"], "document", 8, cross_document=True)
    one, two = apart.row(0), joined.row(0)
    assert two["segment_ids"].tolist() == [1] * 8
    assert two["positions"].tolist() == list(range(8))
    for name in ("tokens", "targets", "loss_mask"):
        np.testing.assert_array_equal(one[name], two[name])
    assert joined.row(1)["segment_ids"].tolist()[-2:] == [0, 0]


def test_documents_come_back_from_the_rows():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, n).tolist() for n in rng.integers(0, 300, 40)]
    pieces, rows = packed(documents, "document", 64)
    stream = [rows.row(0)["tokens"][0]]
    for row in (rows.row(r) for r in range(rows.num_rows)):
        stream += row["targets"].tolist()
    joined = [token for piece in pieces for token in piece]
    assert stream[: len(joined)] == joined
    assert set(stream[len(joined) :]) <= {PAD}
