"""The decoder's keys of a config.json: found in either layout, defaults filled in.

A folder of a text model has them at the top; one of a multimodal model has them under
`text_config`, beside its towers. Complaints name the file's own key. Of keys that transformers
itself does not use for the model, `unused` tells.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from hybrid.config import ConfigError
from hybrid.pretrained.defaults import DEFAULTS, OLDER

CONFIG = "config.json"
_MOST = 2**31 - 1  # of a size
# The decoder's model_type in a multimodal file of each model_type.
WRAPPED = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
}
# Null means "off" or "not set" for these; for all others, as if they were left out.
_NULL_COUNTS = (
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "hidden_size_per_layer_input",
    "sliding_window",
    "use_bidirectional_attention",
)
_KNOWN = {name for table in (DEFAULTS, OLDER) for keys in table.values() for name in keys}
# Sizes of what other keys switch on.
_SIZES = {"vocab_size_per_layer_input", "num_experts", "top_k_experts", "moe_intermediate_size"}


class Fields:
    """A decoder's config.json, with complaints that name the file's key.

    Attributes:
      kind: the decoder's model_type, `gemma3_text`.
      given: its keys as the file has them, nulls of no meaning left out.
      outer: the whole file; of a text model, the same keys.
      path, key: the file, and what named its folder.
    """

    def __init__(
        self,
        kind: str,
        given: Mapping[str, Any],
        outer: Mapping[str, Any],
        path: pathlib.Path,
        key: str,
    ):
        counts = {name: v for name, v in given.items() if v is not None or name in _NULL_COUNTS}
        self.kind, self.given, self.outer, self.path, self.key = kind, counts, outer, path, key
        self._values = DEFAULTS[kind] | OLDER[kind] | counts

    @property
    def family(self) -> str:
        """`gemma2`, `gemma3` or `gemma4`."""
        return self.kind[: len("gemma4")]

    @property
    def is_wrapped(self) -> bool:
        """Whether the decoder is part of a multimodal model."""
        return self.outer.get("model_type") in WRAPPED

    def get(self, name: str) -> Any:
        """The value of a key, transformers' default where it is left out; None without one."""
        return self._values.get(name)

    def size(self, name: str, at_least: int = 1) -> int:
        """A whole number.  Raises: ConfigError."""
        value = self.get(name)
        if type(value) is not int or not at_least <= value <= _MOST:
            raise self.wrong(f"{name} must be a whole number of at least {at_least}", value)
        return value

    def number(self, name: str) -> float:
        """A number, 0 where it is null.  Raises: ConfigError."""
        value = self.get(name)
        return 0.0 if value is None else self.checked_number(name, value)

    def positive(self, name: str) -> float:
        """A number above 0.  Raises: ConfigError."""
        return self.checked_number(name, self.get(name), more_than=0.0)

    def flag(self, name: str) -> bool:
        """True or false.  Raises: ConfigError."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(f"{name} must be true or false", value)
        return bool(value)

    def checked_number(self, name: str, value: Any, more_than: float = -math.inf) -> float:
        """`value` of the key `name` as a number.  Raises: ConfigError."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= more_than:
            above = f" above {more_than:g}" if math.isfinite(more_than) else ""
            raise self.wrong(f"{name} must be a number{above}", value)
        return float(value)

    def object(self, name: str) -> dict[str, Any]:
        """An object; empty where it is null.  Raises: ConfigError."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"{name} must be an object", value)
        return value or {}

    def wrong(self, problem: str, got: Any = None, accepted: str = "") -> ConfigError:
        """The error for a key of this file."""
        return ConfigError(self.key, f"{self.path}: {problem}", got, accepted)

    def unused(self) -> Iterator[str]:
        """Keys that are set although transformers' model of this kind computes without them."""
        known = DEFAULTS[self.kind].keys() | OLDER[self.kind].keys()
        names = [name for name in self.given if name in _KNOWN - known - _SIZES]
        if self.family == "gemma3":
            names += ["attn_logit_softcapping", *["final_logit_softcapping"] * self.is_wrapped]
        names += ["attention_dropout"]
        yield from (name for name in names if self.get(name))


def read_fields(folder: pathlib.Path, key: str) -> Fields:
    """The decoder's keys.

    Raises: ConfigError under `key` for a missing or broken file, and another architecture.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(key, f"holds no {CONFIG}", str(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(key, f"{path} can't be read ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(key, f"{path} holds no object")
    kind: str = str(values.get("model_type"))
    decoder: Any = values
    if kind in WRAPPED:
        kind, decoder = WRAPPED[kind], values.get("text_config")
        if not isinstance(decoder, dict):
            raise ConfigError(key, f"{path}: text_config must be an object", decoder)
    elif values.get("text_config") is not None:
        problem = f"{path}: text_config must be an object of a multimodal model alone"
        raise ConfigError(key, problem, kind, ", ".join(WRAPPED))
    elif kind not in DEFAULTS:
        accepted = "one of " + ", ".join((*DEFAULTS, *WRAPPED))
        problem = f"{path}: model_type is not served"
        raise ConfigError(key, problem, values.get("model_type"), accepted)
    fields = Fields(kind, decoder, values, path, key)
    if decoder.get("model_type", kind) != kind:
        raise fields.wrong("text_config.model_type", decoder["model_type"], kind)
    for level in (values, decoder):
        quantization = level.get("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            problem = "quantization_config: quantized weights are not read"
            raise fields.wrong(problem, method or "unknown")
    return fields
