"""Chat templates: messages of a conversation as one text, by a template that a folder brings.

The template is a program of someone else, in jinja's sandbox: it sees the messages and the special
tokens, no files, no clock and no attributes of Python. What it may use beyond jinja is what
transformers gives it: `raise_exception`, `tojson`, `break`, `continue` and `{% generation %}`.

The text spells control tokens, so it is encoded with these taken as such (`encode_parsed`).
Read next: `sources/prompts.py`, which makes documents of conversations.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.config import ConfigError
from hybrid.data.tokenizers import CONFIG, neighbour_config
from hybrid.process.remote import AnyPath

TEMPLATE = "chat_template.jinja"
Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens that it may name.  Two that are equal render alike.

    Attributes:
      source: in jinja.
      tokens: special tokens by their names, `("bos_token", "<bos>")`.
      key: of the config, for complaints.
    """

    source: str
    tokens: tuple[tuple[str, str], ...]
    key: str

    def render(
        self, messages: Messages, *, add_generation_prompt: bool = False, where: str = ""
    ) -> str:
        """The text of messages of a `role` and a `content` each.

        Args:
          add_generation_prompt: whether the beginning of a reply ends the text.
          where: the messages came from.
        Raises: ConfigError where the template fails on them, or asks for more than it may.
        """
        about = {"messages": messages, "tools": None, "documents": None}
        try:
            return self.compiled.render(
                **dict(self.tokens), **about, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # whatever a program may raise: a division by zero is one
            said = " ".join(str(error).split())[:150] or type(error).__name__
            of_place = f"{where}: " * bool(where)
            raise ConfigError(self.key, f"{of_place}the folder's template fails ({said})") from None

    @functools.cached_property
    def compiled(self) -> Any:
        """Jinja's template.  Raises: jinja2.TemplateError for a broken one."""
        return _environment().from_string(self.source)


def read(folder: AnyPath, key: str) -> ChatTemplate:
    """The template of a folder of Hugging Face: its chat_template.jinja, or tokenizer_config.json.

    Raises: ConfigError under `key` where it has none, or a broken one.
    """
    file = folder / TEMPLATE
    try:
        values = neighbour_config(file) or {}
        source = file.read_bytes().decode() if file.is_file() else _default(values)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(key, f"{folder} can't be read ({error})") from None
    if not isinstance(source, str):
        accepted = f"{TEMPLATE}, or chat_template in {CONFIG}"
        raise ConfigError(key, "the folder has no chat template", str(folder), accepted)
    spelled = {name: _spelled(value) for name, value in values.items() if name.endswith("_token")}
    tokens = tuple((name, token) for name, token in spelled.items() if token is not None)
    template = ChatTemplate(source, tokens, key)
    try:
        _ = template.compiled
    except Exception as error:  # of a hostile template not only jinja's own
        said = " ".join(str(error).split())[:150]
        raise ConfigError(key, f"the folder's template is broken ({said})", str(folder)) from None
    return template


def _default(values: Mapping[str, Any]) -> Any:
    """The template in a tokenizer_config.json; of several, that for chats without tools."""
    found = values.get("chat_template")
    if isinstance(found, list):
        return {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found


def _spelled(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


@functools.cache
def _environment() -> Any:
    """As transformers has it, but for its clock: a text would change with the day."""
    from jinja2 import TemplateError, ext, nodes  # only those who render pay for it
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` … `{% endgeneration %}` around a reply: its inside, as it is."""

        tags = {"generation"}  # noqa: RUF012  (as jinja declares it)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(f"it refuses the messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; jinja's own filter writes what HTML needs."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
