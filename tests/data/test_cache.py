"""The token cache is whole or absent, whoever writes it and whatever interrupts."""

import concurrent.futures
import dataclasses
import os

import numpy as np
import pytest

from hybrid.config import ConfigError
from hybrid.data import cache, pipeline, sources
from hybrid.data.config import DataConfig
from hybrid.data.store.encode import Encoder
from hybrid.data.tokenizers import ByteTokenizer

TEXTS = [bytes([65 + i]) * (100 + i) for i in range(20)]


@pytest.fixture
def documents(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_bytes(text)
    return sources.documents(DataConfig(source="text", paths=(f"{tmp_path}/*.txt",)), "all")


def store(documents, root, *, with_bos=True, vocab_size=259, tokenizer=None, **keys):
    tokenizer = tokenizer or ByteTokenizer()
    encoder = Encoder(tokenizer, 257 if with_bos else None, 258)
    keys = dict(vocab_size=vocab_size, cache_dir=str(root), **keys)
    return cache.token_store(documents, encoder, "train", **keys)


def stream(*arguments, **keys):
    """The one shard of a store."""
    return store(*arguments, **keys).shard("train", 0)


def tokens_of(shard):
    return shard.tokens(0, shard.num_tokens)


class Counting(ByteTokenizer):
    """Counts how often it is asked to tokenize."""

    calls = 0

    def encode_batch(self, texts):
        self.calls += 1
        return super().encode_batch(texts)


def test_the_stream_is_every_document_between_bos_and_eos(documents, tmp_path):
    made = stream(documents, tmp_path / "c")
    ends = [*made.starts[1:], made.num_tokens]
    pieces = [made.tokens(int(a), int(b)) for a, b in zip(made.starts, ends, strict=True)]
    assert {piece[0] for piece in pieces} == {257}
    assert {piece[-1] for piece in pieces} == {258}
    assert sorted(bytes(piece[1:-1].astype(np.uint8)) for piece in pieces) == sorted(TEXTS)
    assert 257 not in tokens_of(stream(documents, tmp_path / "c", with_bos=False))


def test_a_second_run_tokenizes_nothing(documents, tmp_path):
    counting = Counting()
    first = stream(documents, tmp_path / "c", tokenizer=counting)
    second = stream(documents, tmp_path / "c", tokenizer=counting)
    assert counting.calls == 1
    np.testing.assert_array_equal(tokens_of(first), tokens_of(second))
    (tmp_path / "0.txt").write_bytes(b"another text")
    config = DataConfig(source="text", paths=(f"{tmp_path}/*.txt",))
    stream(sources.documents(config, "all"), tmp_path / "c", tokenizer=counting)
    assert counting.calls == 2


@pytest.mark.parametrize("name", ["train-00000.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_made_anew(documents, tmp_path, name, damage):
    expected = tokens_of(stream(documents, tmp_path / "c"))
    (path,) = (tmp_path / "c").glob(f"*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    np.testing.assert_array_equal(tokens_of(stream(documents, tmp_path / "c")), expected)
    assert len(os.listdir(tmp_path / "c")) == 1
    counting = Counting()
    stream(documents, tmp_path / "c", tokenizer=counting)
    assert counting.calls == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupt_leaves_nothing_behind(documents, tmp_path, error):
    def stop(done, total):
        assert 0 < done <= total == documents.num_bytes
        raise error

    with pytest.raises(error):
        stream(documents, tmp_path / "new" / "c", progress=stop)
    assert not (tmp_path / "new").exists()
    stream(documents, tmp_path / "c")
    before = os.listdir(tmp_path / "c")
    with pytest.raises(error):
        stream(documents, tmp_path / "c", with_bos=False, progress=stop)
    assert os.listdir(tmp_path / "c") == before


def test_concurrent_writers_agree(documents, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: stream(documents, tmp_path / "c"), range(8)))
    assert len(os.listdir(tmp_path / "c")) == 1
    for other in made[1:]:
        np.testing.assert_array_equal(tokens_of(other), tokens_of(made[0]))


def test_ids_beyond_the_vocabulary_are_refused_and_nothing_is_written(documents, tmp_path):
    message = r"model\.vocab_size: is too small for the tokenizer's id 258, got 258; at least 259"
    with pytest.raises(ConfigError, match=message):
        stream(documents, tmp_path / "c", vocab_size=258)

    class Odd(ByteTokenizer):
        fingerprint = "odd"

        def encode(self, text):
            return super().encode(text) + 300

    with pytest.raises(ConfigError, match=r"model\.vocab_size: .* id 3\d\d"):
        stream(documents, tmp_path / "c", vocab_size=300, tokenizer=Odd())
    assert not (tmp_path / "c").exists()
    stream(documents, tmp_path / "c", vocab_size=1000, tokenizer=Odd())
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        stream(documents, tmp_path / "c", vocab_size=300, tokenizer=Odd())


def test_what_a_killed_writer_left_goes_after_a_day(documents, tmp_path):
    old, young = tmp_path / "c" / "writing-old", tmp_path / "c" / "writing-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    stream(documents, tmp_path / "c")
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_written_is_refused_by_key(documents, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"data\.cache_dir: is not a folder"):
        stream(documents, tmp_path / "file" / "c")


def test_the_cache_is_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "hybrid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root().parts[-2:] == (".cache", "hybrid")
    assert cache.cache_root("x").is_absolute()


def test_without_a_home_the_cache_needs_a_folder(documents, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does then
    with pytest.raises(ConfigError, match=r"^data\.cache_dir: there is no such home folder"):
        stream(documents, "")
    assert len(stream(documents, tmp_path / "c").starts) == 20


# --- Later starts --------------------------------------------------------------------------------


def opened(config):
    rows = pipeline.open_rows(config, context_length=64, seed=0, vocab_size=259)
    return rows, pipeline.open_held_out(config, vocab_size=259)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").mkdir()
    for i, text in enumerate(TEXTS):
        path = tmp_path / "text" / f"{i}.txt"
        path.write_bytes(text)
        os.utime(path, (1e9, 1e9))
    keys = {"paths": (f"{tmp_path}/text/*.txt",), "cache_dir": str(tmp_path / "c")}
    return DataConfig(source="text", eval_fraction=0.3, **keys)


def test_a_later_start_reads_no_text_and_finds_the_same(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -60.0)  # files made just now count as old
    rows, held_out = opened(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(sources.Files, "read", lambda *_: pytest.fail("read a text"))
        again, held_out_again = opened(corpus)
    assert (again.fingerprint, again.description) == (rows.fingerprint, rows.description)
    assert again.corpus == rows.corpus
    np.testing.assert_array_equal(again.row(3)["tokens"], rows.row(3)["tokens"])
    assert list(held_out_again.names) == list(held_out.names)
    assert held_out_again.identity == held_out.identity
    assert held_out_again.fingerprint == held_out.fingerprint
    assert held_out_again.lengths == held_out.lengths
    for one, other in zip(held_out.tokens, held_out_again.tokens, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(held_out.num_bytes, held_out_again.num_bytes, strict=True):
        np.testing.assert_array_equal(one, other)
    without = held_out_again.without_eos()
    assert [len(tokens) for tokens in without.tokens] == without.lengths
    assert without.lengths == held_out.without_eos().lengths


def test_a_text_of_the_same_size_and_time_that_was_just_written_is_read(corpus, tmp_path):
    rows, _ = opened(corpus)
    path = tmp_path / "text" / "0.txt"
    path.write_bytes(b"B" * len(TEXTS[0]))
    os.utime(path, (1e9, 1e9))
    assert opened(corpus)[0].corpus != rows.corpus


def test_a_note_that_is_damaged_or_whose_store_is_gone_is_no_note(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -60.0)
    rows, _ = opened(corpus)
    for note in (tmp_path / "c").glob("*.json"):
        note.write_text("{")
    assert opened(corpus)[0].fingerprint == rows.fingerprint
    for shard in (tmp_path / "c").glob("*/*.safetensors"):
        shard.unlink()
    assert opened(corpus)[0].fingerprint == rows.fingerprint


@pytest.mark.parametrize("first_is_whole", [True, False])
def test_a_text_that_is_parted_and_one_that_is_not_are_told_apart(
    corpus, tmp_path, monkeypatch, first_is_whole
):
    """The same files, once shared by hash and once all to train on, or all to evaluate on."""
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -60.0)
    (tmp_path / "other.txt").write_bytes(b"other" * 30)
    other = (f"{tmp_path}/other.txt",)
    whole = dataclasses.replace(corpus, eval_paths=other)
    evaluated = dataclasses.replace(corpus, paths=other, eval_paths=corpus.paths)
    found = {}
    for config in (whole, evaluated, corpus) if first_is_whole else (corpus, whole, evaluated):
        rows, held_out = opened(config)
        trained = rows.source.store.manifest.train.total("num_documents")
        found[config] = trained, len(held_out)
    assert found[whole] == (20, 1)
    assert found[evaluated] == (1, 20)
    assert sum(found[corpus]) == 20


def test_documents_are_named_after_the_files_that_are_read(corpus, tmp_path):
    opened(corpus)
    (tmp_path / "text").rename(tmp_path / "moved")
    moved = dataclasses.replace(corpus, paths=(f"{tmp_path}/moved/*.txt",))
    rows, _ = opened(moved)
    names = [name for r in range(rows.num_rows) for name in rows.names(r)]
    assert names
    assert all(os.path.isfile(name) for name in names)
