"""About 100 million parameters, for one accelerator or a small mesh.

python train.py --config=configs/small.py --workdir=runs/small --config.mesh.fsdp=8
python train.py --config=configs/small.py:global --workdir=runs/small_global     (or :local)
"""

from hybrid import experiment

PATTERNS = {"hybrid": "LLLLLG", "local": "L", "global": "G"}


def get_config(variant: str = "hybrid"):
    config = experiment.defaults()

    config.model.pattern = PATTERNS[variant]
    config.model.last_layer = "any" if variant == "local" else "require_global"
    config.model.num_layers = 12
    config.model.window_size = 512
    config.model.d_model = 768
    config.model.num_heads = 12
    config.model.num_kv_heads = 4
    config.model.num_global_kv_heads = 2
    config.model.head_dim = 64
    config.model.global_head_dim = 128
    config.model.unified_kv = True
    config.model.ffn_dim = 3072
    config.model.vocab_size = 264
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.data.source = "stdlib"
    config.data.tokenizer = "byte"

    config.training.num_steps = 10_000
    config.training.batch_size = 64
    config.training.context_length = 2048
    config.training.log_every = 10

    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0

    config.eval.every_steps = 500
    config.eval.max_tokens = 1_000_000
    config.checkpoint.every_steps = 500
    return config
