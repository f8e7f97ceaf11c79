"""Stores of tokens: what is written comes back, by any way, and damage is named."""

import concurrent.futures
import dataclasses
import gzip
import os
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import ENCODER, TEXTS, content, make, of_store, open_rows

from hybrid import prepare as command
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.config import DataConfig
from hybrid.data.sources import Document
from hybrid.data.store import manifest, shard
from hybrid.data.store.encode import Asked, Encoder, encoded
from hybrid.data.tokenizers import ByteTokenizer

# --- What is in it -------------------------------------------------------------------------------


def test_a_store_holds_every_document_once_in_order(store, source):
    opened = manifest.read(store, "--output")
    found = {}
    for split in ("train", "eval"):
        about = opened.manifest.split(split)
        assert len(about.shards) > 2
        found[split] = []
        for number, one in enumerate(about.shards):
            part = opened.shard(split, number)
            ends = np.append(part.starts[1:], part.num_tokens).tolist()
            pieces = [part.tokens(a, b) for a, b in zip(part.starts.tolist(), ends, strict=True)]
            assert {(piece[0], piece[-1]) for piece in pieces} == {(257, 258)}
            found[split] += [piece[1:-1].astype(np.uint8).tobytes() for piece in pieces]
            assert one.num_tokens == part.num_tokens
            assert part.array("num_bytes").sum() == one.num_bytes
            assert one.num_predicted == one.num_tokens - one.num_documents
    assert [text for text in TEXTS if text in found["train"]] == found["train"]
    assert [text for text in TEXTS if text in found["eval"]] == found["eval"]
    assert sorted(found["train"] + found["eval"]) == sorted(TEXTS)
    assert 8 < len(found["eval"]) < 50
    names = opened.shard("train", 0).names(0, 2)
    assert all(pathlib.Path(name.rpartition(":")[0]).is_file() for name in names)
    assert opened.manifest.train.num_empty + opened.manifest.eval.num_empty == 1


def test_training_on_a_store_is_training_on_its_text(store, source, tmp_path):
    """The same documents are held out, and the same tokens predicted; rows differ in order."""
    small = dataclasses.replace(source, cache_dir=str(tmp_path))
    stored, direct = open_rows(of_store(store)), open_rows(small)
    held_out = pipeline.open_held_out(of_store(store), vocab_size=259)
    expected = pipeline.open_held_out(small, vocab_size=259)
    assert list(held_out.names) == list(expected.names)
    for one, other in zip(held_out.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(held_out.num_bytes, expected.num_bytes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert held_out.lengths == expected.lengths

    def predicted(rows):
        found = (rows.row(r) for r in range(rows.num_rows))
        return sorted(np.concatenate([row["targets"][row["loss_mask"]] for row in found]))

    assert predicted(stored) == predicted(direct)
    assert stored.source.shares.predicted == len(predicted(stored))
    assert stored.fingerprint == open_rows(of_store(store)).fingerprint


@pytest.mark.parametrize("packing", ["best_fit", "document"])
def test_whole_documents_come_from_every_shard(store, tmp_path, packing):
    config = of_store(store, packing=packing, cache_dir=str(tmp_path))
    rows, again = open_rows(config, context_length=150), open_rows(config, context_length=150)
    assert "of the text left out" not in rows.description
    found = [rows.row(r) for r in range(rows.num_rows)]
    assert sum(row["loss_mask"].sum() for row in found) == rows.source.shares.predicted
    starts = sum(int((row["tokens"] == 257).sum()) for row in found)
    assert starts == manifest.read(store, "").manifest.train.total("num_documents")
    np.testing.assert_array_equal(again.row(5)["tokens"], rows.row(5)["tokens"])
    short = open_rows(config, context_length=40)
    assert ("of the text left out" in short.description) == (packing == "document")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_any_stretch_of_an_array_comes_back(tmp_path_factory, data):
    size = data.draw(st.sampled_from([1, 7, 40_000]))
    rng = np.random.default_rng(size)
    is_predicted = rng.random(size) < 0.5
    arrays = {
        "tokens": rng.integers(0, 60_000, size).astype(np.uint16),
        "starts": np.array([0]),
        "predicted": np.packbits(is_predicted),
    }
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    opened = shard.Shard(path, shard.write(path, arrays))
    for _ in range(4):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))
        np.testing.assert_array_equal(opened.tokens(start, stop), arrays["tokens"][start:stop])
        np.testing.assert_array_equal(opened.predicted(start, stop), is_predicted[start:stop])


# --- On several cores, and stopped ---------------------------------------------------------------


def test_processes_give_the_same_tokens_in_the_same_order():
    documents = [Document(f"{n}", text * 3000) for n, text in enumerate(TEXTS[:12])]
    documents[3] = dataclasses.replace(documents[3], predicted=((5, 9),))
    asked = [Asked(document, n % 3 == 0, n) for n, document in enumerate(documents)]
    alone, shared = (list(encoded(asked, ENCODER, workers)) for workers in (0, 2))
    assert [one.about for one, _ in shared] == list(range(12))
    for (_, one), (_, other) in zip(alone, shared, strict=True):
        for name in ("ids", "num_bytes", "predicted"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert shared[3][1].predicted.sum() == 4
    with pytest.raises(ConfigError, match=r"data\.paths: bad is not UTF-8 \(byte 2\)"):
        list(encoded([Asked(Document("bad", b"ab\xff"), False)], Encoder(Utf8(), 257, 258), 1))


class Utf8(ByteTokenizer):
    """Refuses what is no UTF-8, as tokenizers of text do."""

    def encode(self, text):
        text.decode()
        return super().encode(text)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 17, 60, 119])
def test_a_store_that_was_stopped_ends_with_the_same_bits(source, store, tmp_path, at):
    calls = 0

    def stop(progress):
        nonlocal calls
        assert 0 < progress.done <= progress.total
        calls += 1
        if calls == at:
            raise Stop

    with pytest.raises(Stop):
        make(source, tmp_path / "s", progress=stop)
    assert not (tmp_path / "s" / "manifest.json").exists()
    with pytest.raises(ConfigError, match=r"data\.paths: holds no finished store"):
        open_rows(of_store(tmp_path / "s"))
    torn = tmp_path / "s" / "journal.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"place": [0, 1')
    (tmp_path / "s" / "train-00777.safetensors").write_bytes(b"of a round that was not counted")
    make(source, tmp_path / "s")
    assert content(tmp_path / "s") == content(store)
    make(source, tmp_path / "s", progress=lambda _: pytest.fail("is finished"))


# --- Wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [40, 2500, -200])
def test_a_damaged_shard_is_named_before_its_tokens_are_used(store, tmp_path, place):
    damaged = tmp_path / "s"
    shutil.copytree(store, damaged)
    path = damaged / "train-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    message = r"data\.paths: shard .*train-00001\.safetensors is damaged"
    with pytest.raises(ConfigError, match=message):
        manifest.read(damaged, "").verify()
    rows = open_rows(of_store(damaged))
    with pytest.raises(ConfigError, match=message):
        list(map(rows.row, range(rows.num_rows)))


def test_a_cut_shard_and_a_changed_manifest_are_named(store, tmp_path):
    damaged = tmp_path / "s"
    shutil.copytree(store, damaged)
    path = damaged / "eval-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"eval-00000\.safetensors is damaged"):
        manifest.read(damaged, "").verify()
    path.unlink()
    with pytest.raises(ConfigError, match=r"eval-00000\.safetensors is damaged: can't be read"):
        manifest.read(damaged, "").verify()
    about = damaged / "manifest.json"
    for change, message in (
        (('"num_tokens": ', '"num_tokens": 1'), r"data\.paths: .*manifest\.json is damaged"),
        (('"format": 1', '"format": 9'), r"data\.paths: .*is a store of another format, got 9"),
        (('"format"', '"format'), r"data\.paths: .*manifest\.json can't be read"),
    ):
        about.write_text((store / "manifest.json").read_text().replace(*change, 1))
        with pytest.raises(ConfigError, match=message):
            open_rows(of_store(damaged))


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (gzip.compress(b'{"text": "abc"}\n' * 500)[:-20], {}, r"data\.paths: can't be read"),
        (b'{"text": "abc"}\n' * 50 + b'{"txt": 1}\n', {}, r"data\.text_field: .*line 51 has no"),
        (b'{"text": "abc"}\n' * 50, {"source": "parquet"}, r"data\.paths: can't be read as par"),
        (b'{"text": "abc"}\n', {}, r"data\.eval_fraction: leaves no document to"),
        (b'{"text": ""}\n', {}, r"data\.paths: no text in these files"),
        (b"", {"source": "mqar", "paths": ()}, r"data\.source: has no text to prepare"),
    ],
    ids=["cut gzip", "field missing", "no parquet", "one document", "no text", "a task"],
)
def test_wrong_input_leaves_nothing(tmp_path, content, keys, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    config = DataConfig(**{"source": "jsonl", "paths": (f"{tmp_path}/x.jsonl",), **keys})
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match=message):
        make(config, tmp_path / "s", shard_tokens=50)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_holds_something_else_is_refused(source, store, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--output: must be new or an empty folder"):
        make(source, tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    before = content(store)
    for config in (dataclasses.replace(source, eval_fraction=0.3), DataConfig()):
        with pytest.raises(ConfigError, match=r"--output: holds a store"):
            make(config, store)
    assert content(store) == before


def test_another_tokenizer_or_policy_than_the_stores_is_refused(store, tmp_path):
    wrong = str(tmp_path / "tokenizer.json")
    hf.Tokenizer(hf.models.WordLevel({"<bos>": 0, "<eos>": 1, "?": 2}, unk_token="?")).save(wrong)
    for keys, message in (
        ({"tokenizer": wrong}, r"data\.tokenizer: is not the tokenizer of the store"),
        ({"bos": "never"}, r"data\.bos: differs from the store's"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_rows(of_store(store, **keys))
    with pytest.raises(ConfigError, match=r"model\.vocab_size: is too small"):
        open_rows(of_store(store), vocab_size=200)
    with pytest.raises(ConfigError, match=r"paths: must name one store"):
        DataConfig(source="prepared", paths=("a", "b"))
    with pytest.raises(ConfigError, match=r"eval_paths: is set although"):
        DataConfig(source="prepared", paths=("a",), eval_paths=("b",))


def test_the_command_prepares_verifies_and_refuses(source, tmp_path, capsys):
    words = ["--config=configs/tiny.py", f"--output={tmp_path}/s", "--workers=0"]
    words += ["--config.data.source=jsonl", f"--config.data.paths={source.paths[0]}"]
    assert command.main(words) == 0
    assert "tokens of" in capsys.readouterr().out
    assert command.main([*words, "--verify"]) == 0
    assert capsys.readouterr().out.startswith("whole: ")
    path = tmp_path / "s" / "train-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert command.main([*words, "--verify"]) == 2
    assert "train-00000.safetensors is damaged" in capsys.readouterr().err
    for wrong, message in (
        ("--workers=-2", "error: --workers: must be at least -1, got -2"),
        ("--shard_tokens=0", "error: --shard_tokens: must be at least 1, got 0"),
        (f"--output={tmp_path}/none", "error: --output: holds no finished store"),
    ):
        assert command.main([*words, "--verify", wrong]) == 2
        assert message in capsys.readouterr().err


# --- Lists of rows -------------------------------------------------------------------------------


def test_a_list_of_rows_that_is_damaged_is_made_anew_or_named(store, tmp_path):
    config = of_store(store, packing="best_fit", cache_dir=str(tmp_path))
    rows = open_rows(config)
    (folder,) = tmp_path.glob("rows-*")
    (folder / "totals.json").write_bytes((folder / "totals.json").read_bytes()[:9])
    assert open_rows(config).fingerprint == rows.fingerprint
    spans = folder / "00000-spans.npy"
    whole = spans.read_bytes()
    for damaged in (b"", whole[:-8] + bytes(8)):
        spans.write_bytes(damaged)
        fresh = open_rows(config)
        with pytest.raises(ConfigError, match=r"data\.cache_dir: holds a damaged list of rows"):
            list(map(fresh.row, range(fresh.num_rows)))


def test_two_that_list_rows_at_once_agree(store, tmp_path):
    config, barrier = of_store(store, packing="document", cache_dir=str(tmp_path)), []

    def start(_):
        barrier.append(1)
        while len(barrier) < 4:
            pass
        return open_rows(config).row(3)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(start, range(4))
    for other in others:
        np.testing.assert_equal(other, first)


@pytest.mark.parametrize("cache_dir", ["file", "file/below", "/proc/none"])
def test_lists_that_cannot_be_kept_are_refused_by_key(store, tmp_path, cache_dir):
    (tmp_path / "file").write_text("")
    config = of_store(store, packing="document", cache_dir=str(tmp_path / cache_dir))
    with pytest.raises(ConfigError, match=r"data\.cache_dir: "):
        open_rows(config)


def test_a_store_within_its_own_source_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    before, folder, file = sorted(os.listdir(tmp_path)), (str(tmp_path),), (f"{tmp_path}/a.txt",)
    for keys in ({"paths": folder}, {"paths": file, "eval_paths": folder}):
        with pytest.raises(ConfigError, match=r"--output: lies in a folder of data\.(eval_)?paths"):
            make(DataConfig(source="text", **keys), tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == before
