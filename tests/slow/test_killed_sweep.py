"""A sweep killed twice ends with the results of one that wasn't, to the last bit."""

import signal
import subprocess
import time

import numpy as np
import pytest
import small_run

pytestmark = pytest.mark.slow
RUNS = "runs/text/window_size=4/seed=1", "runs/needle/window_size=4/seed=0"  # those killed
SWEEP = """
from hybrid.ablate import config as ablate


def get_config(page):
    config = ablate.defaults(page)
    config.base.training.num_steps = 40
    config.axes = [("model.window_size", (4, 32))]
    config.arms = [("text", {}), ("needle", {"data.source": "needle", "data.paths": ()})]
    config.seeds = (0, 1)
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("killed_sweep")


@pytest.fixture(scope="module")
def start(folder):
    """Starts the sweep in a workdir of that name."""
    run_page = small_run.write_page(folder)
    (folder / "sweep.py").write_text(SWEEP)
    page = f"--config={folder / 'sweep.py'}:{run_page}"

    def begin(name: str) -> subprocess.Popen:
        words = ("-m", "hybrid.ablate", page, f"--workdir={folder / name}")
        return small_run.start(folder, *words)

    return begin


def stop_in(process: subprocess.Popen, run, number: signal.Signals) -> int:
    """Sends a signal once the run trains; returns the exit status."""
    metrics, end = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 5:
            break
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert not (run / "evaluation.json").exists(), "the run had ended before the signal"
    return process.returncode


def results(workdir) -> dict:
    return small_run.without_times((workdir / "results.json").read_text())


def test_a_sweep_killed_twice_ends_with_the_same_results(folder, start):
    small_run.finish(start("whole"))
    killed, whole = folder / "killed", folder / "whole"
    first, second = RUNS
    assert stop_in(start("killed"), killed / first, signal.SIGKILL) == -signal.SIGKILL
    assert stop_in(start("killed"), killed / second, signal.SIGTERM) == 143
    small_run.finish(start("killed"))
    assert results(killed) == results(whole)
    for run in results(whole)["cells"]:
        ours, theirs = (np.load(sweep / run["workdir"] / "scores.npz") for sweep in (killed, whole))
        assert ours.files == theirs.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])
