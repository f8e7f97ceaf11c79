"""What the flags of `python -m hybrid.generate` say of texts: the prompt, its tokens, the stops."""

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data import tokenizers
from hybrid.data.tokenizers import Tokenizer
from hybrid.loading.api import Model


def prompt_text(values: Any) -> str:
    """The text of the flags.  Raises: ConfigError for none, two, or a file that can't be read."""
    given = [name for name in ("prompt", "prompt_file") if values[name].value is not None]
    if len(given) != 1:
        got = "both" if given else "neither"
        raise ConfigError("--prompt", "must be given, or --prompt_file", got, "one of them")
    if values.prompt is not None:
        return _utf8(values.prompt, "--prompt")
    path = values.prompt_file
    try:
        data = sys.stdin.buffer.read() if path == "-" else pathlib.Path(path).read_bytes()
        return data.decode()
    except (OSError, ValueError) as error:
        raise ConfigError("--prompt_file", f"can't be read ({error})", path) from None


def stop_texts(flag: str) -> tuple[str, ...]:
    """The texts of `--stop`: of a JSON list each of its texts, else the flag itself.

    Raises: ConfigError for a text that is empty or not UTF-8.
    """
    flag = _utf8(flag, "--stop")
    try:
        texts = json.loads(flag) if flag.startswith("[") else None
    except (ValueError, RecursionError):
        texts = None
    if not (texts and isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        texts = [flag] if flag else []
    if not all(texts):
        raise ConfigError("--stop", "holds an empty text", flag)
    return tuple(texts)


def _utf8(text: str, flag: str) -> str:
    """Text of a command line, whose bytes Python may have kept as surrogates.

    Raises: ConfigError where they are not UTF-8.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise ConfigError(flag, "is not UTF-8", ascii(text), "--prompt_file reads a file") from None


def prompt_ids(
    prompt: str, tokenizer: Tokenizer, model: Model, policy: str, *, parses: bool
) -> np.ndarray:
    """int32 [t]: BOS, unless the policy is never, and the text's own ids.

    Args:
      policy: `data.bos`; auto: the model's own.
      parses: whether control tokens that the text spells are taken as such; a BOS that it begins
        with is then the only one.
    Raises: ConfigError for no token at all, and ids that the model has no row for.
    """
    ids = tokenizer.encode_parsed(prompt) if parses else tokenizer.encode(prompt)
    bos = tokenizers.resolve_bos(model.origin.bos if policy == "auto" else policy, tokenizer)
    if bos != "never" and not (parses and len(ids) and ids[0] == tokenizer.bos_id):
        ids = np.concatenate([[tokenizer.bos_id], ids])
    if not len(ids):
        raise ConfigError("--prompt", "is empty, and the model has no BOS to begin with", "''")
    if ids.max() >= model.config.vocab_size:
        size = model.config.vocab_size
        problem = f"the tokenizer gives ids beyond the model's vocabulary ({size})"
        raise ConfigError("--prompt", problem, int(ids.max()))
    return ids.astype(np.int32)


def spelled_warning(prompt: str, tokenizer: Tokenizer) -> Iterator[str]:
    """A line if the prompt spells control tokens: they are read letter by letter."""
    spelled = [token for token in tokenizer.control_tokens if token in prompt]
    if spelled:
        named = ", ".join(spelled[:3]) + ", …" * (len(spelled) > 3)
        yield f"the prompt spells {named}, read as text; --parse_special takes them as tokens"
