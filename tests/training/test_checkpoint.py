"""Checkpoints: bit-equal back, few kept, the best among them, and only whole ones trusted."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.config import ConfigError
from hybrid.training.step import TrainState
from hybrid.workdir import checkpoint
from hybrid.workdir.checkpoint import Checkpoints
from hybrid.workdir.config import CheckpointConfig

RECORD = {"first_row": 8, "evaluation_due": False}


def state(step):
    count = jnp.asarray(step, jnp.int32)
    weights = {"segments": {0: {0: {"kernel": jnp.full((2, 3), step + 0.1)}}}}
    moments = ({"mu": jax.tree.map(lambda x: x + 1, weights)}, count + 0)
    return TrainState(weights, moments, count, count * 0, count * 0)


def shapes(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), tree
    )


def saved(workdir, steps, losses=(), **config):
    writer = Checkpoints(workdir, CheckpointConfig(**config))
    rows = [{"step": step, "eval/loss": loss} for step, loss in dict(losses).items()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in steps:
        writer.save(step, state(step), RECORD)
    writer.finish()
    writer.close()
    return workdir


def test_a_state_comes_back_bit_equal_with_its_record(tmp_path):
    saved(tmp_path, [4])
    restored = checkpoint.restore_state(tmp_path, 4, shapes(state(4)))
    jax.tree.map(np.testing.assert_array_equal, restored, state(4))
    assert checkpoint.read_record(tmp_path, 4) == {"step": 4, **RECORD}
    params, step = checkpoint.restore_params(tmp_path, "latest", shapes(state(4).params))
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, params, state(4).params)


def test_buffers_may_be_donated_while_a_checkpoint_is_written(tmp_path):
    writer = Checkpoints(tmp_path, CheckpointConfig(keep=9))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for step in range(1, 6):
        current = state(step)
        writer.save(step, current, RECORD)
        overwrite(current)
    writer.finish()
    writer.close()
    for step in range(1, 6):
        restored = checkpoint.restore_state(tmp_path, step, shapes(state(step)))
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.2}
    saved(tmp_path, [1, 2, 3, 4, 5], losses, keep=2)
    assert checkpoint.checkpoint_steps(tmp_path) == [2, 4, 5]
    assert checkpoint.find_step(tmp_path, "best") == 2
    assert checkpoint.find_step(tmp_path, "latest") == 5
    assert checkpoint.find_step(tmp_path, "4") == 4


def test_a_kill_during_deletion_leaves_no_half_step(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2])

    def killed(path, **kwargs):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(InterruptedError):
            checkpoint.remove(tmp_path / "checkpoints" / "1")
    assert checkpoint.checkpoint_steps(tmp_path) == [2]
    assert (tmp_path / "checkpoints" / "deleting-1").exists()
    saved(tmp_path, [])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def _empty(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGE = {
    "emptied": _empty,
    "without its record": lambda path: (path / "run" / "metadata").unlink(),
    "record torn": lambda path: (path / "run" / "metadata").write_text('{"step": '),
    "record of another step": lambda path: (path / "run" / "metadata").write_text('{"step": 1}'),
    "not committed": lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    "without parameters": lambda path: shutil.rmtree(path / "params"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_not_trusted_and_can_be_saved_again(tmp_path, damage):
    saved(tmp_path, [1, 2])
    DAMAGE[damage](tmp_path / "checkpoints" / "2")
    assert checkpoint.find_step(tmp_path, "latest") == 1
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-0").mkdir()
    saved(tmp_path, [2])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    restored = checkpoint.restore_state(tmp_path, 2, shapes(state(2)))
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))


def test_what_is_not_there_is_refused_by_its_flag(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError) as error:
            checkpoint.find_step(folder)
        assert error.value.key == "--workdir"
    saved(tmp_path, [3])
    for which in ("best", "2", "newest"):
        with pytest.raises(ConfigError) as error:
            checkpoint.find_step(tmp_path, which)
        assert error.value.key == "--checkpoint"
