"""Hybrid local/global attention in JAX: train, evaluate and ablate.

Start with `pattern.py` (a pattern and a depth become a plan), then `model.py`; `docs/design.md`
tells what was decided and why.
"""

from hybrid.api import Model, from_pretrained, load, save_pretrained
from hybrid.model_config import ModelConfig
from hybrid.ops.attention import attend
from hybrid.ops.band import Band
from hybrid.pattern import LayerPlan, LayerSpec, plan_layers

# Bound last: the package `hybrid.plan` and this function share a name (the module is callable).
from hybrid.plan import plan

__all__ = [
    "Band",
    "LayerPlan",
    "LayerSpec",
    "Model",
    "ModelConfig",
    "attend",
    "from_pretrained",
    "load",
    "plan",
    "plan_layers",
    "save_pretrained",
]
