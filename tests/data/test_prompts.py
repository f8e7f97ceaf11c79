"""Prompts with completions: which text they are, and what of it is predicted."""

import dataclasses
import json

import numpy as np
import pytest
from data import chat_folder
from data.chat_folder import GEMMA_3, held_out, lines, open_rows, said

from hybrid.config import ConfigError
from hybrid.data import cache, pipeline, sources
from hybrid.data.config import DataConfig
from hybrid.data.store.prepare import prepare

PAIRS = [("ab", "cd"), ("e", ""), ("", "fgh"), ("Größe? ", "2 €"), ("long prompt " * 3, "x")]
BYTE_BOS, BYTE_EOS, BYTE_PAD = 257, 258, 256


@pytest.fixture
def pairs(tmp_path):
    path = lines(tmp_path, [{"prompt": p, "answer": a} for p, a in PAIRS])
    keys = {"completion_field": "answer", "cache_dir": str(tmp_path / "cache")}
    return DataConfig(source="jsonl", paths=(path,), eval_paths=(path,), **keys)


def by_hand(prompt, completion):
    """Tokens of a document, and whether each is predicted."""
    context, answer = prompt.encode(), completion.encode()
    tokens = [BYTE_BOS, *context, *answer, BYTE_EOS]
    return tokens, [False] * (1 + len(context)) + [True] * (len(answer) + 1)


# --- Prompts with completions --------------------------------------------------------------------


def test_a_documents_mask_is_the_one_made_by_hand(pairs):
    found = held_out(pairs)
    for number, pair in enumerate(PAIRS):
        tokens, mask = by_hand(*pair)
        assert found.tokens[number].tolist() == tokens[1:]
        assert found.predicted[number].tolist() == mask[1:]


@pytest.mark.parametrize("packing", ["stream", "best_fit", "document"])
@pytest.mark.parametrize("bos", ["document", "window", "never"])
def test_every_packing_predicts_the_completions_and_their_ends_alone(pairs, packing, bos):
    """What each place reads and predicts is read off the rows and compared to a hand-made mask."""
    rows = open_rows(dataclasses.replace(pairs, packing=packing, bos=bos), context_length=48)
    found = []
    for number in range(rows.num_rows):
        row = rows.source.row(number)
        assert not row["loss_mask"][row["segment_ids"] == 0].any()
        found += row["targets"][row["loss_mask"]].tolist()
    skipped = int(bos == "never")  # a document's first token is context
    wanted = []
    for pair in PAIRS:
        tokens, mask = (values[1:][skipped:] for values in by_hand(*pair))
        wanted += [t for t, is_predicted in zip(tokens, mask, strict=True) if is_predicted]
    assert sorted(found) == sorted(wanted)
    assert rows.source.shares.predicted == len(wanted)


def test_one_packed_row_is_the_one_written_by_hand(tmp_path):
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": ""}]
    path = lines(tmp_path, rows)
    keys = {"prompt_field": "prompt", "packing": "best_fit", "cache_dir": str(tmp_path / "c")}
    config = DataConfig(source="jsonl", paths=(path,), eval_paths=(path,), **keys)
    row = open_rows(config, context_length=10).row(0)
    a, b, c, d, e = b"abcde"
    assert row["tokens"].tolist() == [BYTE_BOS, a, b, c, d, BYTE_EOS, BYTE_BOS, e, BYTE_EOS, 256]
    assert row["segment_ids"].tolist() == [1] * 6 + [2] * 3 + [0]
    assert row["positions"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0]
    predicted = np.flatnonzero(row["loss_mask"]).tolist()
    assert predicted == [2, 3, 4, 7]
    assert row["targets"][predicted].tolist() == [c, d, BYTE_EOS, BYTE_EOS]


def test_predict_all_is_the_same_text_predicted_whole(pairs, tmp_path):
    plain = [{"text": prompt + answer} for prompt, answer in PAIRS]
    path = lines(tmp_path, plain, "plain.jsonl")
    keys = {
        "source": "jsonl",
        "paths": (path,),
        "eval_paths": (path,),
        "cache_dir": pairs.cache_dir,
    }
    whole = open_rows(dataclasses.replace(pairs, predict="all"))
    assert whole.fingerprint == open_rows(DataConfig(**keys)).fingerprint
    assert whole.fingerprint != open_rows(pairs).fingerprint
    assert whole.source.shares.predicted > open_rows(pairs).source.shares.predicted


@pytest.mark.parametrize("source", ["parquet", "datasets"])
def test_tables_give_the_same_documents_as_lines(source, chat_home, talk, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    chats = [said("Hi", "What is it?"), said("a", "b", "c", "d", system="s"), []]
    of_lines = talk(*chats)
    rows = [
        {"messages": messages, "prompt": f"{n}?", "answer": "a" * n}
        for n, messages in enumerate(chats)
    ]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / f"x.{source}"
    if source == "parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    config = dataclasses.replace(of_lines, source=source, paths=(str(path),))
    assert [d.text for d in sources.documents(config, "all")] == [
        d.text for d in sources.documents(of_lines, "all")
    ]
    keys = {"messages_field": "", "completion_field": "answer", "tokenizer": "byte"}
    found = list(sources.documents(dataclasses.replace(config, **keys), "all"))
    assert [(d.text, d.predicted) for d in found] == [
        (b"0?", ((2, 2),)),
        (b"1?a", ((2, 3),)),
        (b"2?aa", ((2, 4),)),
    ]
    other = dataclasses.replace(config, **keys, prompt_field="question")
    with pytest.raises(ConfigError, match=r"^data\.prompt_field: .*no such field, got question"):
        sources.documents(other, "all")


# --- Keys and caches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"source": "text", "prompt_field": "prompt"}, "prompt_field"),
        ({"source": "prepared", "messages_field": "messages"}, "messages_field"),
        ({"prompt_field": "a", "text_field": "b"}, "text_field"),
        ({"messages_field": "a", "text_field": "b"}, "text_field"),
        ({"messages_field": "a", "completion_field": "b"}, "messages_field"),
        ({"prompt_field": "completion"}, "completion_field"),
        ({"prompt_field": "a", "completion_field": "a"}, "completion_field"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(keys, key):
    with pytest.raises(ConfigError) as caught:
        DataConfig(**{"source": "jsonl", "paths": ("x",)} | keys)
    assert caught.value.key == key


def test_a_text_without_an_answer_is_refused_and_nothing_is_written(talk, tmp_path):
    config = talk(said("a"), said("b"))
    for start in (open_rows, held_out):
        with pytest.raises(ConfigError, match="no token to predict"):
            start(config)
    assert not (tmp_path / "cache").exists()


def test_another_field_or_template_is_another_text_in_the_cache(talk, tmp_path, monkeypatch):
    """The text's file does not change, so only the names of notes tell the starts apart."""
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -60.0)  # files made just now count as old
    own = chat_folder.write(tmp_path / "own")
    config = talk(said("a", "b"), said("c", "d"), tokenizer=str(own))
    everything = dataclasses.replace(config, predict="all")
    encoder, _ = pipeline.encoder_of(config, 512)
    first = open_rows(config)
    assert cache.noted(config, "train", encoder)
    assert not cache.noted(everything, "train", encoder)
    whole = open_rows(everything)
    (own / "chat_template.jinja").write_text(GEMMA_3.replace("model", "robot"))
    assert not cache.noted(config, "train", encoder)
    changed = open_rows(config)
    assert len({first.fingerprint, changed.fingerprint, whole.fingerprint}) == 3
    assert whole.source.shares.predicted > changed.source.shares.predicted


def test_a_prepared_store_has_the_same_predictions_and_goes_on_with_its_own_template_alone(
    talk, tmp_path
):
    own = chat_folder.write(tmp_path / "own")
    config = talk(said("a", "b"), said("c", "d", "e", system="f"), tokenizer=str(own))
    encoder, _ = pipeline.encoder_of(config, 512)
    keys = {"vocab_size": 512, "num_workers": 0}
    prepare(config, encoder, tmp_path / "store", **keys)
    keys_of_store = {"source": "prepared", "paths": (f"{tmp_path}/store",), "eval_paths": ()}
    stored = held_out(dataclasses.replace(config, **keys_of_store, messages_field=""))
    for number, found in enumerate(held_out(config).predicted):
        np.testing.assert_array_equal(stored.predicted[number], found)
        np.testing.assert_array_equal(stored.tokens[number], held_out(config).tokens[number])
    prepare(config, encoder, tmp_path / "store", **keys)
    (own / "chat_template.jinja").write_text(GEMMA_3.replace("model", "robot"))
    with pytest.raises(ConfigError, match=r"^--output: holds a store of another text"):
        prepare(config, encoder, tmp_path / "store", **keys)


@pytest.mark.parametrize("predict", ["completion", "all"])
def test_an_encoder_gives_the_same_ids_one_by_one_and_in_a_batch(talk, predict):
    config = talk(said("a", "b"), said("c", "d", system="e"), predict=predict)
    encoder, _ = pipeline.encoder_of(config, 512)
    documents = list(sources.documents(config, "all"))
    for one, of_batch in zip(map(encoder.one, documents), encoder.batch(documents), strict=True):
        np.testing.assert_array_equal(one.ids, of_batch.ids)
        np.testing.assert_array_equal(one.predicted, of_batch.predicted)
        assert one.num_bytes is not None
        assert (of_batch.num_bytes, (one.predicted is None)) == (None, predict == "all")


def test_rows_that_reach_no_answer_are_refused_and_shares_count_answers(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"prompt": f"{n} " * 30, "completion": "one two"} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = {"prompt_field": "prompt", "packing": "document", "cache_dir": str(tmp_path / "c")}
    config = DataConfig(source="jsonl", paths=(str(path),), **keys)
    with pytest.raises(ConfigError, match=r"^training\.context_length: is too short: no row of"):
        pipeline.open_rows(config, context_length=40, seed=0, vocab_size=259)
    found = pipeline.open_rows(config, context_length=64, seed=0, vocab_size=259)
    lost = 100 * found.source.shares.left_out / (found.num_rows * 8)
    assert 0 < lost < 100
    assert f"{lost:.1f}% of the text left out" in found.description
