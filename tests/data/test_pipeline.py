"""From config to batches: the same rows for any number of processes, from any row on."""

import contextlib
import itertools
import json
import os

import numpy as np
import pytest
import tokenizers as hf

from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.config import DataConfig

FIELDS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(30):
        text = rng.integers(0, 256, int(rng.integers(1, 200)), np.uint8)
        (tmp_path / f"{i}.txt").write_bytes(text.tobytes())
    paths = (f"{tmp_path}/*.txt",)
    return DataConfig(source="text", paths=paths, cache_dir=str(tmp_path / "cache"))


def open_rows(config, **keys):
    return pipeline.open_rows(config, **{"context_length": 16, "seed": 0, "vocab_size": 259} | keys)


def take(rows, count, *arguments):
    with contextlib.closing(rows.batches(*arguments)) as batches:
        return list(itertools.islice(batches, count))


def test_batches_are_the_rows_in_order(config):
    rows = open_rows(config)
    batches = take(rows, 3, 5, 4)
    for name in FIELDS:
        got = np.concatenate([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(got, [rows.row(r)[name] for r in range(5, 17)])
    kinds = {name: getattr(batches[0], name).dtype for name in FIELDS}
    assert kinds == dict.fromkeys(FIELDS[:4], np.dtype("int32")) | {"loss_mask": np.dtype(bool)}


def test_any_number_of_processes_gives_the_same_global_batches(config):
    rows = open_rows(config)
    alone = take(rows, 3, 8, 4)
    for count in (2, 4):
        own = [range(4)[index * 4 // count : (index + 1) * 4 // count] for index in range(count)]
        shares = [take(rows, 3, 8, 4, part) for part in own]
        for number, batch in enumerate(alone):
            joined = np.concatenate([share[number].tokens for share in shares])
            np.testing.assert_array_equal(joined, batch.tokens)


def test_a_run_goes_on_from_its_row_number(config):
    rows = open_rows(config)
    whole = take(rows, 8, 0, 4)
    rest = take(open_rows(config), 3, 20, 4)
    for before, after in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(before.tokens, after.tokens)


def test_an_epoch_predicts_every_token_once_and_the_next_is_shuffled_anew(config):
    rows = open_rows(config)
    epochs = [
        [rows.row(r) for r in range(first, first + rows.num_rows)] for first in (0, rows.num_rows)
    ]
    for epoch in epochs:
        assert sum(int(row["loss_mask"].sum()) for row in epoch) == rows.source.shares.predicted
    first, second = ([row["tokens"].tolist() for row in epoch] for epoch in epochs)
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_fingerprint_and_a_seed_decide_the_rows(config):
    rows = open_rows(config)
    again = open_rows(config, seed=1)
    assert again.fingerprint == rows.fingerprint
    assert any((rows.row(r)["tokens"] != again.row(r)["tokens"]).any() for r in range(5))
    others = [
        open_rows(config, context_length=17),
        open_rows(config, split="all"),
        open_rows(DataConfig(**{**vars(config), "bos": "window"})),
        open_rows(DataConfig(**{**vars(config), "cross_document": True})),
    ]
    assert len({other.fingerprint for other in [rows, *others]}) == 5
    held_out = pipeline.open_held_out(config, vocab_size=259)
    assert rows.description.startswith(f"text (train): {30 - len(held_out)} documents")


def test_train_and_eval_hold_all_text(config):
    rows = open_rows(config)
    held_out = pipeline.open_held_out(config, vocab_size=259)
    everything = pipeline.open_held_out(config, vocab_size=259, split="all")
    assert len(everything) == 30
    assert rows.source.shares.predicted == sum(map(len, everything.tokens)) - sum(
        map(len, held_out.tokens)
    )
    assert (held_out.bos, held_out.bos_id, held_out.pad_id) == ("document", 257, 256)


def test_eval_documents_end_with_eos_that_has_no_bytes(config):
    found = pipeline.open_held_out(config, vocab_size=259, split="all")
    for name, tokens, num_bytes in zip(found.names, found.tokens, found.num_bytes, strict=True):
        with open(name, "rb") as file:
            text = file.read()
        assert tokens.tolist() == [*text, 258]
        assert num_bytes.tolist() == [1] * len(text) + [0]


def test_bos_never_leaves_the_first_token_as_context(config):
    never = DataConfig(**{**vars(config), "bos": "never"})
    rows = open_rows(never)
    assert all(257 not in rows.row(r)["tokens"] for r in range(rows.num_rows))
    assert rows.source.shares.predicted < open_rows(config).source.shares.predicted
    assert pipeline.open_held_out(never, vocab_size=259).bos_id is None


def save_words(folder, names):
    """A tokenizer of whole words without BOS, pad or EOS unless `names` holds them."""
    vocab = {name: index for index, name in enumerate(["[UNK]", "a", "b", *names])}
    backend = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    backend.add_special_tokens([name for name in names if name.startswith("<")])
    backend.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def words(folder, names, **keys):
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("a b a", "b b", "a")))
    keys = {"tokenizer": save_words(folder, names), "cache_dir": str(folder / "cache"), **keys}
    return DataConfig(source="jsonl", paths=(str(path),), **keys)


def test_a_tokenizer_without_special_tokens_packs_bare_documents(tmp_path):
    config = words(tmp_path, [])
    rows = open_rows(config, vocab_size=3, split="all", context_length=8)
    row = rows.row(0)
    assert rows.source.shares.predicted == 6 - 3
    assert row["segment_ids"].tolist().count(0) == 2
    assert sorted(row["tokens"][:6].tolist()) == [1, 1, 1, 2, 2, 2]
    found = pipeline.open_held_out(config, vocab_size=3, split="all")
    assert [tokens.tolist() for tokens in found.tokens] == [[1, 2, 1], [2, 2], [1]]
    assert [counts.tolist() for counts in found.num_bytes] == [[1, 2, 2], [1, 2], [1]]
    assert found.bos == "never"


def test_pad_outside_the_models_vocabulary_is_replaced(tmp_path):
    config = words(tmp_path, ["<bos>", "<eos>", "<pad>"])
    rows = open_rows(config, vocab_size=5, split="all")
    assert max(rows.row(0)["tokens"]) == 4
    assert open_rows(config, vocab_size=6, split="all").row(0)["targets"][-1] == 5


def test_an_unknown_word_anywhere_makes_bytes_unknown(tmp_path):
    config = words(tmp_path, [])
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "c"}\n')
    assert pipeline.open_held_out(config, vocab_size=3, split="all").num_bytes is None


@pytest.mark.parametrize(
    ("keys", "arguments", "message"),
    [
        ({}, {"vocab_size": 258}, r"model\.vocab_size: .*258"),
        ({"eval_paths": ("none",)}, {}, r"data\.eval_paths: no such file, got none"),
        ({"tokenizer": "none.json"}, {}, r"data\.tokenizer: no such file, got none.json"),
        ({"bos": "window"}, {"context_length": 1}, r"training\.context_length: must be at least 2"),
    ],
)
def test_wrong_keys_are_refused_before_anything_is_written(config, keys, arguments, message):
    with pytest.raises(ConfigError, match=message):
        open_rows(DataConfig(**{**vars(config), **keys}), **arguments)
    assert not os.path.exists(config.cache_dir)


def test_text_that_is_no_utf8_is_named_where_the_tokenizer_needs_it(config, tmp_path):
    (tmp_path / "t").mkdir()
    keys = {"tokenizer": save_words(tmp_path / "t", [])}
    broken = DataConfig(**{**vars(config), **keys})
    for call in (open_rows, pipeline.open_held_out):
        with pytest.raises(ConfigError, match=r"data\.paths: .*\.txt is not UTF-8 \(byte \d+\)"):
            call(broken, vocab_size=259)
    assert not os.path.exists(config.cache_dir)


def test_text_without_a_token_to_predict_is_refused(tmp_path):
    config = words(tmp_path, [])
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(ConfigError, match=r"data\.paths: the text has no token to predict"):
        open_rows(config, vocab_size=3, split="all")


def blank_words(folder, names, texts):
    config = words(folder, names)
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return config


def test_documents_without_a_token_are_counted_and_skipped(tmp_path):
    config = blank_words(tmp_path, [], ["a b a", " ", "\n", "b b", "  \t "])
    rows = open_rows(config, vocab_size=3, split="all", context_length=8)
    assert rows.source.shares.predicted == 5 - 2
    assert ", 3 without a token skipped; " in rows.description
    found = pipeline.open_held_out(config, vocab_size=3, split="all")
    assert [tokens.tolist() for tokens in found.tokens] == [[1, 2, 1], [2, 2]]
    assert [name.rpartition(":")[2] for name in found.names] == ["1", "4"]
    assert sum(map(sum, found.num_bytes)) == len("a b a" + "b b")
    assert found.description.endswith(", 3 without a token skipped")
    again = open_rows(config, vocab_size=3, split="all", context_length=8)  # from the cache
    assert again.description == rows.description


def test_a_blank_document_with_eos_is_its_eos_and_has_no_bytes(tmp_path):
    config = blank_words(tmp_path, ["<eos>"], ["a b", "  "])
    found = pipeline.open_held_out(config, vocab_size=4, split="all")
    assert [tokens.tolist() for tokens in found.tokens] == [[1, 2, 3], [3]]
    assert [counts.tolist() for counts in found.num_bytes] == [[1, 2, 0], [0]]
    bare = found.without_eos()
    assert [tokens.tolist() for tokens in bare.tokens] == [[1, 2], []]
    assert [counts.tolist() for counts in bare.num_bytes] == [[1, 2], []]
    assert bare.without_eos() is bare


def test_a_text_that_is_all_blank_is_refused_as_such(tmp_path):
    config = blank_words(tmp_path, [], [" ", "\n"])
    for call in (open_rows, pipeline.open_held_out):
        with pytest.raises(ConfigError, match=r"^data\.paths: the text has no token to predict"):
            call(config, vocab_size=3, split="all")
    assert not os.path.exists(config.cache_dir)
    (tmp_path / "y.jsonl").write_text('{"text": "a b"}\n')
    swapped = {"paths": (f"{tmp_path}/y.jsonl",), "eval_paths": config.paths}
    with pytest.raises(ConfigError, match=r"^data\.eval_paths: the text has no token to predict"):
        pipeline.open_held_out(DataConfig(**{**vars(config), **swapped}), vocab_size=3)


def test_one_file_is_enough_to_train_and_evaluate(tmp_path):
    text = b"".join(b"line %d of a book\n" % i for i in range(200))
    (tmp_path / "book.txt").write_bytes(text)
    keys = {"paths": (f"{tmp_path}/book.txt",), "cache_dir": str(tmp_path / "cache")}
    config = DataConfig(source="text", **keys)
    rows, held_out = open_rows(config), pipeline.open_held_out(config, vocab_size=259)
    stored = rows.source.store.shard("train", 0)
    trained = stored.tokens(1, stored.num_tokens - 1).astype(np.uint8).tobytes()
    assert trained + held_out.tokens[0][:-1].astype(np.uint8).tobytes() == text
    assert "bytes of the one document" in rows.description


def test_read_ahead_ends_when_it_is_closed(config):
    batches = open_rows(config).batches(0, 2)
    next(batches)
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
