"""Parameters from a folder, and the start of a run from them (`init_from`).

The folder's own model is read as it is, each tensor where the mesh has it, and converted if the
run's model is another (`conversion.py`). Checking comes first and reads no tensor.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid import model
from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.loading.conversion import Report, convert, shapes
from hybrid.model import lora
from hybrid.model.config import ModelConfig
from hybrid.model.layers import param_dtype
from hybrid.model.params import flat
from hybrid.model.trained import abstract_trained
from hybrid.origin import Origin, find
from hybrid.sharding import placed, shardings
from hybrid.workdir import checkpoint, layout


def check_initial(experiment: Experiment) -> None:
    """Raises: ConfigError for a folder that `read_initial` can't use."""
    origin = find(experiment.init_from)
    if origin.is_run:
        checkpoint.find_step(origin.path)
    old, new = model_of(origin, experiment.model.dtype), experiment.model
    abstract = model.abstract(old)
    jax.eval_shape(functools.partial(_converted, old, new), abstract, jax.random.key(0))


def read_initial(
    experiment: Experiment, mesh: Mesh, log: Callable[[str], None] = lambda line: None
) -> model.Params:
    """Parameters for the run's model from the folder `init_from`, on `mesh`.

    Fresh tensors are those that the run's seed would give a new model.  `log` gets lines on what
    became of the folder's tensors.
    Raises: ConfigError as `check_initial`.
    """
    origin = find(experiment.init_from)
    old, new = model_of(origin, experiment.model.dtype), experiment.model
    params = read_params(origin, old, mesh)
    key = jax.random.key(experiment.training.seed)
    converted: Callable[..., tuple[model.Params, Report]] = functools.partial(_converted, old, new)
    if shapes(old) != shapes(new):
        # As one program, which cuts and stacks layers where they end: as operations of their own
        # all layers would be there at once, beside both models.
        placed_as = shardings(mesh, model.logical_axes(new), model.abstract(new))
        converted = jax.jit(converted, out_shardings=(placed_as, None))
    params, report = converted(params, key)
    for line in report.lines():
        log(f"init_from: {line}")
    return params


def _converted(
    old: ModelConfig, new: ModelConfig, params: model.Params, key: jax.Array
) -> tuple[model.Params, Report]:
    return convert(old, params, new, key)


def model_of(origin: Origin, dtype: str) -> ModelConfig:
    """The folder's own model, computing in `dtype`.  Raises: ConfigError for one it can't be."""
    experiment_lib.check_x64(dtype)
    try:
        return config_lib.build(ModelConfig, {**origin.model, "dtype": dtype})
    except ConfigError as error:
        problem = f"of {origin.path}: {error.problem}"
        raise ConfigError(f"model.{error.key}", problem, error.got) from None


def read_params(
    origin: Origin,
    config: ModelConfig,
    mesh: Mesh,
    *,
    which: str | int = "latest",
    dtype: Any = None,
) -> model.Params:
    """The parameters in a folder, each tensor where `mesh` has it; adapters are merged.

    Args:
      config: the folder's own model.
      which: of a run, `latest`, `best` or a step; the number that `find_step` gave.
      dtype: of the parameters; None: at least float32.
    """
    dtype = jnp.dtype(dtype or param_dtype(config))
    shapes = model.abstract(config)
    leaf_shardings = shardings(mesh, model.logical_axes(config), shapes)
    if origin.run is None:
        from hybrid import pretrained

        return pretrained.read_params(origin.path, config, leaf_shardings, dtype, key=origin.key)
    if origin.run.get("lora", {}).get("rank"):
        run = experiment_lib.from_config({**origin.run, "mesh": {}})
        params = _read_adapted(origin, run, mesh, which)
    else:
        params = checkpoint.restore_params(origin.path, which, placed(shapes, leaf_shardings))[0]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _read_adapted(origin: Origin, run: Experiment, mesh: Mesh, which: str | int) -> model.Params:
    adapted, _ = abstract_trained(run.model, run.lora, ())
    logical_axes = lora.add_axes(run.lora, model.logical_axes(run.model))
    targets = lora.adapters(placed(adapted, shardings(mesh, logical_axes, adapted)))
    adapters, step = checkpoint.restore_params(origin.path, which, targets)
    base = read_initial(run, mesh)
    check_base(run, checkpoint.read_record(origin.path, step), base, fingerprint(base))
    return lora.merge(lora.with_adapters(base, adapters))


def check_base(
    experiment: Experiment, record: Mapping[str, Any], base: model.Params, now: str
) -> None:
    """Raises: ConfigError if the base that adapters were trained on has changed since.

    Args:
      record: of the adapters' checkpoint.  base: what `init_from` holds.  now: its fingerprint.
    """
    trained_on = record.get("base")
    found = fingerprint(layout.apart(base, record)) if layout.is_apart(record) else now
    if trained_on != found:
        problem = "is not what the adapters were trained on"
        raise ConfigError(
            "init_from", problem, f"{experiment.init_from} ({found})", str(trained_on)
        )


# --- A fingerprint ---------------------------------------------------------------------------


def fingerprint(params: model.Params) -> str:
    """16 hexadecimal digits of the parameters' values, the same however they are split.

    A fine-tuned model has the shapes and sizes of its base, so only values distinguish them.
    """
    sums = jax.device_get(jax.jit(functools.partial(jax.tree.map, _bit_sum))(params))
    # Names as jax writes paths, which the records of checkpoints have kept.
    named = {"".join(f"[{key!r}]" for key in path): value for path, value in flat(sums).items()}
    text = "\n".join(f"{name} {value}" for name, value in sorted(named.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bit_sum(leaf: jax.Array) -> jax.Array:
    """Σ_i bits_i · weight_i modulo 2^32: exact, so devices may add in any order.

    Weights come from a number's position and are odd, so a change of any one number shows.
    """
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        position = position * jnp.uint32(size) + index
    mixed = position * jnp.uint32(2654435761)  # Knuth's multiplicative hash
    weight = (mixed ^ (mixed >> 15)) | jnp.uint32(1)
    if leaf.dtype.itemsize == 8:
        halves = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        bits = halves[..., 0] + halves[..., 1] * jnp.uint32(3)
    else:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    return jnp.sum(bits.astype(jnp.uint32) * weight, dtype=jnp.uint32)
