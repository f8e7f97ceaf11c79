"""Rows split over `context`: losses of five steps and every gradient equal one device's in float64.

The eight devices are simulated, in a process of its own that reports as JSON (run this file as a
script, with pairs as `context=8:dense`, to see it). A row has 48 tokens: a device's chunks hold 3
to 12, and the window of 5 reaches over one to three of them.
"""

import json
import sys

import pytest
import simulated
from jax.sharding import AbstractMesh

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.model.mixers.attention import AttentionSpec
from hybrid.sharding import MESH_AXES

STEPS = 5
DENSE = {
    "pattern": "LG",
    "num_layers": 4,
    "window_size": 5,
    "d_model": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "num_global_kv_heads": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "unified_kv": True,
    "ffn_dim": 48,
    "vocab_size": 64,
    "dtype": "float64",
}
SHARING = {"num_layers": 4, "num_kv_shared_layers": 2, "layer_embedding_dim": 8}
EXPERTS = {"num_layers": 2, "num_experts": 4, "num_active_experts": 2, "expert_dim": 8}
TWO = {"num_layers": 2}
MODELS = {  # name: (config, rank of adapters, documents a row at most, tokens of a row)
    "packed": (DENSE | TWO, 0, 3, 48),
    "dense": (DENSE | {"pattern": "LLG", "num_layers": 6, "remat": "full"}, 0, 3, 48),
    "one document": (DENSE | TWO | {"attention_sinks": True}, 0, 1, 48),
    "sharing": (DENSE | SHARING | {"unified_kv": False}, 0, 3, 48),
    "experts": (DENSE | EXPERTS | {"attention_softcap": 2.0, "remat": "full"}, 0, 3, 48),
    "lora": (DENSE | TWO, 3, 3, 48),
    "not in chunks": (DENSE | TWO, 0, 3, 44),  # 11 tokens a device, left to the compiler
}
FAST = "context=4 fsdp=2:packed"
SLOW = (
    "context=8:dense",
    "context=4 fsdp=2:sharing",
    "context=2 tensor=2 expert=2:experts",
)
WEEKLY = (
    "context=8:one document",
    "context=8:sharing",
    "context=4 data=2:dense",
    "context=4 tensor=2:dense",
    "context=4 fsdp=2:lora",
    "context=4 expert=2:experts",
    "context=2 data=4:sharing",
    "context=2 fsdp=4:dense",
    "context=2 tensor=4:one document",
    "context=2 expert=4:experts",
    "context=2 fsdp=2 tensor=2:sharing",
    "context=2 data=2 fsdp=2:lora",
    "context=2 data=2 tensor=2:one document",
    "context=2 fsdp=2 expert=2:experts",
    "context=4 data=2:not in chunks",
)


def test_losses_and_gradients_equal_one_devices():
    check(simulated.report(__file__, FAST)[FAST])


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=pytest.mark.slow) for pair in SLOW]
    + [pytest.param(pair, marks=pytest.mark.weekly) for pair in WEEKLY],
)
def test_losses_and_gradients_equal_one_devices_on_further_meshes(pair):
    check(simulated.report(__file__, pair)[pair])


@pytest.mark.slow
def test_scores_come_in_the_rows_order():
    for errors in simulated.report(__file__, "scores")["scores"].values():
        assert errors["nll"] < 1e-12
        assert errors["is_top"] == 0


REFUSED = {
    "training.context_length": {"training.context_length": "264"},
    "eval.context_length": {"eval.context_length": "256,128,100"},
}


def checked(overrides):
    run = experiment.load("configs/tiny.py", overrides)
    run.check_mesh(AbstractMesh((1, 1, 1, 8, 1), MESH_AXES))


@pytest.mark.parametrize("key", REFUSED)
def test_lengths_that_two_chunks_a_device_do_not_divide_are_refused_by_key(key):
    checked({})
    with pytest.raises(ConfigError, match=rf"^{key}: must be a multiple of .* \(16\), got \d+"):
        checked(REFUSED[key])
    checked({"eval.mode": "cached", "eval.context_length": "100"})


def test_a_mixer_that_does_not_serve_split_rows_is_refused(monkeypatch):
    monkeypatch.setattr(AttentionSpec, "SPLITS_TIME", False)
    with pytest.raises(ConfigError, match=r"^mesh.context: .* local attention \(L\)"):
        checked({})


def check(report):
    assert len(report["loss_errors"]) == STEPS
    assert max(report["loss_errors"]) < 1e-9
    assert len(report["gradient_errors"]) > 10
    assert {name: e for name, e in report["gradient_errors"].items() if not e < 1e-9} == {}


# --- The process with eight devices -----------------------------------------------------------


def main(pairs):
    """Prints the report.  Imports here: the environment must be set first."""
    import functools

    import jax
    import numpy as np

    one = functools.cache(lambda name: _train({"data": 1}, name, jax.devices()[:1]))
    report = {}
    for pair in pairs:
        if pair == "scores":
            report[pair] = {mode: _score_errors(mode) for mode in ("forward", "cached")}
            continue
        sizes, name = pair.split(":")
        sizes = {"data": 1} | {k: int(v) for k, v in (word.split("=") for word in sizes.split())}
        losses, gradients = _train(sizes, name, jax.devices())
        wanted_losses, wanted = one(name)
        report[pair] = {
            "loss_errors": [abs(a / b - 1) for a, b in zip(losses, wanted_losses, strict=True)],
            "gradient_errors": {
                name: float(np.abs(gradients[name] - array).max() / max(1e-3, np.abs(array).max()))
                for name, array in wanted.items()
            },
        }
    print(json.dumps(report))


def _train(sizes, name, devices):
    """Losses of steps of gradient descent, and the gradients of the first, by parameter."""
    import jax

    from hybrid.model.config import LoraConfig, ModelConfig
    from hybrid.model.params import flat, param_name
    from hybrid.model.trained import abstract_trained, split
    from hybrid.sharding import MeshConfig, batch_sharding, make_mesh, shardings
    from hybrid.training import objective
    from hybrid.training.config import StepConfig

    fields, rank, documents, time = MODELS[name]
    config, adapters = ModelConfig(**fields), LoraConfig(rank=rank)
    mesh = make_mesh(MeshConfig(**sizes), devices)
    shapes, mask = abstract_trained(config, adapters, ())
    where = shardings(mesh, _names(config, adapters), shapes)
    params = jax.device_put(_values(shapes), where)
    batch = jax.device_put(_batch(8, time, config.vocab_size, documents), batch_sharding(mesh))
    trained, frozen = split(params, mask)
    weights = StepConfig(**({"load_balance_loss": 0.1} if config.num_experts else {}))

    @jax.jit
    def step(trained, frozen, batch):
        sums, gradient = objective.loss_and_gradient(
            config, trained, batch, weights, frozen=frozen, shardings=split(where, mask)[0]
        )
        moved = jax.tree.map(lambda leaf, g: leaf - 0.02 * g, trained, gradient)
        return moved, sums.loss.nll / sums.loss.count, gradient

    losses, first = [], None
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            trained, loss, gradient = step(trained, frozen, batch)
            losses.append(float(loss))
            first = gradient if first is None else first
    gradients = {param_name(p): leaf for p, leaf in flat(first).items() if leaf is not None}
    return losses, jax.device_get(gradients)


def _score_errors(mode):
    """The largest difference of the scores of a mesh and of one device."""
    import jax
    import numpy as np

    from hybrid import model
    from hybrid.evaluation.batches import jitted
    from hybrid.inference.config import InferenceConfig
    from hybrid.inference.scoring import through_cache
    from hybrid.model.config import ModelConfig
    from hybrid.sharding import MeshConfig, batch_sharding, make_mesh, shardings

    config = ModelConfig(**DENSE | TWO)
    score, shapes = model.score, model.abstract(config)
    batch = _batch(2, 48, config.vocab_size, 3 if mode == "forward" else 1)
    if mode == "cached":
        score = through_cache(model.score_hidden, InferenceConfig(prefill_chunk=16))
    scores = []
    for sizes, devices in (
        ({"data": 1}, jax.devices()[:1]),
        ({"data": 2, "context": 4}, jax.devices()),
    ):
        mesh = make_mesh(MeshConfig(**sizes), devices)
        params = jax.device_put(
            _values(shapes), shardings(mesh, model.logical_axes(config), shapes)
        )
        with jax.set_mesh(mesh):
            placed = jax.device_put(batch, batch_sharding(mesh))
            scores.append(jax.device_get(jitted(score, config, params, True)(placed)))
    return {
        name: float(np.abs(np.subtract(*(np.float64(getattr(s, name)) for s in scores))).max())
        for name in ("nll", "is_top")
    }


def _names(config, adapters):
    from hybrid import model
    from hybrid.model import lora

    return lora.add_axes(adapters, model.logical_axes(config))


def _values(shapes):
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), shapes)


def _batch(rows, time, vocab_size, documents):
    """Packed rows with unpredicted tokens here and there."""
    import numpy as np

    from hybrid.data.batch import Batch

    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(1, documents + 1, (rows, time)), axis=1).astype(np.int32)
    starts = np.array([[np.searchsorted(row, s) for s in row] for row in segments])
    return Batch(
        tokens=rng.integers(0, vocab_size, (rows, time), np.int32),
        targets=rng.integers(0, vocab_size, (rows, time), np.int32),
        segment_ids=segments,
        positions=(np.arange(time) - starts).astype(np.int32),
        loss_mask=rng.random((rows, time)) < 0.7,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
