"""0.3 million parameters: the model that ablations vary, about a minute a run on 2 CPU cores.

python train.py --config=configs/micro.py --workdir=runs/micro     (or :local, :global)
"""

from hybrid import experiment

PATTERNS = {"hybrid": "LLLLLG", "local": "L", "global": "G"}


def get_config(variant: str = "hybrid"):
    config = experiment.defaults()

    config.model.pattern = PATTERNS[variant]
    config.model.last_layer = "any" if variant == "local" else "require_global"
    config.model.num_layers = 6
    config.model.window_size = 32
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.num_kv_heads = 1
    config.model.head_dim = 16
    config.model.global_head_dim = 32
    config.model.unified_kv = True
    config.model.ffn_dim = 192
    config.model.vocab_size = 264  # 256 bytes, pad, BOS, EOS, rounded up to a multiple of 8

    config.data.source = "stdlib"
    config.data.tokenizer = "byte"
    config.data.eval_fraction = 0.1  # more documents: intervals are over documents

    config.training.num_steps = 300
    config.training.batch_size = 16
    config.training.context_length = 256
    config.training.log_every = 10
    config.training.tensorboard = False
    config.training.peak_flops = -1.0  # no MFU: measuring the peak takes a second a run

    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.1

    config.eval.every_steps = 50
    config.eval.max_tokens = 131_072
    config.checkpoint.every_steps = 150
    config.checkpoint.keep = 1
    return config
