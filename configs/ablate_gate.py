"""Does a gate on attention's result help? None, a number a head, one an element.

python -m hybrid.ablate --config=configs/ablate_gate.py --workdir=runs/ablate_gate

At equal parameters: the feed-forward gives what a gate takes. Published: lower loss and no more
attention sinks at 1.7B and 15B (2505.06708, table 1).
"""

from hybrid.ablate import config as ablate


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.training.num_steps = 200

    config.axes = [("model.attention_gate", ("none", "head", "element"))]
    config.match = "params"
    config.seeds = (0, 1, 2)
    return config
