"""Our side: folders with keyed weights, and what our decoder computes from one.

Read next: `test_golden_parity.py`.
"""

import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pretrained.parity import keyed
from pretrained.parity.variants import LENGTH, ROWS, SEED, VARIANTS

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.model_config import ModelConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Compiling is most of the time here, and unoptimised code runs these shapes just as well.
_QUICK = {"xla_backend_optimization_level": 0}


class Golden(NamedTuple):
    """A file of make_golden.py, unpacked."""

    config: str
    shapes: dict[str, tuple[int, ...]]
    rows: np.ndarray
    logits: np.ndarray
    logits32: np.ndarray
    nll: np.ndarray
    gradients: dict[str, np.ndarray]

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of the variant's file."""
        return keyed.weights(self.shapes, SEED, VARIANTS[name].norm_offset)


@functools.cache
def golden(name: str) -> Golden:
    """What transformers computed for a variant."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    shapes = {n: tuple(shape) for n, shape in json.loads(str(arrays["shapes"])).items()}
    names = json.loads(str(arrays["gradient_names"]))
    return Golden(
        config=str(arrays["config"]),
        shapes=shapes,
        gradients=dict(zip(names, arrays["gradients"], strict=True)),
        **{key: arrays[key] for key in ("rows", "logits", "logits32", "nll")},
    )


def batch(rows: np.ndarray) -> Batch:
    """Rows [b, t + 1] as a batch that predicts every token."""
    shape = rows[:, 1:].shape
    positions = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    ones = jnp.ones(shape, jnp.int32)
    return Batch(jnp.asarray(rows[:, :-1]), jnp.asarray(rows[:, 1:]), ones, positions, ones > 0)


@functools.partial(jax.jit, static_argnums=0, compiler_options=_QUICK)
def forward(config: ModelConfig, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits [b, t, v] and nll [b, t]."""
    return model.logits(config, params, batch.tokens), model.token_nll(config, params, batch)


@functools.partial(jax.jit, static_argnums=0, compiler_options=_QUICK)
def gradients(config: ModelConfig, params: dict, batch: Batch) -> dict:
    """Gradients of the mean loss, as the parameters' tree."""

    def mean_loss(params):
        sums = model.loss_sums(config, params, batch)
        return sums.nll / sums.count

    return jax.grad(mean_loss)(params)
