"""A model's `model.*` as a Hugging Face config.json, in the form that its family was published in.

norm_offset 0 is Gemma 4; with 1 it is Gemma 3 where queries and keys are normed and Gemma 2 where
not. What the family in transformers cannot be is refused by key.
"""

from collections.abc import Iterator
from typing import Any

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.pretrained.rope_in import FULL, SLIDING

MAX_POSITIONS = 131_072  # of a model that comes from no published one

# What a family must be, as far as that does not depend on other keys.
_OLDER = {
    "norm_offset": 1.0,
    "layer_scalar": "none",
    "v_norm": False,
    "unified_kv": False,
    "num_kv_shared_layers": 0,
    "layer_embedding_dim": 0,
    "num_experts": 0,
    "global_rope_fraction": 1.0,
}
_GEMMA_4 = {"qk_norm": True, "v_norm": True, "attention_scale": 1.0, "attention_softcap": 0.0}


def hugging_face_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What config.json holds, tokens aside.  Raises: ConfigError by key."""
    kinds = _kinds(config)
    is_gemma4 = config.norm_offset == 0
    family = "Gemma 4" if is_gemma4 else "Gemma 3" if config.qk_norm else "Gemma 2"
    for name, wanted in (_wanted_4 if is_gemma4 else _wanted_older)(config, kinds):
        got = getattr(config, name)
        if got != wanted:
            problem = f"is nothing that {family} in transformers can be"
            raise ConfigError(f"model.{name}", problem, got, str(wanted))
    own = _gemma4(config, kinds) if is_gemma4 else _older(config)
    return _shape(config, kinds, dtype) | own


def _kinds(config: ModelConfig) -> list[str]:
    """The file's name for the kind of each layer.  Raises: ConfigError for one without."""
    names = {"local": SLIDING, "global": FULL}
    for spec in model.layer_plan(config).layers():
        if "export" in spec.mixer.LACKS:
            reason = f"{spec.about.title} ({spec.letter}) {spec.mixer.LACKS['export']}"
            raise ConfigError("model.pattern", reason, config.pattern)
    return [names[spec.kind] for spec in model.layer_plan(config).layers()]


# --- What a family must be: (key, the only value it can have) --------------------------------

Wanted = Iterator[tuple[str, Any]]


def _common(config: ModelConfig) -> Wanted:
    yield "attention_sinks", False
    yield "attention_gate", "none"
    yield "local_attention", "window"
    yield "learned_positions", 0
    yield "rope_fraction", 1.0
    if config.window_sizes:
        local = {window for window in config.window_sizes if window}
        yield "window_sizes", config.window_sizes if len(local) <= 1 else "one window"


def _wanted_older(config: ModelConfig, kinds: list[str]) -> Wanted:
    del kinds
    yield from _common(config)
    yield from _OLDER.items()
    yield "num_global_kv_heads", config.num_global_kv_heads and config.num_kv_heads
    yield "global_head_dim", config.global_head_dim and config.head_dim
    heads = config.num_heads
    yield "num_heads", heads if config.d_model % heads == 0 else "a divisor of model.d_model"
    scalar = round(config.attention_scale**-2)
    close = abs(config.attention_scale * scalar**0.5 - 1) < 1e-6
    yield "attention_scale", config.attention_scale if close else "n^-0.5 of a whole n"
    if config.qk_norm:
        yield "attention_softcap", 0.0  # a key that Gemma 3 has there, and computes without
    else:
        yield "global_rope_theta", config.rope_theta
        yield "global_rope_factor", 1.0


def _wanted_4(config: ModelConfig, kinds: list[str]) -> Wanted:
    yield from _common(config)
    yield from _GEMMA_4.items()
    if config.layer_scalar == "none":
        yield "layer_scalar", "fixed or trained"
    if kinds[-1] != FULL:
        yield "pattern", "a pattern that ends global"
    if config.kv_shared_ffn_dim not in (0, config.ffn_dim):
        yield "kv_shared_ffn_dim", 2 * config.ffn_dim


# --- What is written -------------------------------------------------------------------------


def _shape(config: ModelConfig, kinds: list[str], dtype: str) -> dict[str, Any]:
    """Keys that all families share."""
    local = [window for window in config.window_sizes if window] or [config.window_size]
    return {
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window": local[0],
        "layer_types": kinds,
        "rms_norm_eps": config.norm_eps,
        "final_logit_softcapping": config.logit_softcap or None,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": MAX_POSITIONS,
        "attention_bias": False,
        "tie_word_embeddings": True,
    }


def _older(config: ModelConfig) -> dict[str, Any]:
    values = {
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap or None,
    }
    local = _rope("default", config.rope_theta)
    if not config.qk_norm:
        names = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}
        return names | values | {"rope_parameters": local}
    kind = "default" if config.global_rope_factor == 1 else "linear"
    wide = _rope(kind, config.global_rope_theta, config.global_rope_factor)
    names = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return names | values | {"rope_parameters": {SLIDING: local, FULL: wide}}


def _rope(kind: str, theta: float, factor: float = 1.0) -> dict[str, Any]:
    scaling = {} if factor == 1 else {"factor": factor}
    return {"rope_type": kind, "rope_theta": theta, **scaling}


def _gemma4(config: ModelConfig, kinds: list[str]) -> dict[str, Any]:
    wide = _rope("proportional", config.global_rope_theta, config.global_rope_factor)
    wide["partial_rotary_factor"] = config.global_rope_fraction
    return {
        "model_type": "gemma4_text",
        "architectures": ["Gemma4ForCausalLM"],
        "attention_k_eq_v": config.unified_kv,
        "num_kv_shared_layers": config.num_kv_shared_layers,
        "use_double_wide_mlp": config.kv_shared_ffn_dim == 2 * config.ffn_dim,
        "hidden_size_per_layer_input": config.layer_embedding_dim,
        "vocab_size_per_layer_input": config.vocab_size,
        "enable_moe_block": config.num_experts > 0,
        "num_experts": config.num_experts or None,
        "top_k_experts": config.num_active_experts or None,
        "moe_intermediate_size": config.expert_dim or None,
        "rope_parameters": {SLIDING: _rope("default", config.rope_theta), FULL: wide},
        **_global_heads(config, kinds),
    }


def _global_heads(config: ModelConfig, kinds: list[str]) -> dict[str, Any]:
    """Heads of global layers: the published keys, which have kv heads of unified layers only."""
    head_dim = config.global_head_dim or config.head_dim
    kv_heads = config.num_global_kv_heads or config.num_kv_heads
    if config.unified_kv or kv_heads == config.num_kv_heads:
        return {"global_head_dim": head_dim, "num_global_key_value_heads": kv_heads}
    width = len(str(config.num_layers - 1))
    entry = {"head_dim": head_dim, "num_key_value_heads": kv_heads}
    layers = [f"{i:0{width}}" for i, kind in enumerate(kinds) if kind == FULL]
    return {"per_layer_config": dict.fromkeys(layers, entry)}
