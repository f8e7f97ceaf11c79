"""The tiny models that stand for the family: names, transformers' configs, tokens, checked places.

Each has what one published model has, at a width and depth where a float64 forward takes
milliseconds: window 8, rows of 48 tokens. This file imports neither jax nor torch.

Read next: `keyed.py` for their weights, `peer.py` for transformers' side.
"""

import dataclasses
from typing import Any

import numpy as np

ROWS, LENGTH, VOCAB, WINDOW = 2, 48, 96, 8
SEED = 0
# Before the window's end, at it, and where only global layers see the row's start.
POSITIONS = (0, 1, 6, 7, 8, 9, 15, 16, 17, 31, 40, 47)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A tiny model in transformers' words.

    Attributes:
      model, config: names of transformers' classes.
      keys: arguments of the decoder's config.
      wrapper: arguments of the config around it, for a multimodal model; None: there is none.
      norm_offset: 1 where files keep norm weights around zero (Gemma 2, 3).
    """

    model: str
    config: str
    keys: dict[str, Any]
    wrapper: dict[str, Any] | None = None
    norm_offset: float = 0.0


def layer_types(pattern: str, num_layers: int) -> list[str]:
    """transformers' names of the layers of a repeated pattern, cut at `num_layers`."""
    names = {"L": "sliding_attention", "G": "full_attention"}
    return [names[pattern[layer % len(pattern)]] for layer in range(num_layers)]


_SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "max_position_embeddings": 64,
}
_GEMMA4 = _SHARED | {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
    "final_logit_softcapping": 30.0,
}
_UNIFIED = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_LAYER_EMBEDDINGS = {"hidden_size_per_layer_input": 8}
_EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 3,
    "moe_intermediate_size": 12,
}


def _gemma4(pattern: str, num_layers: int, **keys) -> Variant:
    depth = {"num_hidden_layers": num_layers, "layer_types": layer_types(pattern, num_layers)}
    return Variant("Gemma4ForCausalLM", "Gemma4TextConfig", _GEMMA4 | depth | keys)


_TOWERS = {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "position_embedding_size": 4,
        "patch_size": 2,
    },
    "audio_config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "subsampling_conv_channels": [4, 4],
        "output_proj_dims": 8,
    },
}

VARIANTS = {
    # 31B and 12B: K = V on global layers, which have heads of their own number and width.
    "unified": _gemma4("LLLLLG", 12, **_UNIFIED),
    # E2B: per-layer embeddings; the second period reuses keys and values and is twice as wide.
    "kv_sharing": _gemma4(
        "LLLLG",
        10,
        **_LAYER_EMBEDDINGS | {"num_key_value_heads": 1},
        num_kv_shared_layers=5,
        use_double_wide_mlp=True,
    ),
    # Sharing begins inside a period: donors in two periods, two whole periods of readers.
    "kv_sharing_inside_period": _gemma4("LLG", 12, **_LAYER_EMBEDDINGS, num_kv_shared_layers=7),
    "layer_embeddings": _gemma4("LLLLLG", 6, **_LAYER_EMBEDDINGS, hidden_size=24),
    # 26B-A4B: experts beside a dense feed-forward.
    "experts": _gemma4("LLG", 6, **_UNIFIED, **_EXPERTS),
    # All at once. The large eps makes visible which factors come before a norm.
    "everything": _gemma4(
        "LLG",
        9,
        **_UNIFIED,
        **_LAYER_EMBEDDINGS,
        **_EXPERTS,
        num_kv_shared_layers=4,
        use_double_wide_mlp=True,
        rms_norm_eps=0.1,
    ),
    # transformers turns the last layer of a cut pattern global.
    "last_layer_forced_global": _gemma4("LLLLLG", 8, **_UNIFIED, hidden_size=24),
    "other_rope": _gemma4(
        "LLLG",
        4,
        final_logit_softcapping=None,
        rms_norm_eps=1e-5,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 30_000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    # As published: the decoder under other names, beside a vision and an audio tower.
    "multimodal": Variant(
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        _gemma4("LG", 4, **_LAYER_EMBEDDINGS, num_kv_shared_layers=2).keys,
        wrapper=_TOWERS,
    ),
    # Gemma 3 4B and 27B: ends local, linear scaling of global layers, a scale of its own.
    "gemma3": Variant(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _SHARED
        | {
            "num_hidden_layers": 8,
            "layer_types": layer_types("LLLLLG", 8),
            "query_pre_attn_scalar": 12,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
        norm_offset=1.0,
    ),
    # Gemma 2: softcaps on scores and logits, no QK-norm. Both low enough to bend something.
    "gemma2": Variant(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _SHARED
        | {
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 10.0,
        },
        norm_offset=1.0,
    ),
}


def token_rows(seed: int) -> np.ndarray:
    """int32 [ROWS, LENGTH + 1]: inputs and the token after them; id 0 is padding to some."""
    raw = np.random.Philox(key=seed).random_raw(ROWS * (LENGTH + 1))
    return (1 + raw % np.uint64(VOCAB - 1)).astype(np.int32).reshape(ROWS, LENGTH + 1)
