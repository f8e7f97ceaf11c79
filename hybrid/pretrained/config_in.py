"""A Hugging Face config.json as values of `model.*`: Gemma 2, 3 and 4, old forms and new.

What our model can't be is refused by the file's own key, and what transformers' model of the family
does not use either is left out with a line in the log.

Read first: `fields.py`.  Read next: `rope_in.py`, then `names.py`.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from hybrid.pretrained.fields import CONFIG, Fields, read_fields
from hybrid.pretrained.rope_in import FULL, SLIDING, rope_values

__all__ = ["CONFIG", "FULL", "SLIDING", "model_values"]

_log = logging.getLogger("hybrid")
# Keys that can have one value here, which is also transformers' where they are left out.
_ACTIVATION = "gelu_pytorch_tanh"
_PLAIN = {"attention_bias": False, "tie_word_embeddings": True, "is_causal": True}
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
_SOFTCAPS = {
    "logit_softcap": "final_logit_softcapping",
    "attention_softcap": "attn_logit_softcapping",
}
# Keys that layers may have of their own, and ours of them.
_PER_LAYER = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_kv_heads"}


def model_values(folder: pathlib.Path, key: str = "init_from") -> dict[str, Any]:
    """Values of `model.*` for the decoder in `folder`.

    Raises: ConfigError under `key` for a missing or broken file, another architecture, and
      everything in it that our model can't be.
    """
    fields = read_fields(folder, key)
    values: dict[str, Any] = {ours: fields.size(theirs) for ours, theirs in _SIZES.items()}
    _check_plain(fields)
    unused = set(fields.unused())
    for ours, theirs in _SOFTCAPS.items():
        values[ours] = 0.0 if theirs in unused else fields.number(theirs)
    values["norm_eps"] = fields.positive("rms_norm_eps")
    kinds = _kinds(fields, values["num_layers"])
    values |= _pattern(fields, kinds) | rope_values(fields)
    values |= _gemma4(fields, values, kinds) if fields.family == "gemma4" else _older(fields)
    for name in sorted(unused):
        _log_once(f"{fields.path}: {name} is set, and transformers computes without it; so here")
    return values


@functools.cache
def _log_once(line: str) -> None:
    _log.warning("warning: %s", line)


def _check_plain(fields: Fields) -> None:
    """Raises: ConfigError for what no model here has."""
    for name, plain in _PLAIN.items():
        for level in (fields.given, fields.outer):
            got = level.get(name)
            if got not in (None, plain):
                raise fields.wrong(f"{name} is not served", got, str(plain).lower())
    activation = fields.get("hidden_activation")
    if activation != _ACTIVATION:
        raise fields.wrong("hidden_activation is not served", activation, _ACTIVATION)
    sees_ahead = fields.get("use_bidirectional_attention")
    if sees_ahead and (sees_ahead != "vision" or fields.family != "gemma4"):
        problem = "use_bidirectional_attention: only causal text is served"
        raise fields.wrong(problem, sees_ahead)
    if fields.family != "gemma4" and fields.object("per_layer_config"):
        problem = "per_layer_config: layers of one kind are alike here"
        raise fields.wrong(problem, fields.get("per_layer_config"))


def _older(fields: Fields) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return {
        "norm_offset": 1.0,
        "layer_scalar": "none",
        "v_norm": False,
        "qk_norm": fields.family == "gemma3",
        "attention_scale": fields.positive("query_pre_attn_scalar") ** -0.5,
    }


# --- Layers ----------------------------------------------------------------------------------


def _kinds(fields: Fields, num_layers: int) -> list[str]:
    """The kind of each layer, by transformers' name.  Raises: ConfigError."""
    kinds = fields.get("layer_types")
    if kinds is None:
        period = 2 if fields.family == "gemma2" else 6
        period = fields.size("sliding_window_pattern") if fields.family == "gemma3" else period
        kinds = [FULL if (i + 1) % period == 0 else SLIDING for i in range(num_layers)]
    if not isinstance(kinds, list):
        raise fields.wrong("layer_types must be a list", kinds)
    unknown = [kind for kind in kinds if kind not in (SLIDING, FULL)]
    if unknown:
        raise fields.wrong("layer_types has an unknown kind", unknown[0], f"{SLIDING}, {FULL}")
    if len(kinds) != num_layers:
        raise fields.wrong(f"layer_types must name {num_layers} layers", len(kinds))
    # transformers turns the last layer of Gemma 4 global, wherever a pattern is cut.
    return [*kinds[:-1], FULL] if fields.family == "gemma4" else kinds


def _pattern(fields: Fields, kinds: list[str]) -> dict[str, Any]:
    """`pattern` and `last_layer`: the shortest period that gives the file's layers."""
    forced = fields.family == "gemma4"
    letters = "".join("L" if kind == SLIDING else "G" for kind in kinds)
    rule = "force_global" if forced else "any"
    return {"pattern": _period(letters, letters[:-1] if forced else letters), "last_layer": rule}


def _period(letters: str, repeated: str) -> str:
    """The shortest period that gives all of `letters`, or one with a G that gives `repeated`."""

    def gives(period: str, wanted: str) -> bool:
        return (period * len(wanted))[: len(wanted)] == wanted

    periods = (letters[:size] for size in range(1, len(letters) + 1))
    return next(p for p in periods if gives(p, letters) or ("G" in p and gives(p, repeated)))


# --- What only Gemma 4 has -------------------------------------------------------------------


def _gemma4(fields: Fields, values: Mapping[str, Any], kinds: list[str]) -> dict[str, Any]:
    shared = fields.size("num_kv_shared_layers", at_least=0)
    double = fields.flag("use_double_wide_mlp") and bool(shared)
    keys = {
        "unified_kv": fields.flag("attention_k_eq_v"),
        "num_kv_shared_layers": shared,
        "kv_shared_ffn_dim": 2 * values["ffn_dim"] if double else 0,
        **_global_heads(fields, kinds),
    }
    if fields.kind == "gemma4_unified_text":  # neither per-layer embeddings nor experts
        return keys
    if fields.get("hidden_size_per_layer_input") is not None:
        keys["layer_embedding_dim"] = fields.size("hidden_size_per_layer_input", at_least=0)
    rows = fields.get("vocab_size_per_layer_input")
    if keys.get("layer_embedding_dim") and rows != values["vocab_size"]:
        problem = f"vocab_size_per_layer_input must be vocab_size ({values['vocab_size']})"
        raise fields.wrong(problem, rows)
    if fields.flag("enable_moe_block"):
        width = "moe_intermediate_size"
        width = width if fields.get(width) is not None else "expert_intermediate_size"
        keys |= {
            "num_experts": fields.size("num_experts"),
            "num_active_experts": fields.size("top_k_experts"),
            "expert_dim": fields.size(width),
        }
    return keys


def _global_heads(fields: Fields, kinds: list[str]) -> dict[str, int]:
    """Heads of global layers: of keys of their own (as published), or of each layer's entry."""
    if fields.get("per_layer_config") is None:
        own = fields.flag("attention_k_eq_v")
        own = own and fields.get("num_global_key_value_heads") is not None
        heads = fields.size("num_global_key_value_heads") if own else 0
        return {"global_head_dim": fields.size("global_head_dim"), "num_global_kv_heads": heads}
    entries = fields.object("per_layer_config")
    layers = {str(i): kind for i, kind in enumerate(kinds)}
    by_layer = {str(name).lstrip("0") or "0": entry for name, entry in entries.items()}
    for name, entry in by_layer.items():
        if name not in layers or not isinstance(entry, dict) or entry.keys() - _PER_LAYER:
            problem = f"per_layer_config.{name}: must have keys of a layer's heads"
            raise fields.wrong(problem, entry, ", ".join(_PER_LAYER))
    wide = [by_layer.pop(name, {}) for name, kind in layers.items() if kind == FULL]
    if any(entry != wide[0] for entry in wide) or any(by_layer.values()):
        raise fields.wrong("per_layer_config: layers of one kind must be alike")
    for name, value in wide[0].items():
        if type(value) is not int or value < 1:
            raise fields.wrong(f"per_layer_config: {name} must be a whole number", value)
    return {ours: wide[0].get(theirs, 0) for theirs, ours in _PER_LAYER.items()}
