"""Rows hold every token, predict each once, and keep documents apart."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data.packing import Layout, Packing, TokenStream

PAD, BOS, EOS = 256, 257, 258
DOCUMENTS = st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=8)
POLICIES = st.sampled_from(["document", "window", "never"])


def lay_out(documents, policy):
    """The stream, with document number and place of each of its tokens."""
    bos = [] if policy == "never" else [BOS]
    pieces = [bos + list(document) + [EOS] for document in documents]
    starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
    return pieces, TokenStream(np.concatenate(pieces).astype(np.uint16), starts)


def packed(documents, policy, context_length, cross_document=False, packing="stream"):
    pieces, stream = lay_out(documents, policy)
    bos = BOS if policy == "window" else None
    layout = Layout(context_length, PAD, packing, window_bos=bos, cross_document=cross_document)
    return pieces, Packing(stream, layout)


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
    assert first["targets"].tolist() == [*b"hel", PAD]
    assert second["tokens"].tolist() == [BOS, *b"llo"]
    assert second["targets"].tolist() == [*b"llo", EOS]
    assert second["loss_mask"].tolist() == [False, True, True, True]
    assert second["segment_ids"].tolist() == [1, 1, 1, 1]
    assert second["positions"].tolist() == [0, 1, 2, 3]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(DOCUMENTS, POLICIES, st.integers(2, 12), st.booleans())
def test_every_token_is_predicted_once_in_order(documents, policy, length, cross_document):
    pieces, rows = packed(documents, policy, length, cross_document)
    fields = [rows.row(r) for r in range(rows.num_rows)]
    predicted = [t for row in fields for t in row["targets"][row["loss_mask"]].tolist()]
    assert predicted == [token for piece in pieces for token in piece[1:]]
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


# --- Whole documents -----------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=150)
@given(DOCUMENTS, POLICIES, st.integers(2, 12))
def test_best_fit_cuts_only_what_is_longer_than_a_row_and_loses_nothing(documents, policy, length):
    pieces, rows = packed(documents, policy, length, packing="best_fit")
    fields = [rows.row(r) for r in range(rows.num_rows)]
    predicted = [t for row in fields for t in row["targets"][row["loss_mask"]].tolist()]
    assert sorted(predicted) == sorted(token for piece in pieces for token in piece[1:])
    whole = [piece for piece in pieces if 1 < len(piece) <= length + 1]
    found = []
    for row in fields:
        tokens = np.append(row["tokens"], row["targets"][-1:])
        segments = np.append(row["segment_ids"], row["segment_ids"][-1:])
        found += [tokens[segments == s].tolist() for s in range(1, segments.max() + 1)]
    for piece in whole:
        assert any(piece == segment[: len(piece)] for segment in found)
    lengths = [min(len(piece), length + 1) for piece in pieces if len(piece) > 1]
    if max(lengths) <= length and policy != "window":  # best fit decreasing's bound on bins
        assert rows.num_rows <= 2 * -(-sum(lengths) // (length + 1))


def test_best_fit_fills_rows_that_a_stream_would_cut():
    _, rows = packed([b"abcdef", b"ab", b"abc", b"abcd"], "document", 9, packing="best_fit")
    segments = [rows.row(r)["segment_ids"].tolist() for r in range(rows.num_rows)]
    assert segments == [[1] * 8 + [0], [1] * 4 + [2] * 5, [1] * 5 + [0] * 4]


def test_a_row_a_document_leaves_out_what_is_too_long():
    _, rows = packed([b"abc", b"abcdefgh", b""], "document", 5, packing="document")
    fields = [rows.row(r) for r in range(rows.num_rows)]
    assert [row["targets"].tolist() for row in fields] == [
        [*b"abc", EOS, PAD], [*b"abcde"], [EOS, PAD, PAD, PAD, PAD]]  # fmt: skip
    assert [int(row["loss_mask"].sum()) for row in fields] == [4, 5, 1]
    assert all(row["segment_ids"].max() == 1 for row in fields)


def test_what_a_mask_leaves_out_is_context_alone():
    _, stream = lay_out([b"question", b"answer"], "document")
    is_predicted = np.isin(stream.held, [*b"qs"])
    rows = Packing(TokenStream(stream.held, stream.starts, is_predicted), Layout(20, PAD))
    row = rows.row(0)
    assert bytes(row["targets"][row["loss_mask"]].astype(np.uint8)) == b"qss"
    np.testing.assert_array_equal(row["tokens"][:18], stream.held[:18])
