"""A run that was stopped goes on to the same rows and bits; a wrong resume changes nothing."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import quick
import tiny_run

from hybrid import model
from hybrid.config import ConfigError
from hybrid.process.signals import Preempted
from hybrid.training import loop
from hybrid.workdir import checkpoint


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of six steps without a stop: (its folder, experiment, workdir)."""
    folder = tmp_path_factory.mktemp("straight")
    experiment = tiny_run.experiment_of(folder)
    loop.run(experiment, folder / "run")
    return folder, experiment, folder / "run"


def params(experiment, workdir, which="latest"):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        model.abstract(experiment.model),
    )
    return checkpoint.restore_params(workdir, which, shapes)


def assert_same_run(experiment, workdir, straight):
    assert tiny_run.rows(workdir) == tiny_run.rows(straight[2])
    ours, step = params(experiment, workdir)
    theirs, _ = params(experiment, straight[2])
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def stop_after(monkeypatch, step, number):
    """Sends this process a signal when `step` is finished, before its events."""
    run_due = loop.run_due

    def run_due_after_signal(events, finished):
        if finished == step:
            os.kill(os.getpid(), number)
        return run_due(events, finished)

    monkeypatch.setattr(loop, "run_due", run_due_after_signal)


def test_rows_come_in_order_with_their_evaluations(straight):
    found = tiny_run.rows(straight[2])
    assert [row["step"] for row in found] == [1, 2, 3, 3, 4, 5, 6, 6]
    evaluations = [row for row in found if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert evaluations[0].keys() == {"step", "eval/loss", "eval/perplexity", "eval/bits_per_byte"}
    first = json.loads((straight[2] / "metrics.jsonl").read_text().splitlines()[0])
    wanted = "step loss grad_norm learning_rate tokens_per_second mfu tokens_seen"
    assert first.keys() == {*wanted.split(), "skipped_steps"}
    assert found[-2]["loss"] < found[0]["loss"]
    assert found[0]["tokens_seen"] < found[1]["tokens_seen"]
    assert checkpoint.checkpoint_steps(straight[2]) == [2, 4, 6]


@pytest.mark.parametrize(
    ("number", "stop"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_when_an_evaluation_is_due_saves_and_evaluates_on_resume(
    straight, tmp_path, monkeypatch, number, stop
):
    experiment, workdir = straight[1], tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3, number)
        with pytest.raises(stop, match="step 3 is saved"):
            loop.run(experiment, workdir)
    assert checkpoint.checkpoint_steps(workdir) == [2, 3]
    assert [row["step"] for row in tiny_run.rows(workdir)] == [1, 2, 3]
    loop.run(experiment, workdir)
    assert_same_run(experiment, workdir, straight)


def test_rows_beyond_the_checkpoint_and_a_torn_one_are_cut(straight, tmp_path, monkeypatch):
    experiment, workdir = straight[1], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "evaluate", _crash)
        with pytest.raises(ZeroDivisionError):
            loop.run(experiment, workdir)
    assert checkpoint.checkpoint_steps(workdir) == [2]
    assert [row["step"] for row in tiny_run.rows(workdir)] == [1, 2]
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    loop.run(experiment, workdir)
    assert_same_run(experiment, workdir, straight)


def _crash(self, step):
    raise ZeroDivisionError


def test_a_finished_run_says_so_and_touches_nothing(straight, capsys):
    before = tiny_run.snapshot(straight[2])
    loop.run(straight[1], straight[2])
    assert "finished" in capsys.readouterr().err
    assert tiny_run.snapshot(straight[2]) == before


@pytest.mark.parametrize(
    ("section", "keys", "named"),
    [
        ("model", {"ffn_dim": 32}, "model.ffn_dim"),
        ("model", {"window_size": 4}, "model.window_size"),
        ("training", {"seed": 1}, "training.seed"),
        ("training", {"batch_size": 8}, "training.batch_size"),
        ("training", {"num_steps": 5}, "training.num_steps"),
        ("optimizer", {"learning_rate": 0.5}, "optimizer.learning_rate"),
        ("data", {"bos": "never"}, "data.bos"),
    ],
)
def test_another_config_is_refused_by_its_key_and_changes_nothing(straight, section, keys, named):
    before = tiny_run.snapshot(straight[2])
    with pytest.raises(ConfigError) as error:
        loop.run(tiny_run.with_key(straight[1], section, **keys), straight[2])
    assert error.value.key == named
    assert tiny_run.snapshot(straight[2]) == before


def test_a_run_that_is_older_than_a_key_goes_on(straight, tmp_path):
    _, experiment, workdir = straight
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["lora"], config["optimizer"]["freeze"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    loop.run(tiny_run.with_key(experiment, "training", num_steps=7), tmp_path / "run")
    assert checkpoint.checkpoint_steps(tmp_path / "run")[-1] == 7


def test_another_text_is_refused_and_changes_nothing(straight):
    folder, experiment, workdir = straight
    record = checkpoint.read_record(workdir, 6)
    before = tiny_run.snapshot(workdir)
    text = folder / "texts" / "0.txt"
    was = text.read_text()
    text.write_text(was + " more")
    try:
        with pytest.raises(ConfigError, match="another than that of the run") as error:
            loop.run(tiny_run.with_key(experiment, "training", num_steps=8), workdir)
    finally:
        text.write_text(was)
    assert error.value.key == "data.paths"
    assert record["data_fingerprint"] in str(error.value)
    assert tiny_run.snapshot(workdir) == before


def test_more_steps_log_every_and_checkpoints_may_change(straight, tmp_path, capsys, monkeypatch):
    experiment, workdir = straight[1], tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 2, signal.SIGTERM)
        with pytest.raises(Preempted):
            loop.run(experiment, workdir)
    capsys.readouterr()
    longer = tiny_run.with_key(experiment, "training", num_steps=8, log_every=4)
    longer = tiny_run.with_key(longer, "checkpoint", every_steps=7, keep=1)
    provenance = json.loads((workdir / "provenance.json").read_text())
    (workdir / "provenance.json").write_text(json.dumps(provenance | {"thread_count": 77}))
    loop.run(longer, workdir)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 2
    assert "num_steps" in said[0]
    assert "thread_count was 77" in said[1]
    assert [row["step"] for row in tiny_run.rows(workdir)] == [1, 2, 3, 4, 6, 8, 8]
    assert checkpoint.checkpoint_steps(workdir) == [8]
    assert json.loads((workdir / "config.json").read_text())["training"]["num_steps"] == 8


FOUR_DEVICES = """
import pathlib, sys
import tiny_run
from hybrid.training import loop
folder = pathlib.Path(sys.argv[1])
keys = dict(mesh__data=2, mesh__fsdp=2, training__num_steps=3, training__peak_flops=0.0)
loop.run(tiny_run.experiment_of(folder, optimizer__schedule="constant", **keys), folder / "run")
"""


def test_a_run_on_four_devices_goes_on_with_one(tmp_path, capsys):
    folders = [pathlib.Path(__file__).parents[2], pathlib.Path(__file__).parent]
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {quick.FLAGS}",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    command = [sys.executable, "-c", FOUR_DEVICES, str(tmp_path)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=300)
    keys = {"optimizer__schedule": "constant", "training__peak_flops": 0.0}
    one = tiny_run.experiment_of(tmp_path, **keys)
    loop.run(one, tmp_path / "run")
    assert "device_count was 4, is 1" in capsys.readouterr().err
    loop.run(one, tmp_path / "alone")
    for mixed, alone in zip(
        *map(tiny_run.rows, (tmp_path / "run", tmp_path / "alone")), strict=True
    ):
        assert mixed == pytest.approx(alone, rel=1e-3)


def test_wrong_data_creates_nothing(straight, tmp_path):
    experiment = tiny_run.with_key(straight[1], "data", paths=(str(tmp_path / "none.txt"),))
    with pytest.raises(ConfigError):
        loop.run(experiment, tmp_path / "deep" / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a folder"):
        loop.run(straight[1], tmp_path / "file")
    assert not (tmp_path / "deep").exists()


def test_steps_that_are_not_finite_stop_the_run_with_the_last_good_checkpoint(tmp_path):
    experiment = tiny_run.experiment_of(
        tmp_path,
        optimizer__learning_rate=1e30,
        optimizer__schedule="constant",
        training__max_bad_steps=3,
        eval__every_steps=0,
        checkpoint__every_steps=1,
        checkpoint__keep=10,
    )
    with pytest.raises(loop.NotFinite, match=r"step 4: .*3 steps in a row.*checkpoint"):
        loop.run(experiment, tmp_path / "run")
    found = tiny_run.rows(tmp_path / "run")
    assert [(row["step"], row["skipped_steps"]) for row in found[:4]] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
    ]
    assert all(row["loss"] is None or row["grad_norm"] is None for row in found[1:])
    first, _ = params(experiment, tmp_path / "run", "1")
    last, step = params(experiment, tmp_path / "run")
    assert step >= 3
    jax.tree.map(np.testing.assert_array_equal, first, last)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last))
