"""Rows that are more than plain text: prompts with completions, and conversations.

The prompt is context and the completion is predicted, with the EOS behind it. Of a conversation,
made text by a chat template, the assistant's turns are predicted, each with its end of turn. Where
a turn stands is found by rendering what leads to it, up to where its reply begins, and then with
it: each text must begin the next one, which not every template gives (those that drop what was
thought in earlier turns do not).

A message that spells a control token is refused: as the template's text is parsed, it would end a
turn that does not end there.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from hybrid.config import ConfigError
from hybrid.data import chat, tokenizers
from hybrid.data.chat import ChatTemplate
from hybrid.data.config import DataConfig
from hybrid.data.sources.form import Content, Form, PlainText, missing, texts, utf8
from hybrid.process.files import is_dir, path_of

KEY = "data.messages_field"
ASSISTANT = ("assistant", "model")  # roles whose turns are predicted
_PARTS = ("role", "content")


def form_of(config: DataConfig) -> Form:
    """What of a row is text, by the keys of fields.

    Raises: ConfigError for conversations where the tokenizer's folder has no template for them.
    """
    predicts_all = config.predict == "all"
    if config.pair is not None:
        return Completion(*config.pair, predicts_all)
    if not config.messages_field:
        return PlainText(config.text_field)
    if config.tokenizer == "byte":
        accepted = "a folder with a tokenizer.json and a chat template"
        raise ConfigError("data.tokenizer", f"has no chat template for {KEY}", "byte", accepted)
    path = path_of("data.tokenizer", config.tokenizer)
    template = chat.read(path if is_dir(path) else path.parent, KEY)
    return Chat(config.messages_field, template, predicts_all, config.tokenizer)


@dataclasses.dataclass(frozen=True)
class Completion:
    """The text is the prompt and, right behind it, the completion."""

    prompt_field: str
    completion_field: str
    predicts_all: bool

    @property
    def fields(self) -> Mapping[str, str]:
        return {
            self.prompt_field: "data.prompt_field",
            self.completion_field: "data.completion_field",
        }

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        prompt, completion = texts(self, values, where)
        text = prompt + completion
        return Content(text, None if self.predicts_all else ((len(prompt), len(text)),))


@dataclasses.dataclass(frozen=True)
class Chat:
    """The text is what the template makes of the messages.

    Attributes:
      tokenizer: `data.tokenizer`, whose control tokens no message may spell.
    """

    messages_field: str
    template: ChatTemplate
    predicts_all: bool
    tokenizer: str = dataclasses.field(repr=False)

    @property
    def fields(self) -> Mapping[str, str]:
        return {self.messages_field: KEY}

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        messages = self._messages(values, where)
        if not messages:
            return Content(b"")
        text = self.template.render(messages, where=where)
        encoded = utf8(text, where)
        if self.predicts_all:
            return Content(encoded, parsed=True)
        spans = []
        for end, message in enumerate(messages, start=1):
            if message["role"] in ASSISTANT:
                asked, turn = messages[: end - 1], messages[:end]
                before = self.template.render(asked, add_generation_prompt=True, where=where)
                until = self.template.render(turn, where=where)
                if not (text.startswith(until) and until.startswith(before)):
                    problem = f"{where} message {end}: the template writes it in another way "
                    problem += "once more follows, so what is predicted can't be told"
                    raise ConfigError(
                        KEY, problem, accepted="another template, or data.predict=all"
                    )
                spans.append((len(before.encode()), len(until.encode())))
        return Content(encoded, tuple(spans), parsed=True)

    def _messages(self, values: Mapping[str, Any], where: str) -> list[dict[str, str]]:
        """Raises: ConfigError for what is no list of messages, by place."""
        if self.messages_field not in values:
            raise missing(self.messages_field, values, KEY, where)
        held, accepted = values[self.messages_field], "a list of {role, content}"
        if not isinstance(held, list):
            raise ConfigError(KEY, f"{where} holds no list of messages", repr(held), accepted)
        messages = []
        for number, message in enumerate(held, start=1):
            of_place = f"{where} message {number}"
            if not isinstance(message, dict):
                raise ConfigError(KEY, f"{of_place} is no message", repr(message), accepted)
            others = [name for name, value in message.items() if name not in _PARTS and value]
            if others:
                raise ConfigError(KEY, f"{of_place} has more than is read", others, accepted)
            for part in _PARTS:
                text = message.get(part)
                if not isinstance(text, str):
                    raise ConfigError(
                        KEY, f"{of_place} has no text as {part}", repr(text), accepted
                    )
                spelled = self._control_tokens.search(text)
                if spelled:
                    problem = f"{of_place} spells a control token, which would be taken as one"
                    raise ConfigError(KEY, problem, spelled[0], "messages without it")
            messages.append({part: message[part] for part in _PARTS})
        return messages

    @functools.cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        tokens = tokenizers.load(self.tokenizer).control_tokens
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
