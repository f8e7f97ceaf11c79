"""What transformers takes for a key of config.json that is left out: the table of its classes.

Published files name only what differs from these (Gemma 3 4B has no head counts, head_dim and
vocab_size), so a reader without the whole table reads another model, or none. Also what such a key
may be: a key that no class of the family has is no key of the family.
Source: transformers 5.23, Gemma2Config, Gemma3TextConfig, Gemma4TextConfig and
Gemma4UnifiedTextConfig; a slow test compares all keys with the installed classes.
"""

from typing import Any

_ALL: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "layer_types": None,
}
_GEMMA_4 = _ALL | {
    "vocab_size": 262_144,
    "num_hidden_layers": 30,
    "final_logit_softcapping": None,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}

# By the model_type of the decoder.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": _ALL
    | {
        "vocab_size": 256_000,
        "num_hidden_layers": 26,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
    },
    "gemma3_text": _ALL
    | {
        "vocab_size": 262_208,
        "num_hidden_layers": 26,
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    "gemma4_text": _GEMMA_4
    | {
        "max_position_embeddings": 131_072,
        "sliding_window": 512,
        "use_bidirectional_attention": None,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "enable_moe_block": False,
        "num_experts": None,
        "top_k_experts": None,
        "moe_intermediate_size": None,
    },
    "gemma4_unified_text": _GEMMA_4
    | {
        "max_position_embeddings": 262_144,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
    },
}

# Keys that are no fields of the classes: older names that they still read, with their defaults.
OLDER: dict[str, dict[str, Any]] = {
    "gemma2": {"rope_theta": 10_000.0, "rope_scaling": None},
    "gemma3_text": {
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": None,
        "sliding_window_pattern": 6,
    },
    "gemma4_text": {"global_head_dim": 512, "num_global_key_value_heads": None},
    "gemma4_unified_text": {"global_head_dim": 512, "num_global_key_value_heads": None},
}
