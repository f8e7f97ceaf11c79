"""Two processes of a run and what befalls one of them: both end soon, alike and with a line."""

import signal
import time

import pytest
import small_run
from process_pair import Pair

pytestmark = pytest.mark.slow
TRAIN, EVAL = "train.py", "eval.py"
LONG = ("--config.training.num_steps=100000", "--config.eval.every_steps=0")
NO_SAVES = "--config.checkpoint.every_steps=0"
STALL = "--config.distributed.stall_seconds=6"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    small_run.write_page(folder)
    return folder


@pytest.fixture
def words(page, tmp_path):
    """What both processes are started with, and the workdir."""
    workdir = tmp_path / "run"
    return [f"--config={page / 'page.py'}:{page}", f"--workdir={workdir}"], workdir


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_saves_the_same_step_on_both(page, words, index, number, status):
    common, workdir = words
    with Pair(page, TRAIN, *common, *LONG, NO_SAVES) as pair:
        pair.wait_for("step 1/")
        pair.processes[index].send_signal(number)
        assert pair.wait(120) == [status, status], pair.all_said()
        assert "Traceback" not in pair.all_said()
        (step,) = small_run.checkpoint_steps(workdir)
        for process in range(2):
            assert f"{number.name}: step {step} is saved" in pair.said(process)
    assert [row["step"] for row in small_run.rows(workdir)] == list(range(1, step + 1))


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_before_the_loop_ends_both_with_nothing_saved(page, words, index):
    common, workdir = words
    with Pair(page, TRAIN, *common, *LONG) as pair:
        pair.wait_for("devices: ")
        pair.processes[index].send_signal(signal.SIGTERM)
        assert pair.wait(120) == [143, 143], pair.all_said()
    assert small_run.checkpoint_steps(workdir) == []


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_other_names_a_process_that_dies_or_hangs(page, words, index, number):
    common, _ = words
    with Pair(page, TRAIN, *common, *LONG, NO_SAVES, STALL) as pair:
        pair.wait_for("step 1/")
        pair.processes[index].send_signal(number)
        start, other = time.monotonic(), pair.processes[1 - index]
        assert other.wait(60) == 1, pair.all_said()
        assert time.monotonic() - start < 25
        said = pair.said(1 - index)
        assert f"stopped: process {index}" in said, said
        assert "Traceback" not in said
