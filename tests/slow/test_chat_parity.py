"""Conversations are the text and the ids that transformers makes of them."""

import json

import numpy as np
import pytest
from data import chat_folder
from data.chat_folder import EOS, GEMMA_2, GEMMA_3, said

from hybrid.config import ConfigError
from hybrid.data import chat, pipeline
from hybrid.data.config import DataConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

CONVERSATIONS = [
    said("Hi"),
    said("Hi", "Hello"),
    said("What is it?", "It is what it is.", "the cat"),
    said("a", "b", "c", "d"),
    said("a", "b", "c", "d", "e", "f", "g", "h"),
    said("Hi", "Hello", system="You are a cat."),
    said("the cat", "and", "the hat", "ate it", system="Be brief.\n\nBe kind."),
    said("the cat", system=""),
    said("", ""),
    said("", "", "", ""),
    said("a", "", "b", "c", system="s"),
    said("  spaces  around ", "\n\nnew lines\n\n", "\ttabs\t", " "),
    said("in\n\n  side", "of  the\n\n\ntext"),
    said("Größe? 日本語", "Ça va — 2 €", "\U0001f600\U0001f3fd", "e\u0301 \u200b ▁"),
    said("مرحبا", "שלום", "नमस्ते", "สวัสดี"),
    said("{{ bos_token }}{% raw %}", "<b>&amp;</b> \"quoted\" 'too' \\n"),
    said("<start_of_turn", "end_of_turn>", "<start of turn>", "< eos >"),
    said("user\nmodel\n", "model\nuser\n"),
    said("1 + 1 = 2; 10 % 3 == 1", "x" * 500, "the " * 200, "0" * 99),
    said("def f(x):\n    return x\n", "```python\nprint(f(1))\n```", system="{}"),
]


def in_both(folder):
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    return chat.read(folder, "data.messages_field"), peer


@pytest.mark.parametrize("template", [GEMMA_2, GEMMA_3], ids=["gemma 2", "gemma 3"])
def test_texts_and_ids_are_those_of_transformers(template, tmp_path):
    assert len(CONVERSATIONS) == 20
    folder = chat_folder.write(tmp_path / "folder", template)
    ours, peer = in_both(folder)
    served = [c for c in CONVERSATIONS if template == GEMMA_3 or c[0]["role"] != "system"]
    for messages in served:
        for prompts in (False, True):
            wanted = peer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompts
            )
            assert ours.render(messages, add_generation_prompt=prompts) == wanted
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in served))
    keys = {"messages_field": "messages", "tokenizer": str(folder), "bos": "document"}
    config = DataConfig(source="jsonl", paths=(str(path),), **keys)
    found = pipeline.open_held_out(config, vocab_size=512, split="all")
    assert len(found) == len(served)
    for messages, ids in zip(served, found.tokens, strict=True):
        wanted = peer.apply_chat_template(messages, tokenize=True, return_dict=False)
        np.testing.assert_array_equal([peer.bos_token_id, *ids], [*wanted, EOS])


def test_what_the_template_refuses_is_refused_in_both(tmp_path):
    ours, peer = in_both(chat_folder.write(tmp_path / "folder", GEMMA_2))
    for messages in (said("a", system="s"), [*said("a"), *said("b")]):
        with pytest.raises(ConfigError, match="the folder's template fails"):
            ours.render(messages)
        with pytest.raises(Exception, match=r"no system turn|roles must alternate"):
            peer.apply_chat_template(messages, tokenize=False)
