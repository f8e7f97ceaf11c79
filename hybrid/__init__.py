"""Hybrid local/global attention in JAX: train, evaluate, ablate and generate.

Start with `pattern.py` (a pattern and a depth become a plan), then `model.py`; `docs/design.md`
tells what was decided and why.
"""

from hybrid.loading.api import Model, from_pretrained, load, save_pretrained
from hybrid.model.config import ModelConfig
from hybrid.model.pattern import LayerPlan, LayerSpec, plan_layers
from hybrid.ops.attention import attend
from hybrid.ops.band import Band

# Bound last: packages and these functions share names (the modules are callable).
from hybrid.generate import generate  # isort: skip
from hybrid.plan import plan  # isort: skip

__all__ = [
    "Band",
    "LayerPlan",
    "LayerSpec",
    "Model",
    "ModelConfig",
    "attend",
    "from_pretrained",
    "generate",
    "load",
    "plan",
    "plan_layers",
    "save_pretrained",
]
