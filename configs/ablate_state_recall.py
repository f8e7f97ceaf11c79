"""What can a state of fixed size look up? Recurrent mixers alone, and with one global layer.

python -m hybrid.ablate --config=configs/ablate_state_recall.py --workdir=runs/ablate_state_recall

Four layers with small states (four heads of 8, Mamba-2's of 8 a channel), asked for 16 pairs of key
and value, and for needles. Published: what a recurrence recalls is bounded by its state (Zoology,
2312.04927), and few attention layers make up for it (Based, 2402.18668).
"""

from hybrid.ablate import config as ablate

MIXERS = {
    "M": "Mamba-2",
    "R": "RG-LRU",
    "D": "Gated DeltaNet",
    "K": "Kimi Delta",
    "W": "RWKV-7",
}
CELLS = [
    {"name": "all global", "model.pattern": "G"},
    *(
        cell
        for letter, name in MIXERS.items()
        for cell in (
            {"name": f"3 {name} : 1", "model.pattern": 3 * letter + "G"},
            {"name": f"all {name}", "model.pattern": letter, "model.last_layer": "any"},
        )
    ),
]
MQAR = {
    "data.source": "mqar",
    "data.mqar.num_pairs": (16,),
    "model.vocab_size": 256,
    "training.context_length": 128,
    "training.num_steps": 300,
}
NEEDLE = {
    "data.source": "needle",
    "data.needle.distances": (8, 24, 48, 96, 120),
    "data.needle.num_eval_examples": 1000,
    "model.vocab_size": 64,
    "training.context_length": 128,
    "training.num_steps": 150,
}


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.num_layers = 4
    config.base.model.pattern = "MMMG"
    config.base.model.num_kv_heads = 4
    config.base.model.head_dim = 8
    config.base.model.global_head_dim = 16
    config.base.model.unified_kv = False
    config.base.model.ffn_dim = 128
    config.base.model.mamba2 = {"head_dim": 16, "state_dim": 8}
    config.base.training.batch_size = 64
    config.base.eval.every_steps = 100

    config.cells = CELLS
    config.arms = [("mqar", MQAR), ("needle", NEEDLE)]
    config.baseline = [("model.pattern", "G")]
    config.base.optimizer.learning_rate = 6e-3
    config.seeds = (0, 1, 2)
    return config
