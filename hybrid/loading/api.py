"""The Python interface: a model with its parameters, from a run or a Hugging Face folder.

model = hybrid.from_pretrained(folder)        or hybrid.load(workdir)
logits = model(tokens)
hybrid.save_pretrained(model, folder)
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid import model as model_lib
from hybrid.axes import Logits
from hybrid.config import ConfigError, opened_path
from hybrid.data import tokenizers
from hybrid.data.tasks import TASKS
from hybrid.loading import initial
from hybrid.model.config import DTYPES, ModelConfig
from hybrid.origin import Origin, base_folder, find
from hybrid.sharding import MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that can be called.

    Attributes:
      config: its `model.*` keys.
      params: its parameters, stacked as `hybrid.model` describes.
      origin: the folder that it came from, with its tokenizer.
    """

    config: ModelConfig
    params: model_lib.Params
    origin: Origin

    @functools.cached_property
    def pad_id(self) -> int:
        """The pad id of the model's tokenizer; 0 where its folder has none."""
        try:
            return tokenizers.load(self.origin.tokenizer).pad_id
        except ConfigError:
            return 0

    def __call__(self, tokens: Any) -> Logits:
        """Next-token logits of int [batch, time]: [batch, time, vocab], float32 or wider.

        Raises: ConfigError for ids outside the vocabulary, ValueError for what are no integers.
        """
        return _logits(self.config)(self.params, checked_ids(tokens, self.config.vocab_size))


def checked_ids(tokens: Any, vocab_size: int) -> jax.Array:
    """Tokens as int32; traced ones are not looked at.

    Raises: ConfigError for ids outside the vocabulary, ValueError for what are no integers.
    """
    is_traced = isinstance(tokens, jax.core.Tracer)
    ids = tokens if is_traced else np.asarray(tokens)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"tokens: must be integers, got {ids.dtype}")
    for worst in () if is_traced else (ids.min(initial=0), ids.max(initial=0)):
        if not 0 <= worst < vocab_size:
            raise ConfigError("tokens", f"must be ids below vocab_size ({vocab_size})", int(worst))
    return jnp.asarray(tokens if isinstance(tokens, jax.Array) else ids, jnp.int32)


def from_pretrained(path: str | pathlib.Path, dtype: str = "float32") -> Model:
    """The text decoder of a Hugging Face folder of Gemma 2, 3 or 4, computing in `dtype`.

    Parameters are kept in `dtype` too.
    Raises: ConfigError naming what is wrong with the folder, or a dtype that isn't served.
    """
    origin = find(path, "path")
    if origin.is_run:
        raise ConfigError("path", "is a run's workdir", str(path), "hybrid.load reads it")
    return _read(origin, initial.model_of(origin, dtype), dtype=dtype)


def load(workdir: str | pathlib.Path, checkpoint: str | int = "latest") -> Model:
    """The model of a run.

    Args:
      checkpoint: `latest`, `best` (by eval/loss) or a step.
    Raises: ConfigError for a folder that is no workdir, or a checkpoint that isn't there.
    """
    origin = find(workdir, "workdir")
    if not origin.is_run:
        problem = "is a Hugging Face folder"
        raise ConfigError("workdir", problem, str(workdir), "hybrid.from_pretrained reads it")
    config = initial.model_of(origin, origin.model.get("dtype", "float32"))
    return _read(origin, config, which=str(checkpoint))


def save_pretrained(model: Model, path: str | pathlib.Path, dtype: str = "") -> None:
    """Writes a Hugging Face folder that transformers loads with the same logits.

    What the model's own Hugging Face folder says besides (special ids, positions, generation) goes
    along, and of a run what the folder says that it was started from.

    Args:
      dtype: of the tensors; empty: the parameters' own.
    Raises: ConfigError naming what transformers cannot express, a dtype that isn't served, or a
      folder that isn't empty; nothing is written then.
    """
    from hybrid import pretrained

    check_dtype(dtype)
    pretrained.write_folder(
        model.params,
        model.config,
        pathlib.Path(opened_path("path", os.fspath(path))),
        model.origin.tokenizer,
        adds_bos=_has_bos(model.origin),
        dtype=dtype,
        base=base_folder(model.origin),
    )


def check_dtype(dtype: str) -> None:
    """Raises: ConfigError for a dtype that tensors can't have; empty stands for their own."""
    if dtype not in ("", *DTYPES):
        raise ConfigError("dtype", "is not served", dtype, "one of " + ", ".join(DTYPES))


def base_dtype(model: Model) -> str:
    """The dtype of the Hugging Face folder that a model began as; empty where none is served."""
    from hybrid import pretrained

    base = base_folder(model.origin)
    dtype = "" if base is None else pretrained.read_settings(base).dtype
    return dtype if dtype in DTYPES else ""


def _has_bos(origin: Origin) -> bool:
    """Whether the documents of a run began with BOS; a task's rows have none."""
    source = (origin.run or {}).get("data", {}).get("source")
    return origin.bos != "never" and source not in TASKS


def _read(origin: Origin, config: ModelConfig, **keys) -> Model:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Model(config, initial.read_params(origin, config, mesh, **keys), origin)


@functools.cache
def _logits(config: ModelConfig) -> Callable:
    return jax.jit(functools.partial(model_lib.logits, config))
