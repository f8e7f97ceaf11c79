"""Our side: folders with keyed weights, and what our decoder computes from one.

Read next: `test_golden_parity.py`.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pretrained.parity import keyed
from pretrained.parity.variants import SEED, VARIANTS
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from hybrid import model, pretrained
from hybrid.data.batch import Batch
from hybrid.loading import api
from hybrid.model.config import ModelConfig
from hybrid.pretrained import names

GOLDEN = pathlib.Path(__file__).parent / "golden"


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


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits [b, t, v] and the nll [b, t] that follows from them."""
    logits = model.logits(config, params, batch.tokens)
    chosen = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    return logits, jax.nn.logsumexp(logits, axis=-1) - chosen


@functools.partial(jax.jit, static_argnums=0)
def gradients(config: ModelConfig, params: dict, batch: Batch) -> dict:
    """Gradients of the mean loss, as the parameters' tree."""

    def mean_loss(params):
        sums = model.loss_sums(config, params, batch)
        return sums.nll / sums.count

    return jax.grad(mean_loss)(params)


def write_folder(folder: pathlib.Path, config: str, weights: dict[str, np.ndarray]) -> None:
    """A folder as transformers saved it."""
    folder.mkdir()
    (folder / "config.json").write_text(config)
    save_file(weights, folder / "model.safetensors")
    write_tokenizer(folder)


def write_tokenizer(folder):
    """Characters a to w as ids 3 to 25, and transformers' ids of pad, EOS and BOS."""
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    vocabulary = special | {chr(97 + i): 3 + i for i in range(23)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: pathlib.Path, dtype: str) -> tuple[ModelConfig, dict]:
    """The model in a folder, as a user loads it."""
    found = api.from_pretrained(folder, dtype)
    return found.config, found.params


def model_config(name: str) -> ModelConfig:
    """A variant's model, from the golden config.json alone."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(golden(name).config)
        return ModelConfig(**pretrained.model_values(pathlib.Path(folder)))


def with_scalars(config: ModelConfig) -> ModelConfig:
    """The model with layer scalars trained, where it has them.

    transformers keeps them in a buffer; a gradient tells a wrong place all the same.
    """
    trained = "none" if config.layer_scalar == "none" else "trained"
    return dataclasses.replace(config, layer_scalar=trained)


def by_file_name(name: str, config: ModelConfig, tree: dict) -> dict[str, np.ndarray]:
    """A tree like the parameters as the tensors of the variant's file."""
    prefix = "model." if VARIANTS[name].wrapper is None else "model.language_model."
    stored = names.stored_tensors(config, prefix)
    return {tensor: _joined(tree, rows) for tensor, rows in stored.items()}


def _joined(tree, rows):
    whole = np.empty(rows[0].file_shape)
    for row in rows:
        leaf = np.asarray(functools.reduce(lambda node, key: node[key], row.path, tree))
        own = leaf if row.repetition is None else leaf[row.repetition]
        whole[row.part.of(whole.shape) if row.part else ...] = row.layout.to_file(own)
    return whole
