"""Gemma 2: 2B, 9B, 27B; every second layer is local, scores and logits are softcapped.

python -m hybrid.plan --config=configs/gemma2.py:9b --context=8192
"""

from hybrid import experiment

SIZES = {
    "2b": {"num_layers": 26, "d_model": 2304, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 9216},
    "9b": {
        "num_layers": 42,
        "d_model": 3584,
        "num_heads": 16,
        "num_kv_heads": 8,
        "ffn_dim": 14_336,
    },
    "27b": {
        "num_layers": 46,
        "d_model": 4608,
        "num_heads": 32,
        "num_kv_heads": 16,
        "head_dim": 128,
        "attention_scale": (4608 / 32) ** -0.5,
        "ffn_dim": 36_864,
    },
}


def get_config(size: str = "2b"):
    config = experiment.defaults()

    config.model.pattern = "LG"
    config.model.window_size = 4096
    config.model.head_dim = 256
    config.model.global_rope_theta = 10_000.0
    config.model.global_rope_fraction = 1.0
    config.model.attention_scale = 256**-0.5
    config.model.attention_softcap = 50.0
    config.model.qk_norm = False
    config.model.v_norm = False
    config.model.norm_offset = 1.0
    config.model.layer_scalar = "none"
    config.model.vocab_size = 256_000
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.update(SIZES[size])

    config.training.context_length = 4096
    config.training.batch_size = 64
    config.optimizer.learning_rate = 3e-4
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
