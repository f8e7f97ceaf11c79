"""The demo: 1.5 million parameters on the bytes of the standard library, a few CPU minutes.

python train.py --config=configs/tiny.py --workdir=runs/tiny
python train.py --config=configs/tiny.py:local --workdir=runs/tiny_local     (or :global)
"""

from hybrid import experiment

PATTERNS = {"hybrid": "LLLLLG", "local": "L", "global": "G"}


def get_config(variant: str = "hybrid"):
    config = experiment.defaults()

    config.model.pattern = PATTERNS[variant]
    config.model.last_layer = "any" if variant == "local" else "require_global"
    config.model.num_layers = 6
    config.model.window_size = 64
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.global_head_dim = 64
    config.model.unified_kv = True
    config.model.ffn_dim = 512
    config.model.vocab_size = 264  # 256 bytes, pad, BOS, EOS, rounded up to a multiple of 8

    config.data.source = "stdlib"
    config.data.tokenizer = "byte"

    config.training.num_steps = 320
    config.training.batch_size = 16
    config.training.context_length = 256
    config.training.log_every = 10

    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.1

    config.eval.every_steps = 160
    config.eval.max_tokens = 65_536
    config.checkpoint.every_steps = 160
    return config
