"""Published config.json files become the presets; what we write is read as it was."""

import dataclasses
import json

import pytest

from hybrid import experiment, model, pretrained
from hybrid.config import ConfigError
from hybrid.model.config import RUNTIME_KEYS, ModelConfig
from hybrid.pretrained.config_out import hugging_face_config

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def gemma4(layers, period, **keys):
    kinds = [GLOBAL if (i + 1) % period == 0 else LOCAL for i in range(layers)]
    return {
        "model_type": "gemma4_text",
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "head_dim": 256,
        "global_head_dim": 512,
        "vocab_size": 262_144,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
            GLOBAL: {
                "rope_type": "proportional",
                "rope_theta": 1_000_000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        **keys,
    }


def sizes(hidden, heads, kv_heads, ffn, window):
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return dict(
        zip((*names, "sliding_window"), (hidden, heads, kv_heads, ffn, window), strict=True)
    )


UNIFIED = {"attention_k_eq_v": True, "use_bidirectional_attention": "vision"}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
E2B = gemma4(
    35,
    5,
    **sizes(1536, 8, 1, 6144, 512),
    num_kv_shared_layers=20,
    use_double_wide_mlp=True,
    num_global_key_value_heads=None,
) | {"hidden_size_per_layer_input": 256}
GEMMA3 = {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "vocab_size": 262_208,
    "query_pre_attn_scalar": 256,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
SMALL3 = {"rope_scaling": None, "vocab_size": 262_144}
GEMMA2 = {
    "model_type": "gemma2",
    "head_dim": 256,
    "vocab_size": 256_000,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

PUBLISHED = {
    "gemma4.py:e2b": E2B,
    "gemma4.py:e4b": gemma4(42, 6, **sizes(2560, 8, 2, 10_240, 512), num_kv_shared_layers=18)
    | {"hidden_size_per_layer_input": 256},
    "gemma4.py:12b": gemma4(
        48, 6, **sizes(3840, 16, 8, 15_360, 1024), **UNIFIED, num_global_key_value_heads=1
    )
    | {"model_type": "gemma4_unified_text", "hidden_size_per_layer_input": None},
    "gemma4.py:26b_a4b": gemma4(
        30, 6, **sizes(2816, 16, 8, 2112, 1024), **UNIFIED, **EXPERTS, num_global_key_value_heads=2
    ),
    "gemma4.py:31b": gemma4(
        60, 6, **sizes(5376, 32, 16, 21_504, 1024), **UNIFIED, num_global_key_value_heads=4
    ),
    "gemma3.py:270m": GEMMA3 | SMALL3 | {"num_hidden_layers": 18, **sizes(640, 4, 1, 2048, 512)},
    "gemma3.py:1b": GEMMA3 | SMALL3 | {"num_hidden_layers": 26, **sizes(1152, 4, 1, 6912, 512)},
    "gemma3.py:4b": GEMMA3 | {"num_hidden_layers": 34, **sizes(2560, 8, 4, 10_240, 1024)},
    "gemma3.py:12b": GEMMA3 | {"num_hidden_layers": 48, **sizes(3840, 16, 8, 15_360, 1024)},
    "gemma3.py:27b": GEMMA3
    | {"num_hidden_layers": 62, **sizes(5376, 32, 16, 21_504, 1024)}
    | {"head_dim": 128, "query_pre_attn_scalar": 168},
    "gemma2.py:2b": GEMMA2 | {"num_hidden_layers": 26, **sizes(2304, 8, 4, 9216, 4096)},
    "gemma2.py:9b": GEMMA2 | {"num_hidden_layers": 42, **sizes(3584, 16, 8, 14_336, 4096)},
    "gemma2.py:27b": GEMMA2
    | {"num_hidden_layers": 46, **sizes(4608, 32, 16, 36_864, 4096)}
    | {"head_dim": 128, "query_pre_attn_scalar": 144},
}


def read(values, folder):
    (folder / "config.json").write_text(json.dumps(values))
    return ModelConfig(**pretrained.model_values(folder))


def same(first, second):
    """Equal but for how they run, how heads are told, and how the last layer came to be global."""

    def plain(config):
        runtime = {name: getattr(ModelConfig(), name) for name in RUNTIME_KEYS}
        told = {
            "last_layer": "any",
            "num_global_kv_heads": config.num_global_kv_heads or config.num_kv_heads,
            "global_head_dim": config.global_head_dim or config.head_dim,
        }
        return dataclasses.replace(config, **runtime, **told)

    assert plain(first) == plain(second)
    assert model.layer_plan(first) == model.layer_plan(second)


@pytest.mark.parametrize("page", PUBLISHED)
def test_a_published_file_is_the_preset(page, tmp_path):
    same(read(PUBLISHED[page], tmp_path), experiment.load(f"configs/{page}").model)


@pytest.mark.parametrize("page", ["gemma4.py:e2b", "gemma4.py:31b", "gemma3.py:4b"])
def test_the_file_of_a_multimodal_model_is_too(page, tmp_path):
    inner = PUBLISHED[page]
    family = inner["model_type"].removesuffix("_text")
    outer = {"model_type": family, "text_config": inner, "vision_config": {"hidden_size": 1152}}
    same(read(outer, tmp_path), experiment.load(f"configs/{page}").model)


@pytest.mark.parametrize(("page", "kv_heads"), [("gemma4.py:31b", 4), ("gemma4.py:e2b", None)])
def test_the_newest_form_tells_global_heads_a_layer_at_a_time(page, kv_heads, tmp_path):
    values = {n: v for n, v in PUBLISHED[page].items() if "global" not in n}
    entry = {"head_dim": 512} | ({"num_key_value_heads": kv_heads} if kv_heads else {})
    layers = [i for i, kind in enumerate(values["layer_types"]) if kind == GLOBAL]
    values["per_layer_config"] = {f"{layer:02}": entry for layer in layers}
    same(read(values, tmp_path), experiment.load(f"configs/{page}").model)


@pytest.mark.parametrize("page", [p for p in PUBLISHED if p.startswith("gemma3")])
def test_gemma_3_in_its_newest_form(page, tmp_path):
    old = PUBLISHED[page]
    kinds = [GLOBAL if i % 6 == 5 else LOCAL for i in range(old["num_hidden_layers"])]
    wide = {"rope_type": "default", "rope_theta": 1_000_000.0} | (old["rope_scaling"] or {})
    ropes = {LOCAL: {"rope_type": "default", "rope_theta": 10_000.0}, GLOBAL: wide}
    gone = ("sliding_window_pattern", "rope_theta", "rope_local_base_freq", "rope_scaling")
    new = {n: v for n, v in old.items() if n not in gone}
    new |= {"layer_types": kinds, "rope_parameters": ropes}
    same(read(new, tmp_path), experiment.load(f"configs/{page}").model)


@pytest.mark.parametrize("page", PUBLISHED)
def test_what_is_written_is_read_as_it_was(page, tmp_path):
    config = experiment.load(f"configs/{page}").model
    same(read(hugging_face_config(config, "bfloat16"), tmp_path), config)


def test_a_cut_period_is_found_again(tmp_path):
    kinds = [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL]
    found = read(
        PUBLISHED["gemma4.py:31b"] | {"num_hidden_layers": 5, "layer_types": kinds}, tmp_path
    )
    assert (found.pattern, found.last_layer) == ("LLG", "force_global")
    assert model.layer_plan(found).letters == "LLGLG"  # as transformers makes it


TINY = experiment.load("configs/tiny.py").model
GEMMA3_TINY = dataclasses.replace(experiment.load("configs/gemma3.py:270m").model, num_layers=6)
CANNOT = [
    (TINY, "attention_sinks", True),
    (TINY, "qk_norm", False),
    (TINY, "attention_scale", 0.5),
    (TINY, "attention_softcap", 50.0),
    (TINY, "layer_scalar", "none"),
    (TINY, "window_sizes", (8, 8, 8, 16, 16, 0)),
    (GEMMA3_TINY, "unified_kv", True),
    (GEMMA3_TINY, "layer_embedding_dim", 4),
    (GEMMA3_TINY, "global_rope_fraction", 0.5),
    (GEMMA3_TINY, "global_head_dim", 128),
    (GEMMA3_TINY, "attention_scale", 0.3),
    (GEMMA3_TINY, "layer_scalar", "fixed"),
    (GEMMA3_TINY, "norm_offset", 0.5),
]


@pytest.mark.parametrize(("config", "key", "value"), CANNOT)
def test_what_transformers_cannot_be_is_refused_by_key(config, key, value):
    keys = {key: value}
    if key == "qk_norm" or key == "unified_kv":
        keys |= {"unified_kv": key == "unified_kv", "v_norm": True, "qk_norm": key != "qk_norm"}
    with pytest.raises(ConfigError, match=r"^model\.(v_norm|" + key + "): is nothing that Gemma"):
        hugging_face_config(dataclasses.replace(config, **keys), "float32")


def test_gemma_4_ends_global():
    local = dataclasses.replace(TINY, pattern="L", last_layer="any")
    with pytest.raises(ConfigError, match=r"model.pattern: is nothing that Gemma 4"):
        hugging_face_config(local, "float32")
