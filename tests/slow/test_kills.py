"""SIGKILL anywhere, and the same command again: rows and parameters equal to the last bit.

One workdir is killed in each phase in turn (`killed_run.py`), another at random times. Each kill's
phase is asserted, by the note that the killed process left and by what is on the disk.
"""

import random
import signal
import subprocess
import time

import pytest
import small_run

KILLED_RUN = small_run.ROOT / "tests" / "slow" / "killed_run.py"
NUM_STEPS = 40

# (phase, at which time it is entered the kill comes, step that the next start resumes at). A
# start at step N evaluates and saves at N + 4, N + 8, … Saving goes on beside the training in
# the phases of writing and at random times; elsewhere it doesn't, so that all steps are known.
KILLS = (
    ("append", 3, None),
    ("write files", 1, None),
    ("write commit", 2, 4),
    ("delete left", 1, 4),
    ("delete", 1, 8),
    ("append eval", 2, 12),
    ("evaluate", 2, 12),
    ("write rename", 2, 16),
    ("delete half", 1, 20),
    ("append", 7, 24),
    ("evaluate", 9, 28),
    ("delete", 2, 36),
)
SEEDS = [
    pytest.param(range(2), marks=pytest.mark.slow, id="two"),
    pytest.param(range(2, 20), marks=pytest.mark.weekly, id="many"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def command(folder):
    """The words that follow `train.py`, for a name of a workdir."""
    page = small_run.write_page(folder)
    keys = (f"--config.training.num_steps={NUM_STEPS}",)
    return lambda name: (f"--config={page}", f"--workdir={folder / name}", *keys)


@pytest.fixture(scope="module")
def uninterrupted(folder, command):
    finish(folder, command("uninterrupted"))
    return folder / "uninterrupted"


def finish(folder, words) -> str:
    process = small_run.start(folder, small_run.ROOT / "train.py", *words)
    return small_run.finish(process)


def kill(folder, words, phase, count) -> str:
    """Starts a run that kills itself; returns what it said before."""
    note = folder / "note"
    note.unlink(missing_ok=True)
    process = small_run.start(folder, KILLED_RUN, phase, count, note, *words)
    errors = small_run.wait(process)
    assert process.returncode == -signal.SIGKILL, errors
    assert note.read_text() == phase
    return errors


def resumed_at(errors: str) -> int | None:
    lines = [line for line in errors.splitlines() if line.startswith("resuming after step ")]
    return int(lines[0].split()[-1]) if lines else None


def check_phase(workdir, phase: str) -> None:
    """The disk looks as a kill in this phase leaves it."""
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    lines = (workdir / "metrics.jsonl").read_text().split("\n")
    expected = phase.split()[0]
    for step in small_run.checkpoint_steps(workdir):
        assert small_run.state_bytes(workdir, step), "a folder named by a step can be read"
    writing = {name for name in names if ".orbax-checkpoint-tmp" in name}
    deleting = {name for name in names if name.startswith("deleting-")}
    assert bool(writing - deleting) == (expected == "write")
    assert bool(deleting) == (expected == "delete")
    assert bool(deleting & writing) == (phase == "delete left")
    assert (lines[-1] != "") == (expected == "append")
    if phase == "append eval":
        step = lines[-1].removeprefix('{"step": ').split(",")[0]
        assert lines[-2].startswith(f'{{"step": {step}, "loss"')
    if phase == "write files":
        (writing,) = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        assert not (writing / "commit_success.txt").exists()
    if phase == "write rename":
        (writing,) = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        assert (writing / "commit_success.txt").exists()


def check_equal(workdir, uninterrupted) -> None:
    assert small_run.rows(workdir) == small_run.rows(uninterrupted)
    expected = small_run.state_bytes(uninterrupted, NUM_STEPS)
    assert small_run.state_bytes(workdir, NUM_STEPS) == expected
    leftovers = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert all(name.isdecimal() for name in leftovers), leftovers


@pytest.mark.slow
def test_an_uninterrupted_run_has_a_row_for_each_step(uninterrupted):
    steps = [row["step"] for row in small_run.rows(uninterrupted) if "loss" in row]
    assert steps == list(range(1, NUM_STEPS + 1))
    evaluated = [row["step"] for row in small_run.rows(uninterrupted) if "eval/loss" in row]
    assert evaluated == list(range(4, NUM_STEPS + 1, 4))


@pytest.mark.slow
def test_a_kill_in_each_phase_changes_no_bit(folder, command, uninterrupted):
    kinds = [phase.split()[0] for phase, _, _ in KILLS]
    assert all(kinds.count(kind) >= 2 for kind in ("write", "delete", "append", "evaluate"))
    words, workdir, resumes = command("phases"), folder / "phases", None
    for phase, count, next_resume in KILLS:
        beside = f"--config.checkpoint.asynchronous={phase.startswith('write')}"
        errors = kill(folder, (*words, beside), phase, count)
        assert resumed_at(errors) == resumes
        check_phase(workdir, phase)
        resumes = next_resume
    assert resumed_at(finish(folder, words)) == resumes
    check_equal(workdir, uninterrupted)


@pytest.mark.parametrize("seeds", SEEDS)
def test_kills_at_random_times_change_no_bit(folder, command, uninterrupted, seeds):
    name = f"random{len(seeds)}"
    words, workdir = command(name), folder / name
    for seed in seeds:
        rng = random.Random(seed)
        process = small_run.start(folder, KILLED_RUN, "wait", 0, folder / "note", *words)
        if seed % 2:  # sometimes while it starts, else while it trains, saves and evaluates
            time.sleep(rng.uniform(0.1, 3))
        else:
            wait_for_evaluation(process)
            time.sleep(rng.uniform(0, 0.4))  # the next 6 steps at most
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
    finish(folder, words)
    check_equal(workdir, uninterrupted)


def wait_for_evaluation(process: subprocess.Popen) -> None:
    """Returns when the run has told of its first evaluation, four steps after its start."""
    for line in process.stderr:
        if "eval/loss" in line:
            return
    pytest.fail("the run ended before it evaluated")


@pytest.mark.slow
def test_a_finished_run_says_so_and_changes_nothing(folder, command, uninterrupted):
    before = small_run.rows(uninterrupted), small_run.checkpoint_steps(uninterrupted)
    errors = finish(folder, command("uninterrupted"))
    assert "finished" in errors
    assert (small_run.rows(uninterrupted), small_run.checkpoint_steps(uninterrupted)) == before
