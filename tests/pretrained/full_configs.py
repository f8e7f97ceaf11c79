"""Decoder configs with every key of their class, none at its default, and random parts of them."""

import random

from hybrid.pretrained.rope_in import FULL, SLIDING

_ALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 777,
    "initializer_range": 0.5,
    "rms_norm_eps": 1e-5,
    "use_cache": False,
    "pad_token_id": 7,
    "eos_token_id": [8, 9],
    "bos_token_id": 10,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 48,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL],
    "final_logit_softcapping": 21.0,
}
_OLDER = {"query_pre_attn_scalar": 100, "use_bidirectional_attention": False}
_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 500.0},
    FULL: {"rope_type": "linear", "rope_theta": 2e6, "factor": 4.0},
}
_GEMMA_4 = _ALL | {
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "use_bidirectional_attention": "vision",
    "global_head_dim": 64,
    "num_global_key_value_heads": 4,
    "rope_parameters": _ROPES
    | {FULL: {"rope_type": "proportional", "rope_theta": 2e6, "partial_rotary_factor": 0.5}},
}
FULL_CONFIGS = {
    "gemma2": _ALL
    | _OLDER
    | {"attn_logit_softcapping": 31.0, "rope_parameters": _ROPES[SLIDING] | {"rope_theta": 700.0}},
    "gemma3_text": _ALL | _OLDER | {"attn_logit_softcapping": None, "rope_parameters": _ROPES},
    "gemma4_text": _GEMMA_4
    | {
        "vocab_size_per_layer_input": 512,
        "hidden_size_per_layer_input": 16,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
    "gemma4_unified_text": _GEMMA_4,
}
# Keys that belong together: one of them alone would be another, impossible model.
_TOGETHER = (
    {"num_hidden_layers", "layer_types", "num_kv_shared_layers"},
    {"vocab_size", "vocab_size_per_layer_input"},
    {"enable_moe_block", "num_experts", "top_k_experts", "moe_intermediate_size"},
)


def random_parts(kind: str, count: int, seed: int = 0) -> list[dict]:
    """Configs with random keys left out; with `count` above 1 the last has none left."""
    rng = random.Random(f"{kind} {seed}")
    parts = []
    for _ in range(count):
        dropped = {key for key in FULL_CONFIGS[kind] if rng.random() < rng.choice((0.1, 0.5, 0.9))}
        for group in _TOGETHER:
            dropped |= group if dropped & group else set()
        parts.append({k: v for k, v in FULL_CONFIGS[kind].items() if k not in dropped})
    return [*parts[:-1], {}] if count > 1 else parts
