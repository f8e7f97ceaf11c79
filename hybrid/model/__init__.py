"""The model: a plan of layers, run as scans; pure functions of (config, params, arrays).

Read `pattern.py` (a pattern and a depth become a plan), `mixers/` and `blocks/` (what a layer is),
`stack.py` (how a plan runs), then `language_model.py`, whose functions are named here.
"""

from hybrid.model.language_model import (
    Params,
    abstract,
    extend,
    head,
    hidden_states,
    init,
    layer_plan,
    logical_axes,
    logits,
    loss_sums,
    score,
    score_hidden,
    slot_arrays,
    training_sums,
)

__all__ = [
    "Params",
    "abstract",
    "extend",
    "head",
    "hidden_states",
    "init",
    "layer_plan",
    "logical_axes",
    "logits",
    "loss_sums",
    "score",
    "score_hidden",
    "slot_arrays",
    "training_sums",
]
