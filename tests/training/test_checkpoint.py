"""Checkpoints: bit-equal back, few kept, the best among them, and only whole ones trusted."""

import builtins
import errno
import io
import json
import os
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
    assert checkpoint.read_record(tmp_path, 4) == {"step": 4, "format": 3, **RECORD}
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


# --- Damage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Checkpoints of steps 1 and 2, to be copied and damaged."""
    return saved(tmp_path_factory.mktemp("two"), [1, 2])


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


FILE_DAMAGE = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first bit flipped": lambda path: _flip(path, 0),
    "a bit flipped": lambda path: _flip(path, 0.5),
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("/nowhere")),
}
# One of each kind of file: what Orbax says of the whole and of an item, arrays, ours.
FILES = (
    "_CHECKPOINT_METADATA",
    "checksums.json",
    "run/metadata",
    "params/_METADATA",
    "params/manifest.ocdbt",
    "params/d/*",
    "params/ocdbt.process_0/d/*",
    "opt_state/_METADATA",
    "opt_state/d/*",
    "counters/_METADATA",
    "counters/d/*",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", FILE_DAMAGE)
def test_a_damaged_newest_is_never_used_and_never_passed_over_in_silence(
    two_steps, tmp_path, caplog, damage, name
):
    """99 kinds: the newest that is used is bit-equal, and a warning names one that is not."""
    shutil.copytree(two_steps, tmp_path / "run")
    files = [p for p in sorted((tmp_path / "run" / "checkpoints" / "2").glob(name)) if p.is_file()]
    FILE_DAMAGE[damage](files[0])
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with caplog.at_level("WARNING", "hybrid"):
        step = checkpoint.find_step(tmp_path / "run")
    if step == 2:  # a time of the clock or a newline was hit, nothing that is read
        assert name in ("_CHECKPOINT_METADATA", "checksums.json")
        restored = checkpoint.restore_state(tmp_path / "run", step, shapes(state(step)))
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))
    else:
        assert step == 1
        assert "checkpoint 2 is damaged" in caplog.text
        with pytest.raises(ConfigError, match=r"damaged|no such checkpoint"):
            checkpoint.find_step(tmp_path / "run", "2")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def _all_damaged(workdir):
    for step in (1, 2):
        _flip(next((workdir / "checkpoints" / str(step) / "params" / "d").iterdir()), 0.5)


def _dangling(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").symlink_to("/not/mounted")


def _emptied(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").mkdir()


REFUSED = {
    "all are damaged": (_all_damaged, "holds no sound checkpoint (2: "),
    "all are gone": (lambda workdir: shutil.rmtree(workdir / "checkpoints"), "2: it isn't there"),
    "the folder is empty, as when nothing is mounted": (_emptied, "2: it isn't there"),
    "the folder is a dangling link": (_dangling, "leads to /not/mounted, which isn't there"),
    "the folder is a file": (
        lambda w: (shutil.rmtree(w / "checkpoints"), (w / "checkpoints").write_text("")),
        "checkpoints can't be read (Not a directory)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_nothing_sound_is_left_nothing_begins_anew(two_steps, tmp_path, case):
    damage, words = REFUSED[case]
    shutil.copytree(two_steps, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        checkpoint.newest_sound(tmp_path / "run")
    assert error.value.key == "--workdir"
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["2/_CHECKPOINT_METADATA", "2/run/metadata", "2/params/d", ""])
def test_what_cannot_be_read_is_refused_by_name(two_steps, monkeypatch, name):
    """As of a network disk that is away: an error of reading says nothing about what is there."""
    broken = two_steps / "checkpoints" / name

    def failing(function):
        def call(path, *args, **kwargs):
            if str(path).startswith(str(broken)):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return function(path, *args, **kwargs)

        return call

    for module, function in ((io, "open"), (builtins, "open"), (os, "stat"), (os, "listdir")):
        monkeypatch.setattr(module, function, failing(getattr(module, function)))
    with pytest.raises(ConfigError, match="can't be read") as error:
        checkpoint.newest_sound(two_steps)
    assert error.value.key == "--workdir"
    assert "Input/output error" in str(error.value)


def test_a_newest_that_has_vanished_is_named(two_steps, tmp_path, caplog):
    shutil.copytree(two_steps, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    with caplog.at_level("WARNING", "hybrid"):
        assert checkpoint.find_step(tmp_path / "run") == 1
    assert "checkpoint 2 is damaged (it isn't there): using 1" in caplog.text


def test_a_damaged_step_stays_until_it_is_saved_again(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2" / "run" / "metadata").write_text('{"step": ')
    (folder / "3.orbax-checkpoint-tmp-0").mkdir()
    saved(tmp_path / "run", [])
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    saved(tmp_path / "run", [2])
    restored = checkpoint.restore_state(tmp_path / "run", 2, shapes(state(2)))
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))


def test_a_damaged_newer_step_makes_no_sound_one_too_old(two_steps, tmp_path):
    """A run that goes on from step 1 and saves beside the damaged 2 deletes neither."""
    shutil.copytree(two_steps, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    _flip(next((folder / "2" / "params" / "d").iterdir()), 0.5)
    (folder / "2").rename(folder / "9")
    record = json.loads((folder / "9" / "run" / "metadata").read_text())
    (folder / "9" / "run" / "metadata").write_text(json.dumps(record | {"step": 9}))
    saved(tmp_path / "run", [], keep=1)
    assert checkpoint.find_step(tmp_path / "run") == 1
    saved(tmp_path / "run", [3], keep=1)
    assert checkpoint.checkpoint_steps(tmp_path / "run") == [3, 9]
    assert checkpoint.find_step(tmp_path / "run") == 3


def test_checkpoints_of_earlier_versions_are_read_without_checksums(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "2"
    (folder / "checksums.json").unlink()
    (folder / "run" / "metadata").write_text(json.dumps({"step": 2, **RECORD}))
    (tmp_path / "run" / "saved_step").unlink()
    assert checkpoint.find_step(tmp_path / "run") == 2


def test_the_best_is_among_those_evaluated_alike(tmp_path):
    writer = Checkpoints(tmp_path, CheckpointConfig(keep=9))
    losses = {1: 1.0, 2: 3.0, 3: 2.0}
    rows = [{"step": step, "eval/loss": loss} for step, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, text in ((1, "short"), (2, "long"), (3, "long")):
        writer.save(step, state(step), {**RECORD, "evaluation": [text, 64]})
    writer.finish()
    writer.close()
    assert checkpoint.find_step(tmp_path, "best") == 3


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
