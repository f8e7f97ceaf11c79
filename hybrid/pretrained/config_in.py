"""A Hugging Face config.json as values of `model.*`: Gemma 2, 3 and 4, old forms and new.

A folder of a multimodal model has the decoder's keys under `text_config`. Keys that are left out
have transformers' defaults. What our model can't be is refused by the file's own key.

Read next: `names.py`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from hybrid.config import ConfigError

CONFIG = "config.json"
SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES = {
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
    "gemma4_text": "gemma4",
    "gemma4": "gemma4",
    "gemma4_unified_text": "gemma4",
    "gemma4_unified": "gemma4",
}
# transformers' defaults of keys that a file may leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {"sliding_window": 4096, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256},
    "gemma4": {
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "hidden_size_per_layer_input": 256,
    },
}
_NULL_IS_OFF = ("final_logit_softcapping", "attn_logit_softcapping", "hidden_size_per_layer_input")
# Keys that can have one value here, which is also transformers' default.
_PLAIN = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_SIZES = {
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "window_size": "sliding_window",
}


class Fields:
    """A decoder's config.json, with complaints that name the file's key."""

    def __init__(self, values: Mapping[str, Any], path: pathlib.Path, key: str):
        self.values, self.path, self.key = values, path, key

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is left out or null."""
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str) -> int:
        """A whole number of at least 1.  Raises: ConfigError."""
        value = self.get(name)
        if type(value) is not int or value < 1:
            raise self.wrong(f"{name} must be a whole number of at least 1", value)
        return value

    def number(self, name: str, default: float) -> float:
        """A number.  Raises: ConfigError."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"{name} must be a number", value)
        return float(value)

    def wrong(self, problem: str, got: Any = None, accepted: str = "") -> ConfigError:
        """The error for a key of this file."""
        return ConfigError(self.key, f"{self.path}: {problem}", got, accepted)


def model_values(folder: pathlib.Path, key: str = "init_from") -> dict[str, Any]:
    """Values of `model.*` for the decoder in `folder`.

    Raises: ConfigError under `key` for a missing or broken file, another architecture, and
      everything in it that our model can't be.
    """
    fields, family = read_fields(folder, key)
    values: dict[str, Any] = {ours: fields.size(theirs) for ours, theirs in _SIZES.items()}
    _check_plain(fields)
    values |= {
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "logit_softcap": fields.number("final_logit_softcapping", 0.0),
        "attention_softcap": fields.number("attn_logit_softcapping", 0.0),
    }
    if family != "gemma4":
        scale = fields.number("query_pre_attn_scalar", 256) ** -0.5
        values |= {"norm_offset": 1.0, "layer_scalar": "none", "v_norm": False}
        values |= {"qk_norm": family == "gemma3", "attention_scale": scale}
    values |= _pattern(fields, family, values["num_layers"]) | _rope(fields, family)
    return values | (_gemma4(fields, values) if family == "gemma4" else {})


def read_fields(folder: pathlib.Path, key: str) -> tuple[Fields, str]:
    """The decoder's keys with defaults filled in, and the family.  Raises: ConfigError."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(key, f"holds no {CONFIG}", str(folder)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(key, f"{path} can't be read ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(key, f"{path} holds no object")
    fields = Fields(values, path, key)
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        accepted = "one of " + ", ".join(FAMILIES)
        raise fields.wrong("model_type is not served", values.get("model_type"), accepted)
    if values.get("quantization_config") is not None:
        method = values["quantization_config"].get("quant_method", "unknown")
        raise fields.wrong("quantization_config: quantized weights are not read", method)
    inner = values.get("text_config", values)
    if not isinstance(inner, dict):
        raise fields.wrong("text_config must be an object", inner)
    given = {name: value for name, value in inner.items() if value is not None}
    off = {name: 0 for name in _NULL_IS_OFF if name in inner and inner[name] is None}
    return Fields(_DEFAULTS[family] | off | given, path, key), family


def _check_plain(fields: Fields) -> None:
    """Raises: ConfigError for what no model here has."""
    for name, plain in _PLAIN.items():
        got = fields.get(name, plain)
        if (got if isinstance(plain, str) else bool(got)) != plain:
            raise fields.wrong(f"{name} is not served", got, str(plain).lower())
    got = fields.get("use_bidirectional_attention")
    if got in ("all", True):
        raise fields.wrong("use_bidirectional_attention: only causal text is served", got)


# --- Layers ----------------------------------------------------------------------------------


def _pattern(fields: Fields, family: str, num_layers: int) -> dict[str, Any]:
    """`pattern` and `last_layer`: the shortest period that gives the file's layers."""
    types = fields.get("layer_types")
    if types is None:
        period = fields.size("sliding_window_pattern")
        types = [FULL if (i + 1) % period == 0 else SLIDING for i in range(num_layers)]
    unknown = [kind for kind in types if kind not in (SLIDING, FULL)]
    if unknown:
        raise fields.wrong("layer_types has an unknown kind", unknown[0], f"{SLIDING}, {FULL}")
    if len(types) != num_layers:
        raise fields.wrong(f"layer_types must name {num_layers} layers", len(types))
    letters = "".join("L" if kind == SLIDING else "G" for kind in types)
    forced = family == "gemma4"  # transformers turns the last layer of a cut pattern global
    letters = letters[:-1] + "G" if forced else letters
    rule = "force_global" if forced else "any"
    return {"pattern": _period(letters, letters[:-1] if forced else letters), "last_layer": rule}


def _period(letters: str, repeated: str) -> str:
    """The shortest period that gives all of `letters`, or one with a G that gives `repeated`."""

    def gives(period: str, wanted: str) -> bool:
        return (period * len(wanted))[: len(wanted)] == wanted

    periods = (letters[:size] for size in range(1, len(letters) + 1))
    return next(p for p in periods if gives(p, letters) or ("G" in p and gives(p, repeated)))


# --- Rotary encodings ------------------------------------------------------------------------

_GLOBAL_ROPE = {
    "gemma2": ("default",),
    "gemma3": ("default", "linear"),
    "gemma4": ("default", "proportional"),
}


def _rope(fields: Fields, family: str) -> dict[str, Any]:
    rope = fields.get("rope_parameters", {})
    if not isinstance(rope, dict):
        raise fields.wrong("rope_parameters must be an object", rope)
    local: dict[str, Any] = rope.get(SLIDING) or {}
    wide: dict[str, Any] = rope.get(FULL) or {}
    theta, wide_theta = 10_000.0, 1_000_000.0
    if family == "gemma2":
        local, wide = rope, rope | {"factor": 1.0}
        theta = wide_theta = fields.number("rope_theta", theta)
    elif family == "gemma3":
        wide = wide | fields.get("rope_scaling", {})
        theta = fields.number("rope_local_base_freq", theta)
        wide_theta = fields.number("rope_theta", wide_theta)
    else:
        wide = wide or {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    _check_rope(fields, local, ("default",))
    kind = _check_rope(fields, wide, _GLOBAL_ROPE[family])
    fraction = wide.get("partial_rotary_factor", 1.0) if kind == "proportional" else 1.0
    return {
        "rope_theta": float(local.get("rope_theta", theta)),
        "global_rope_theta": float(wide.get("rope_theta", wide_theta)),
        "global_rope_fraction": float(fraction),
        "global_rope_factor": float(wide.get("factor", 1.0)),
    }


def _check_rope(fields: Fields, rope: Any, kinds: tuple[str, ...]) -> str:
    """The kind of a rotary encoding.  Raises: ConfigError for one that is none of `kinds`."""
    if not isinstance(rope, dict):
        raise fields.wrong("rope_parameters must be an object", rope)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in kinds:
        raise fields.wrong("rope_type is not served", kind, " or ".join(kinds))
    return kind


# --- What only Gemma 4 has -------------------------------------------------------------------


def _gemma4(fields: Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    shared = fields.get("num_kv_shared_layers", 0)
    double = bool(fields.get("use_double_wide_mlp", False)) and bool(shared)
    keys = {
        "unified_kv": bool(fields.get("attention_k_eq_v", False)),
        "num_kv_shared_layers": shared,
        "kv_shared_ffn_dim": 2 * values["ffn_dim"] if double else 0,
        "layer_embedding_dim": fields.get("hidden_size_per_layer_input", 0),
        **_global_heads(fields),
    }
    rows = fields.get("vocab_size_per_layer_input", values["vocab_size"])
    if keys["layer_embedding_dim"] and rows != values["vocab_size"]:
        problem = f"vocab_size_per_layer_input must be vocab_size ({values['vocab_size']})"
        raise fields.wrong(problem, rows)
    if fields.get("enable_moe_block", False):
        width = "moe_intermediate_size"
        width = width if fields.get(width) is not None else "expert_intermediate_size"
        keys |= {
            "num_experts": fields.size("num_experts"),
            "num_active_experts": fields.size("top_k_experts"),
            "expert_dim": fields.size(width),
        }
    return keys


def _global_heads(fields: Fields) -> dict[str, int]:
    """Heads of global layers: of keys of their own (as published), or of each layer's entry."""
    per_layer = fields.get("per_layer_config")
    if per_layer is None:
        own = fields.get("attention_k_eq_v", False)
        heads = fields.get("num_global_key_value_heads", 0) if own else 0
        width = fields.get("global_head_dim", 512)
        return {"global_head_dim": width, "num_global_kv_heads": heads}
    if not isinstance(per_layer, dict):
        raise fields.wrong("per_layer_config must be an object", per_layer)
    types = fields.get("layer_types", [])
    by_layer = {int(layer): entry for layer, entry in per_layer.items()}
    wide = [by_layer.pop(i, {}) for i, kind in enumerate(types) if kind == FULL]
    if any(entry != wide[0] for entry in wide) or any(by_layer.values()):
        raise fields.wrong("per_layer_config: layers of one kind must be alike")
    entry = wide[0] if wide else {}
    return {
        "global_head_dim": entry.get("head_dim", 0),
        "num_global_kv_heads": entry.get("num_key_value_heads", 0),
    }
