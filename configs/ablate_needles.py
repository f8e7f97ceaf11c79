"""Where does a model find a needle? A table by length and depth: hybrid, all-local and all-global.

python -m hybrid.ablate --config=configs/ablate_needles.py --workdir=runs/ablate_needles

Four layers, trained on needles at drawn distances and then asked, as eval.py would: a key and its
value at each depth of contexts up to the trained length. All-local with window 16 sees 61 tokens
back, and that is the edge of its table.
"""

from hybrid.ablate import config as ablate

CELLS = [
    {"name": "all global", "model.pattern": "G"},
    {"name": "hybrid", "model.pattern": "LLLG"},
    {"name": "all local", "model.pattern": "L", "model.last_layer": "any"},
]
NEEDLES = {
    "page": "configs/needles.py:keys",
    "eval.retrieval.lengths": (32, 64, 96, 128),
    "eval.retrieval.depths": (0.0, 25.0, 50.0, 75.0, 100.0),
    "eval.retrieval.num_samples": 64,
}


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.num_layers = 4
    config.base.model.pattern = "LLLG"
    config.base.model.window_size = 16
    config.base.model.num_kv_heads = 4
    config.base.model.global_head_dim = 0
    config.base.model.unified_kv = False
    config.base.model.ffn_dim = 128
    config.base.model.vocab_size = 64
    config.base.data.source = "needle"
    config.base.training.context_length = 128
    config.base.training.batch_size = 64
    config.base.training.num_steps = 150
    config.base.optimizer.learning_rate = 1e-2

    config.cells = CELLS
    config.evaluations = [("needles", NEEDLES)]
    config.baseline = [("model.pattern", "G")]
    config.seeds = (0, 1, 2)
    return config
