"""Conversations as text by a folder's chat template, the assistant's turns predicted."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from data import chat_folder
from data.chat_folder import BOS, END, EOS, GEMMA_2, GEMMA_3, START, held_out, open_rows, said

from hybrid.config import ConfigError
from hybrid.data import chat, sources, tokenizers


def test_a_conversation_is_its_template_with_the_assistants_turns_predicted(talk, chat_home):
    config = talk(said(" Hi ", "What is it?", "the cat", "It is", system="be"))
    found = held_out(config)
    tokenizer = tokenizers.load(str(chat_home))
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
def test_bos_and_eos_stand_once_also_where_the_template_has_them(talk, chat_home, tmp_path, bos):
    own = chat_folder.write(tmp_path / "own", GEMMA_3.rstrip() + "{{ eos_token }}")
    chats, keys = (said("a"), said("the cat")), {"predict": "all", "bos": bos}
    with_own, without = (
        open_rows(talk(*chats, **keys, tokenizer=str(tokenizer))) for tokenizer in (own, chat_home)
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


def test_bytes_have_no_chat_template(talk):
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: has no chat template"):
        open_rows(talk(said("a", "b"), tokenizer="byte"))


@pytest.mark.parametrize("tokenizer_config", ["[]", '"x"', "null"])
def test_a_tokenizer_config_of_another_form_is_refused(talk, chat_home, tokenizer_config, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(chat_home, wrong)
    (wrong / "tokenizer_config.json").write_text(tokenizer_config)
    (wrong / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ConfigError, match=r"^data\.(messages_field|tokenizer): .*holds no object"):
        held_out(talk(said("a", "b"), tokenizer=str(wrong)))
