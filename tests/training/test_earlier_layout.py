"""Checkpoints of format 1 and 2, where each layer of a period stood apart, are still read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.params import flat, layer_params, nested, param_name
from hybrid.training.step import TrainState
from hybrid.workdir import checkpoint, layout
from hybrid.workdir.checkpoint import Checkpoints
from hybrid.workdir.config import CheckpointConfig

CONFIG = ModelConfig(
    pattern="LLLG",
    num_layers=10,
    last_layer="force_global",
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    window_size=4,
    ffn_dim=8,
    vocab_size=16,
)
PLAN = model.layer_plan(CONFIG)
RECORD = {
    "format": 2,
    "segments": [[segment.letters, segment.repetitions] for segment in PLAN.segments],
}


@pytest.fixture(scope="module")
def params():
    return jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))


def test_slots_hold_the_layers_of_their_depths(params):
    assert RECORD["segments"] == [["LLLG", 2], ["LG", 1]]
    slots = layout.apart(params, RECORD)["segments"]
    for depth in range(PLAN.num_layers):
        segment, inside = divmod(depth, 8)
        repetition, slot = divmod(inside, 4)
        ours = layer_params(PLAN, params, depth)
        stored = flat(slots[segment][slot])
        assert {param_name(path) for path in stored} == ours.keys()
        for path, leaf in stored.items():
            np.testing.assert_array_equal(leaf[repetition], ours[param_name(path)])


def test_a_state_of_format_2_comes_back_as_runs(params, tmp_path, monkeypatch):
    moments = ({"mu": jax.tree.map(lambda leaf: leaf + 1, params)}, jnp.int32(4))
    count = jnp.asarray(4, jnp.int32)
    state = TrainState(params, moments, count, count * 0, count * 0)
    earlier = TrainState(*(layout.apart(part, RECORD) for part in (params, moments)), *[count] * 3)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    writer = Checkpoints(tmp_path, CheckpointConfig())
    writer.save(4, earlier, {**RECORD, "evaluation_due": False})
    writer.finish()
    writer.close()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state
    )
    restored = checkpoint.restore_state(tmp_path, 4, like)
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(restored, name), getattr(state, name))
    found, _ = checkpoint.restore_params(tmp_path, "latest", like.params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_adapters_of_some_layers_alone_are_refused(params):
    some = nested(
        {path: leaf for path, leaf in flat(params).items() if path[:3] != ("segments", 0, 0)}
    )
    with pytest.raises(ConfigError, match="earlier version"):
        layout.apart(some, RECORD)
