"""Global layers without position encoding (NoPE): LLLG, window 512; 100 million parameters.

Order reaches the global layers through the local ones, so nothing in them is bound to the
trained length (cohere2, EXAONE 4, Llama 4; Kimi Linear 2510.26692 measured 78.8 -> 84.3 on RULER).

python train.py --config=configs/nope.py --workdir=runs/nope
"""

from hybrid import experiment


def get_config():
    config = experiment.defaults()

    config.model.pattern = "LLLG"
    config.model.num_layers = 12
    config.model.window_size = 512
    config.model.global_rope_fraction = 0.0
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
