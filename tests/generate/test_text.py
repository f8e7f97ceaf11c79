"""Text as it comes: no half character, nothing lost, nothing twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained import tiny_folder

from hybrid.data.tokenizers import ByteTokenizer, load
from hybrid.generate.text import BROKEN, StopTexts, TextStream

TEXT = "naïve 😀 – “é” 漢字 ok"


def fed(stream, ids, step):
    """What comes out piece by piece, the rest last."""
    pieces = [stream.feed(ids[at : at + step]) for at in range(0, len(ids), step)]
    return [*pieces, stream.rest()]


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_bytes_become_whole_characters(step):
    ids = ByteTokenizer().encode(TEXT)
    pieces = fed(TextStream(ByteTokenizer(), ByteTokenizer().encode("before é")), ids, step)
    assert "".join(pieces) == TEXT
    assert not any(BROKEN in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte():
    stream, ids = TextStream(ByteTokenizer()), ByteTokenizer().encode("a😀b")
    assert [stream.feed([token]) for token in ids] == ["a", "", "", "", "😀", "b"]


def test_broken_bytes_come_in_the_end_and_do_not_hold_up_what_follows():
    stream = TextStream(ByteTokenizer())
    assert stream.feed([0xFF]) == ""
    assert stream.feed([ord("x")]) == BROKEN + "x"
    assert stream.feed([0xE2, 0x82]) == ""
    assert stream.rest() == BROKEN
    assert len("".join(stream.feed([0xFF]) for _ in range(40))) >= 28


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30), step=st.integers(1, 5))
def test_any_text_comes_out_as_it_is(text, step):
    ids = ByteTokenizer().encode(text)
    assert "".join(fed(TextStream(ByteTokenizer()), ids, step)) == text


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 258), max_size=40), step=st.integers(1, 5))
def test_any_bytes_come_out_as_decoded_at_once(ids, step):
    assert "".join(fed(TextStream(ByteTokenizer()), ids, step)) == ByteTokenizer().decode(ids)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Byte-level BPE, and SentencePiece-like pieces with bytes as a fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    folder = tiny_folder.write(tmp_path_factory.mktemp("folder"))
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    pieces = ["▁", *"abcdeiknov", "▁ok"]
    vocabulary |= {piece: 257 + at for at, piece in enumerate(pieces)}
    pieced = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    pieced.normalizer = normalizers.Replace(" ", "▁")
    pieced.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    pieced.save(str(path))
    return [load(str(where)) for where in (folder, path)]


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("kind", [0, 1])
def test_tokenizers_of_folders(tokenizers, kind, step):
    tokenizer, text = tokenizers[kind], "naïve 😀😀 ok – é" * 3
    ids = tokenizer.encode(text)
    pieces = fed(TextStream(tokenizer, tokenizer.encode("ab ")), ids, step)
    assert "".join(pieces) == tokenizer.decode(np.asarray(ids))
    assert not any(BROKEN in piece for piece in pieces)


@settings(deadline=None, max_examples=200)
@given(
    text=st.text("ab\n", max_size=20),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    step=st.integers(1, 5),
)
def test_a_text_ends_behind_the_first_stop_however_it_is_cut(text, stops, step):
    finder = StopTexts(stops)
    found = "".join(finder.cut(text[at : at + step]) for at in range(0, len(text), step))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert found == text[: min(ends, default=len(text))]
    assert finder.is_met == bool(ends)
