"""Who can look things up? Hybrid, all-local and all-global on needles and associative recall.

python -m hybrid.ablate --config=configs/ablate_recall.py --workdir=runs/ablate_recall

Four layers. All-local with window 16 sees 61 tokens back and must guess beyond.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

CELLS = [
    {"name": "all global", "model.pattern": "G"},
    {"name": "hybrid", "model.pattern": "LLLG"},
    {"name": "all local", "model.pattern": "L", "model.last_layer": "any"},
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.num_layers = 4
    config.base.model.pattern = "LLLG"
    config.base.model.window_size = 16
    config.base.model.num_kv_heads = 4
    config.base.model.global_head_dim = 0
    config.base.model.unified_kv = False
    config.base.model.ffn_dim = 128
    config.base.training.batch_size = 64
    config.base.eval.every_steps = 80

    config.cells = CELLS
    config.arms = [
        ("needle", arms.needle(4, 8, 12, 15, 24, 36, 48, 60, 72, 96, 120)),
        ("mqar", arms.mqar(num_steps=600)),
    ]
    config.baseline = [("model.pattern", "G")]
    config.learning_rates = (6e-3, 1e-2)  # recall is found suddenly, at some rates sooner
    config.seeds = (0, 1, 2)
    return config
