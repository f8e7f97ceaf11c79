"""Two processes of a run and what befalls one of them: both end soon, alike and with a line."""

import signal
import time

import pytest
import small_run
from process_pair import Pair, alone

pytestmark = pytest.mark.slow
TRAIN, EVAL = "train.py", "eval.py"
SMALL = "--config.model.num_layers=2"
LONG = (SMALL, "--config.training.num_steps=100000", "--config.eval.every_steps=0")
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
        assert pair.wait() == [status, status], pair.all_said()
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
        assert pair.wait() == [143, 143], pair.all_said()
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


# --- Refusals ------------------------------------------------------------------------------------


def test_what_is_wrong_on_one_ends_both_with_2_and_nothing_made(page, words):
    common, workdir = words
    with Pair(page, TRAIN, *common, own=[(), ["--config.data.paths=/nowhere/*.txt"]]) as pair:
        assert pair.wait() == [2, 2], pair.all_said()
        assert "error: data.paths: " in pair.said(1)
        assert "has ended: error: data.paths: " in pair.said(0)
        assert "Traceback" not in pair.all_said()
    assert not workdir.exists()


def test_processes_that_were_told_different_things_are_refused(page, words):
    common, workdir = words
    with Pair(page, TRAIN, *common, own=[(), ["--config.optimizer.learning_rate=0.5"]]) as pair:
        assert pair.wait() == [2, 2], pair.all_said()
        assert "optimizer.learning_rate: differs from process 0, got 0.5" in pair.said(1)
    assert not workdir.exists()


def test_a_workdir_that_is_not_one_is_refused(page, tmp_path):
    config = f"--config={page / 'page.py'}:{page}"
    own = []
    for index in range(2):
        (tmp_path / f"disk{index}").mkdir()
        own.append([f"--workdir={tmp_path / f'disk{index}' / 'run'}"])
    with Pair(page, TRAIN, config, own=own) as pair:
        assert pair.wait() == [2, 2], pair.all_said()
        assert "--workdir: is not the folder that process 0 has" in pair.said(1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk0", "disk1"]


# --- Going on elsewhere --------------------------------------------------------------------------

CONSTANT = (
    SMALL,
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_fraction=0",
    "--config.training.batch_size=8",
    "--config.eval.batch_size=8",
)


def train(page, workdir, devices: tuple[int, ...], num_steps: int) -> None:
    """Trains up to a step, on a process for each number of devices."""
    words = [f"--config={page / 'page.py'}:{page}", f"--workdir={workdir}", *CONSTANT]
    words.append(f"--config.training.num_steps={num_steps}")
    if len(devices) == 1:
        alone(page, *devices, small_run.ROOT / TRAIN, *words)
        return
    with Pair(page, TRAIN, *words, num_devices=devices[0]) as pair:
        assert pair.wait() == [0, 0], pair.all_said()


def test_a_run_goes_on_on_any_number_of_processes_and_devices(page, tmp_path):
    train(page, tmp_path / "one", (1,), 12)
    expected = small_run.rows(tmp_path / "one")
    ways = {"processes": [(2, 2), (1,), (2, 2)], "devices": [(8,), (1,), (4,)]}
    for name, parts in ways.items():
        for number, devices in enumerate(parts, 1):
            train(page, tmp_path / name, devices, 4 * number)
        rows = small_run.rows(tmp_path / name)
        assert [row.get("tokens_seen") for row in rows] == [
            row.get("tokens_seen") for row in expected
        ]
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-3), name


def test_two_processes_evaluate_as_one(page, tmp_path):
    train(page, tmp_path / "run", (1,), 4)
    results = []
    for count in (1, 2):
        output = tmp_path / f"{count}.json"
        words = [f"--workdir={tmp_path / 'run'}", f"--output={output}"]
        if count == 1:
            alone(page, 1, small_run.ROOT / EVAL, *words)
        else:
            with Pair(page, EVAL, *words) as pair:
                assert pair.wait() == [0, 0], pair.all_said()
        results.append(small_run.without_times(output.read_text()))
    one, two = results
    assert two["num_tokens"] == one["num_tokens"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert [part["num_tokens"] for part in two["by_position"]] == [
        part["num_tokens"] for part in one["by_position"]
    ]
