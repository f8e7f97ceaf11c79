"""`train.py` as a process: help in time, and what a run that fails leaves behind."""

import json
import subprocess
import sys
import time

import pytest
import small_run

HELP_SECONDS = 3.0
PROVENANCE = {
    "versions",
    "git_commit",
    "device_kind",
    "device_count",
    "thread_count",
    "data_fingerprint",
    "command_line",
}


def test_help_comes_within_three_seconds_and_names_flags_and_keys():
    def ask() -> tuple[float, subprocess.CompletedProcess]:
        start = time.perf_counter()
        words = [sys.executable, small_run.ROOT / "train.py", "--help"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return time.perf_counter() - start, done

    seconds, done = min((ask() for _ in range(3)), key=lambda pair: pair[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < HELP_SECONDS
    assert "--workdir" in done.stdout
    assert "training.num_steps" in done.stdout


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run that breaks at its third step, with what it said and its exit status."""
    folder = tmp_path_factory.mktemp("diverged")
    page = small_run.write_page(folder)
    keys = {
        "optimizer.learning_rate": "3e38",
        "optimizer.clip_norm": 0,
        "optimizer.warmup_fraction": 0,
        "training.max_bad_steps": 2,
        "training.tensorboard": True,
        "checkpoint.every_steps": 1,
        "eval.every_steps": 0,
    }
    process = small_run.start(
        folder,
        small_run.ROOT / "train.py",
        f"--config={page}",
        f"--workdir={folder / 'run'}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    )
    return folder / "run", small_run.wait(process), process.returncode


def test_a_diverged_run_exits_1_with_its_last_good_checkpoint(diverged):
    workdir, errors, status = diverged
    assert status == 1
    assert "Traceback" in errors
    rows = small_run.rows(workdir)
    assert rows[-1]["skipped_steps"] == 2
    last = rows[-1]["step"]
    assert errors.splitlines()[-1].startswith(f"hybrid.training.loop.NotFinite: step {last}: ")
    assert small_run.checkpoint_steps(workdir)[-1] == last - 1
    assert f"checkpoint {last - 1} is the last good one" in errors


def test_a_workdir_tells_what_the_run_was(diverged):
    workdir, _, _ = diverged
    config = json.loads((workdir / "config.json").read_text())
    assert config["optimizer"]["clip_norm"] == 0
    assert config["data"]["bos"] == "auto"
    found = json.loads((workdir / "provenance.json").read_text())
    assert found.keys() >= PROVENANCE
    assert found["command_line"][1].startswith("--config=")
    assert found["versions"].keys() >= {"python", "jax", "hybrid"}


def test_event_files_hold_the_rows(diverged):
    (events,) = (diverged[0] / "tensorboard").iterdir()
    text = events.read_bytes()
    assert b"train/loss" in text
    assert b"train/learning_rate" in text
