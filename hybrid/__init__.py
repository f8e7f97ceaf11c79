"""Hybrid local/global attention in JAX: train, evaluate, ablate and generate.

Start with `model/pattern.py` (a pattern and a depth become a plan), then `model/__init__.py`;
`docs/design.md` says what was decided and why.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.generate import generate
    from hybrid.loading.api import Model, from_pretrained, load, save_pretrained
    from hybrid.model.config import ModelConfig
    from hybrid.model.pattern import LayerPlan, LayerSpec, plan_layers
    from hybrid.ops.attention import attend
    from hybrid.ops.band import Band
    from hybrid.plan import plan

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

_MODULES = {
    "generate": ("generate",),
    "loading.api": ("Model", "from_pretrained", "load", "save_pretrained"),
    "model.config": ("ModelConfig",),
    "model.pattern": ("LayerPlan", "LayerSpec", "plan_layers"),
    "ops.attention": ("attend",),
    "ops.band": ("Band",),
    "plan": ("plan",),
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: a command catches signals before jax loads."""
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = getattr(importlib.import_module(f"hybrid.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
