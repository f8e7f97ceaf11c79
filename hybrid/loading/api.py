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

import jax
import jax.numpy as jnp

from hybrid import model as model_lib
from hybrid.axes import Logits
from hybrid.config import ConfigError, opened_path
from hybrid.data import tokenizers
from hybrid.loading import initial
from hybrid.model.config import ModelConfig
from hybrid.origin import Origin, find
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

    def __call__(self, tokens: jax.typing.ArrayLike) -> Logits:
        """Next-token logits of int32 [batch, time]: [batch, time, vocab], float32 or wider."""
        return _logits(self.config)(self.params, jnp.asarray(tokens, jnp.int32))


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


def save_pretrained(model: Model, path: str | pathlib.Path) -> None:
    """Writes a Hugging Face folder that transformers loads with the same logits.

    Raises: ConfigError naming what transformers cannot express, or a folder that isn't empty;
      nothing is written then.
    """
    from hybrid import pretrained

    folder = pathlib.Path(opened_path("path", os.fspath(path)))
    pretrained.write_folder(model.params, model.config, folder, model.origin.tokenizer)


def _read(origin: Origin, config: ModelConfig, **keys) -> Model:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Model(config, initial.read_params(origin, config, mesh, **keys), origin)


@functools.cache
def _logits(config: ModelConfig) -> Callable:
    return jax.jit(functools.partial(model_lib.logits, config))
