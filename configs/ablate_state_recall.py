"""What can a state of fixed size look up? Recurrent mixers alone, and with one global layer.

python -m hybrid.ablate --config=configs/ablate_state_recall.py --workdir=runs/ablate_state_recall

Two layers with small states (four heads of 8, Mamba-2's of 8 a channel), asked for 8 pairs of key
and value in 64 tokens, and for needles. Published: what a recurrence recalls is bounded by its
state (Zoology, 2312.04927), and few attention layers make up for it (Based, 2402.18668). RG-LRU,
whose state is a vector, is asked for 4 pairs, and needs three layers before the global one and more
steps to find the rule.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

VECTOR = {"model.num_layers": 4, "training.num_steps": 1200, "data.mqar.num_pairs": (4,)}
MIXERS = {
    "M": ("Mamba-2", 1, {}),
    "D": ("Gated DeltaNet", 1, {}),
    "K": ("Kimi Delta", 1, {}),
    "W": ("RWKV-7", 1, {}),
    "R": ("RG-LRU", 3, VECTOR),
}
CELLS = [
    {"name": "all global", "model.pattern": "G"},
    *(
        cell
        for letter, (name, count, more) in MIXERS.items()
        for cell in (
            {"name": f"{count} {name} : 1", "model.pattern": count * letter + "G", **more},
            {"name": f"all {name}", "model.pattern": letter, "model.last_layer": "any", **more},
        )
    ),
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.num_layers = 2
    config.base.model.pattern = "G"
    config.base.model.num_kv_heads = 4
    config.base.model.head_dim = 8
    config.base.model.global_head_dim = 16
    config.base.model.unified_kv = False
    config.base.model.ffn_dim = 128
    config.base.model.mamba2 = {"head_dim": 16, "state_dim": 8}
    config.base.training.batch_size = 32
    config.base.optimizer.learning_rate = 6e-3
    config.base.eval.every_steps = 300
    config.base.checkpoint.every_steps = 10_000

    config.cells = CELLS
    config.arms = [
        ("mqar", arms.mqar(num_pairs=8, num_steps=600)),
        ("needle", arms.needle(4, 12, 24, 40, 56) | {"training.context_length": 64}),
    ]
    config.baseline = [("model.pattern", "G")]
    config.seeds = (0, 1, 2)
    return config
