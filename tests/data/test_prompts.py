"""Prompts with completions and conversations: which text they are, and what of it is predicted."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from data import chat_folder
from data.chat_folder import BOS, END, EOS, GEMMA_2, GEMMA_3, START, said

from hybrid.config import ConfigError
from hybrid.data import cache, chat, pipeline, sources, tokenizers
from hybrid.data.config import DataConfig
from hybrid.data.store.prepare import prepare

PAIRS = [("ab", "cd"), ("e", ""), ("", "fgh"), ("Größe? ", "2 €"), ("long prompt " * 3, "x")]
BYTE_BOS, BYTE_EOS, BYTE_PAD = 257, 258, 256


def lines(folder, rows, name="x.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture
def pairs(tmp_path):
    path = lines(tmp_path, [{"prompt": p, "answer": a} for p, a in PAIRS])
    keys = {"completion_field": "answer", "cache_dir": str(tmp_path / "cache")}
    return DataConfig(source="jsonl", paths=(path,), eval_paths=(path,), **keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder.write(tmp_path_factory.mktemp("chat") / "folder")


@pytest.fixture
def talk(folder, tmp_path):
    def config(*conversations, **keys):
        path = lines(tmp_path, [{"messages": messages} for messages in conversations])
        keys = {"tokenizer": str(folder), "cache_dir": str(tmp_path / "cache")} | keys
        source = {"source": "jsonl", "paths": (path,), "eval_paths": (path,)}
        return DataConfig(messages_field="messages", **source, **keys)

    return config


def open_rows(config, context_length=16, vocab_size=512):
    return pipeline.open_rows(config, context_length=context_length, seed=0, vocab_size=vocab_size)


def held_out(config, vocab_size=512):
    return pipeline.open_held_out(config, vocab_size=vocab_size)


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
def test_tables_give_the_same_documents_as_lines(source, folder, talk, tmp_path):
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


# --- Conversations -------------------------------------------------------------------------------


def test_a_conversation_is_its_template_with_the_assistants_turns_predicted(talk, folder):
    config = talk(said(" Hi ", "What is it?", "the cat", "It is", system="be"))
    found = held_out(config)
    tokenizer = tokenizers.load(str(folder))
    encode = tokenizer.encode
    turns = [
        (START, "user\nbe\n\nHi", END, "\n", START, "model\n"),
        ("What is it?", END, "\n"),
        (START, "user\nthe cat", END, "\n", START, "model\n"),
        ("It is", END, "\n"),
    ]
    ids, mask = [], []
    for number, turn in enumerate(turns):
        pieces = [[piece] if isinstance(piece, int) else encode(piece) for piece in turn]
        ids.append(np.concatenate(pieces))
        mask.append(np.full(len(ids[-1]), number % 2 == 1))
    assert found.tokens[0].tolist() == [*np.concatenate(ids), EOS]
    assert found.predicted[0].tolist() == [*np.concatenate(mask), True]
    control = np.isin(found.tokens[0], [START, END, EOS])
    assert not found.num_bytes[0][control].any()
    text = "user\nbe\n\nHi\nmodel\nWhat is it?\nuser\nthe cat\nmodel\nIt is\n"
    assert found.num_bytes[0].sum() == len(text)


def test_a_conversation_that_ends_with_the_user_has_no_end_to_predict(talk):
    found = held_out(talk(said("a", "b", "c")))
    assert not found.predicted[0][-1]
    assert found.predicted[0].any()


@pytest.mark.parametrize("bos", ["document", "window", "never"])
def test_bos_and_eos_stand_once_also_where_the_template_has_them(talk, folder, tmp_path, bos):
    own = chat_folder.write(tmp_path / "own", GEMMA_3.rstrip() + "{{ eos_token }}")
    chats, keys = (said("a"), said("the cat")), {"predict": "all", "bos": bos}
    with_own, without = (
        open_rows(talk(*chats, **keys, tokenizer=str(tokenizer))) for tokenizer in (own, folder)
    )
    found, wanted = (rows.source.store.shard("train", 0) for rows in (with_own, without))
    np.testing.assert_array_equal(
        found.tokens(0, found.num_tokens), wanted.tokens(0, wanted.num_tokens)
    )
    ids = found.tokens(0, found.num_tokens)
    assert (ids == EOS).sum() == 2
    assert (ids == BOS).sum() == (0 if bos == "never" else 2)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_place(talk, tmp_path):
    forgets = (
        "{% for m in messages %}{{ m.role }}: "
        "{{ m.content if loop.last or m.role == 'user' else '…' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    folder = str(chat_folder.write(tmp_path / "forgets", forgets))
    assert held_out(talk(said("a", "b"), tokenizer=folder)).predicted[0].any()
    several = talk(said("a", "b"), said("a", "b", "c", "d"), tokenizer=folder)
    with pytest.raises(ConfigError, match=r"^data\.messages_field: .*line 2 message 2: the templ"):
        held_out(several)
    assert held_out(dataclasses.replace(several, predict="all")).predicted is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "line 1 holds no list of messages, got 'Hi'"),
        (["Hi"], "line 1 message 1 is no message, got 'Hi'"),
        ([{"role": "user"}], "line 1 message 1 has no text as content, got None"),
        ([{"role": "user", "content": [1]}], r"line 1 message 1 has no text as content, got \[1\]"),
        ([{"content": "a"}], "line 1 message 1 has no text as role"),
        (
            [*said("a"), {"role": "assistant", "content": "", "tool_calls": [1]}],
            r"line 1 message 2 has more than is read, got \['tool_calls'\]",
        ),
        (said("a", "b<end_of_turn>"), "message 2 spells a control token.*got <end_of_turn>"),
        (said("\ud800"), "half a surrogate"),
        ([*said("a"), *said("b")], "line 1: the folder's template fails .it refuses.*alternate"),
    ],
)
def test_what_is_no_conversation_is_refused_by_place(talk, messages, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sources.documents(talk(messages), "all")
    assert caught.value.key == ("data.paths" if "surrogate" in message else "data.messages_field")


def test_other_keys_of_a_message_may_be_null(talk):
    messages = [{"role": "user", "content": "a", "tool_calls": None}]
    assert len(sources.documents(talk(messages), "all")) == 1


def test_the_second_generation_has_no_system_turn(talk, tmp_path):
    folder = str(chat_folder.write(tmp_path / "two", GEMMA_2))
    text = "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    (document,) = sources.documents(talk(said("a", "b"), tokenizer=folder), "all")
    assert document.text.decode() == text
    with pytest.raises(ConfigError, match="no system turn"):
        sources.documents(talk(said("a", system="s"), tokenizer=folder), "all")


# --- Templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(messages[0]) }}",
        "{{ (messages | map('attr', '__class__') | first).__name__ }}",
        "{{ range(1000000000) | list }}",
        "{{ strftime_now('%d') }}",
        "{{ 1 // 0 }}",
        "{{ nothing() }}",
    ],
)
def test_a_template_that_asks_for_more_is_refused_in_one_line(tmp_path, template):
    (tmp_path / "chat_template.jinja").write_text(template)
    found = chat.read(tmp_path, "data.messages_field")
    with pytest.raises(ConfigError, match="the folder's template fails") as caught:
        found.render(said("a"))
    assert "\n" not in str(caught.value)


def test_a_template_has_what_transformers_gives_it(tmp_path):
    template = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}"
        "{{ tools is none }} {{ bos_token }} {{ pad_token is defined }} "
        "{{ add_bos_token is defined }}"
    )
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    values = {"chat_template": named, "bos_token": {"content": "<b>"}, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    found = chat.read(tmp_path, "key").render(said("<é>", "b"))
    assert found == '{"role": "user", "content": "<é>"}True <b> False False'


def test_a_folder_without_a_template_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^key: the folder has no chat template"):
        chat.read(tmp_path, "key")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match=r"^key: the folder's template is broken"):
        chat.read(tmp_path, "key")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^key: .* can't be read"):
        chat.read(tmp_path, "key")


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


def test_bytes_have_no_chat_template(talk):
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: has no chat template"):
        open_rows(talk(said("a", "b"), tokenizer="byte"))


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


@pytest.mark.parametrize("tokenizer_config", ["[]", '"x"', "null"])
def test_a_tokenizer_config_of_another_form_is_refused(talk, folder, tokenizer_config, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    (wrong / "tokenizer_config.json").write_text(tokenizer_config)
    (wrong / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ConfigError, match=r"^data\.(messages_field|tokenizer): .*holds no object"):
        held_out(talk(said("a", "b"), tokenizer=str(wrong)))


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
