"""gpt-oss's pattern: LG, a window of 128 tokens, learned attention sinks; 100 million parameters.

With so short a window a head often has nothing to look for; the sink lets it look away.
The pattern and the sinks are gpt-oss's (2508.10925), the rest of the block is Gemma 4's.

python train.py --config=configs/sinks.py --workdir=runs/sinks
"""

from hybrid import experiment


def get_config():
    config = experiment.defaults()

    config.model.pattern = "LG"
    config.model.num_layers = 12
    config.model.window_size = 128
    config.model.attention_sinks = True
    config.model.rope_theta = 150_000.0
    config.model.global_rope_theta = 150_000.0
    config.model.global_rope_fraction = 1.0
    config.model.d_model = 768
    config.model.num_heads = 12
    config.model.num_kv_heads = 4
    config.model.head_dim = 64
    config.model.ffn_dim = 3072
    config.model.vocab_size = 264
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.training.num_steps = 10_000
    config.training.batch_size = 64
    config.training.context_length = 2048
    config.training.log_every = 10
    config.optimizer.learning_rate = 2e-3
    config.eval.every_steps = 500
    config.eval.max_tokens = 1_000_000
    config.checkpoint.every_steps = 500
    return config
