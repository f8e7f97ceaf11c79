"""Gemma 4, text decoder: E2B, E4B, 12B, 26B-A4B, 31B.

python -m hybrid.plan --config=configs/gemma4.py:31b --context=262144
python eval.py --config=configs/gemma4.py:e2b --pretrained=FOLDER --config.data.paths=FILE

Pretrained folders bring their own `model.*` and tokenizer; a page is for planning and for training
from scratch.
"""

from hybrid import experiment

LARGE = {"window_size": 1024, "unified_kv": True}
SIZES = {
    "e2b": {
        "pattern": "LLLLG",
        "num_layers": 35,
        "num_kv_shared_layers": 20,
        "d_model": 1536,
        "num_heads": 8,
        "ffn_dim": 6144,
        "kv_shared_ffn_dim": 12_288,
        "layer_embedding_dim": 256,
    },
    "e4b": {
        "num_layers": 42,
        "num_kv_shared_layers": 18,
        "d_model": 2560,
        "num_heads": 8,
        "num_kv_heads": 2,
        "ffn_dim": 10_240,
        "layer_embedding_dim": 256,
    },
    "12b": LARGE
    | {
        "num_layers": 48,
        "d_model": 3840,
        "num_heads": 16,
        "num_kv_heads": 8,
        "num_global_kv_heads": 1,
        "ffn_dim": 15_360,
    },
    "26b_a4b": LARGE
    | {
        "num_layers": 30,
        "d_model": 2816,
        "num_heads": 16,
        "num_kv_heads": 8,
        "num_global_kv_heads": 2,
        "ffn_dim": 2112,
        "num_experts": 128,
        "num_active_experts": 8,
        "expert_dim": 704,
    },
    "31b": LARGE
    | {
        "num_layers": 60,
        "d_model": 5376,
        "num_heads": 32,
        "num_kv_heads": 16,
        "num_global_kv_heads": 4,
        "ffn_dim": 21_504,
    },
}


def get_config(size: str = "31b"):
    config = experiment.defaults()

    config.model.pattern = "LLLLLG"
    config.model.window_size = 512
    config.model.head_dim = 256
    config.model.global_head_dim = 512
    config.model.vocab_size = 262_144
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.update(SIZES[size])

    config.training.context_length = 4096
    config.training.batch_size = 64
    config.optimizer.learning_rate = 3e-4
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
