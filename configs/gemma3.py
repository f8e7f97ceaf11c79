"""Gemma 3, text decoder: 270M, 1B, 4B, 12B, 27B; 1B, 4B and 27B end with a local layer.

python -m hybrid.plan --config=configs/gemma3.py:27b --context=131072
"""

from hybrid import experiment

SMALL = {"window_size": 512, "vocab_size": 262_144, "num_heads": 4, "num_kv_heads": 1}
LARGE = {"window_size": 1024, "vocab_size": 262_208, "global_rope_factor": 8.0}
SIZES = {
    "270m": SMALL | {"num_layers": 18, "d_model": 640, "ffn_dim": 2048},
    "1b": SMALL | {"num_layers": 26, "d_model": 1152, "ffn_dim": 6912},
    "4b": LARGE
    | {"num_layers": 34, "d_model": 2560, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 10_240},
    "12b": LARGE
    | {"num_layers": 48, "d_model": 3840, "num_heads": 16, "num_kv_heads": 8, "ffn_dim": 15_360},
    "27b": LARGE
    | {
        "num_layers": 62,
        "d_model": 5376,
        "num_heads": 32,
        "num_kv_heads": 16,
        "head_dim": 128,
        "attention_scale": (5376 / 32) ** -0.5,
        "ffn_dim": 21_504,
    },
}


def get_config(size: str = "4b"):
    config = experiment.defaults()

    config.model.pattern = "LLLLLG"
    config.model.last_layer = "any"
    config.model.head_dim = 256
    config.model.global_rope_fraction = 1.0
    config.model.attention_scale = 256**-0.5
    config.model.v_norm = False
    config.model.norm_offset = 1.0
    config.model.layer_scalar = "none"
    config.model.logit_softcap = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.update(SIZES[size])

    config.training.context_length = 4096
    config.training.batch_size = 64
    config.optimizer.learning_rate = 3e-4
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
