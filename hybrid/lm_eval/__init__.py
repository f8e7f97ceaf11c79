"""Models for lm-evaluation-harness: any of its tasks on a run or a Hugging Face folder.

    import hybrid.lm_eval, lm_eval
    lm_eval.simple_evaluate(model="hybrid", model_args="pretrained=FOLDER", tasks=["arc_easy"])
    lm_eval.simple_evaluate(model=hybrid.lm_eval.HybridLM(workdir="runs/a"), tasks=["arc_easy"])
    python -m hybrid.lm_eval --pretrained=FOLDER --tasks=arc_easy

Importing this registers `hybrid` beside the library's own models; the class, and jax with it, is
loaded when it is first used. Without the library, everything but the command's `--help` fails.
Read in order: `model.py`, `scoring.py`, `generation.py`, `command.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.lm_eval.model import HybridLM

__all__ = ["HybridLM"]

try:
    # Its own models come first: the library fills its registry only while that is empty.
    importlib.import_module("lm_eval.models")
    from lm_eval.api.registry import model_registry
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
else:
    model_registry.register("hybrid", target="hybrid.lm_eval.model:HybridLM")


def __getattr__(name: str) -> Any:
    """The class, imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'hybrid.lm_eval' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module("hybrid.lm_eval.model"), name)
    return globals()[name]
