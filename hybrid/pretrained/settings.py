"""What a Hugging Face folder says besides the model: special ids, positions, dtype, generation.

None of it changes a logit, and all of it has to survive a way through here: which ids end a text,
how long a context the model was made for, in which dtype its weights were published.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from hybrid.config import ConfigError
from hybrid.pretrained.fields import Fields, read_fields

GENERATION = "generation_config.json"
_EOS = "eos_token_id"
_NAMES = ("bos_token_id", _EOS, "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A folder's settings.

    Attributes:
      token_ids: `bos_token_id`, `eos_token_id` (one or a list) and `pad_token_id` of config.json,
        those that it names.
      stop_ids: every id that ends a text, of config.json and generation_config.json.
      max_positions: the longest context that the model was made for.
      dtype: of the published weights; None where the file does not say.
      generation: the bytes of generation_config.json; None without one.
    """

    token_ids: Mapping[str, Any]
    stop_ids: tuple[int, ...]
    max_positions: int
    dtype: str | None
    generation: bytes | None


def read_settings(folder: pathlib.Path, key: str = "init_from") -> Settings:
    """The settings of a folder.  Raises: ConfigError under `key` for what can't be read."""
    fields = read_fields(folder, key)
    levels = (fields.outer, fields.outer["text_config"] if fields.is_wrapped else {})
    token_ids = {n: v for level in levels for n, v in level.items() if n in _NAMES}
    for name, value in token_ids.items():
        _ids(fields, name, value)
    ends = [t for level in levels for t in _ids(fields, _EOS, level.get(_EOS))]
    if len(set(ends)) > 1:  # either level may hold the list
        token_ids[_EOS] = list(dict.fromkeys(ends))
    generation, content = _generation(folder, fields)
    ends += _ids(fields, _EOS, generation.get(_EOS))
    stored = (level.get(name) for level in levels for name in ("dtype", "torch_dtype"))
    dtype = next((str(value).removeprefix("torch.") for value in stored if value), None)
    return Settings(
        token_ids=token_ids,
        stop_ids=tuple(dict.fromkeys(ends)),
        max_positions=fields.size("max_position_embeddings"),
        dtype=dtype,
        generation=content,
    )


def _generation(folder: pathlib.Path, fields: Fields) -> tuple[dict[str, Any], bytes | None]:
    """The keys of generation_config.json and its bytes; empty without the file."""
    path = folder / GENERATION
    if not path.is_file():
        return {}, None
    try:
        content = path.read_bytes()
        values = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(fields.key, f"{path} can't be read ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(fields.key, f"{path} holds no object")
    return values, content


def _ids(fields: Fields, name: str, value: Any) -> list[int]:
    """The ids of a key of special tokens: null, a number or a list.  Raises: ConfigError."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if type(token) is not int or token < 0:
            raise fields.wrong(f"{name} must be an id or a list of ids", value)
    return ids
