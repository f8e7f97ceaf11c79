"""A Hugging Face folder's own chat template: turns of user and assistant as one text.

The text spells control tokens, so it is encoded with these taken as such. jinja2 is loaded where a
template is read, as few evaluations have one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from hybrid.config import ConfigError

KEY = "eval.retrieval.chat_template"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template of jinja, and the tokens that it may name."""

    template: Any
    tokens: dict[str, str]

    def render(self, turns: Sequence[str]) -> str:
        """The text of the turns, the user's first and last, up to where the reply begins.

        Raises: ConfigError where the template fails on them.
        """
        from jinja2 import TemplateError

        roles = "user", "assistant"
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        about = {"messages": messages, "add_generation_prompt": True}
        try:
            return self.template.render(**about, **self.tokens)
        except TemplateError as error:
            raise ConfigError(KEY, f"the folder's template fails ({error})") from None


def read(folder: pathlib.Path) -> ChatTemplate:
    """The template of a folder.  Raises: ConfigError where it has none, or a broken one."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        values = json.loads(config.read_bytes()) if config.is_file() else {}
        text = file.read_text() if file.is_file() else values.get("chat_template")
    except (OSError, ValueError) as error:
        raise ConfigError(KEY, f"{folder} can't be read ({error})") from None
    if not isinstance(text, str):
        raise ConfigError(KEY, "the folder has no chat template", str(folder), "false")

    def refuse(message: str) -> None:
        raise ConfigError(KEY, f"the template refuses the turns ({message})")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    tokens = {name: _spelled(values.get(name)) for name in ("bos_token", "eos_token")}
    try:
        return ChatTemplate(environment.from_string(text), tokens)
    except TemplateError as error:
        raise ConfigError(KEY, f"the folder's template is broken ({error})", str(folder)) from None


def _spelled(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
