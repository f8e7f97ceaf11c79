"""A signal to stop at any time: what is complete is saved, the status is 143, or 130 of SIGINT."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import small_run
import tiny_run

from hybrid.process import signals
from hybrid.training import loop
from hybrid.training.progress import Progress
from hybrid.workdir.metrics import MetricsFile

ENDS_BY = {
    signal.SIGTERM: signals.Preempted,
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGHUP: signals.Preempted,
    signal.SIGUSR1: signals.Preempted,
}


@pytest.fixture(scope="module", autouse=True)
def hang_ups_count():
    """Also where the tests run under nohup, which ignores them for its children."""
    was = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, was)


def before(monkeypatch, owner, name, action):
    """Lets `action(*args)` happen before every call of `owner.name`."""
    original = getattr(owner, name)

    def both(*args, **kwargs):
        action(*args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, both)


# --- What a signal means -----------------------------------------------------------------------


@pytest.mark.parametrize("number", ENDS_BY)
def test_outside_the_loop_a_signal_stops_at_once(number):
    with signals.caught() as interrupts, pytest.raises(ENDS_BY[number]):
        signal.raise_signal(number)
    assert interrupts.requested == number


@pytest.mark.parametrize("number", ENDS_BY)
def test_in_the_loop_a_signal_only_asks_to_stop(number):
    with signals.caught() as interrupts, interrupts.deferred():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested == number
        assert type(interrupts.stop("saved")) is ENDS_BY[number]


def test_a_second_sigint_stops_at_once_also_in_the_loop():
    with signals.caught() as interrupts, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back():
    handlers = [signal.getsignal(number) for number in signals.WATCHED]
    with signals.caught() as outer, signals.caught() as inner:
        assert inner is outer
        assert [signal.getsignal(number) for number in signals.WATCHED] != handlers
    assert [signal.getsignal(number) for number in signals.WATCHED] == handlers


def test_a_hangup_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with signals.caught() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts
    finally:
        assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_signal_is_no_exception_that_a_broad_except_takes():
    assert not issubclass(signals.Preempted, Exception)


def run_snippet(text: str) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own, with all that a snippet on signals needs."""
    head = "import hashlib, os, signal, sys, threading, time\n"
    head += "from hybrid.process import cli, signals\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(text)],
        env=os.environ | {"PYTHONPATH": str(small_run.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_process_that_is_deep_in_compiled_code(name):
    done = run_snippet(f"""
        signals.GRACE_SECONDS = 0.3
        with signals.caught():
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.{name})).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes without any Python
    """)
    assert done.returncode == 143, done.stderr
    assert name in done.stderr


def test_a_signal_that_somebody_swallowed_is_left_to_the_loop():
    done = run_snippet("""
        signals.GRACE_SECONDS = 0.3
        with signals.caught() as interrupts:
            try:
                signal.raise_signal(signal.SIGTERM)
            except signals.Preempted:
                time.sleep(0.1)  # as a library with a broad except does
            with interrupts.deferred():
                time.sleep(1)
                print("saved" if interrupts else "missed")
    """)
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr


def test_a_signal_within_a_weakrefs_callback_is_not_lost():
    done = run_snippet("""
        import weakref
        class Thing: pass
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        with signals.caught():
            try:
                del thing
                time.sleep(1)
            except signals.Preempted:
                sys.exit(143)
    """)
    assert (done.returncode, done.stderr) == (143, "")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_a_command_is_imported_ends_it_with_its_status(tmp_path, name, status):
    module = f"import signal\nsignal.raise_signal(signal.{name})\nCOMMAND = None\n"
    (tmp_path / "slow_command.py").write_text(module)
    done = run_snippet(f"""
        assert "jax" not in sys.modules  # which commands import under caught signals
        sys.path.append({str(tmp_path)!r})
        sys.exit(cli.main("slow_command", []))
    """)
    assert done.returncode == status, done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_that_an_extension_made_a_system_error_of_is_still_the_end(tmp_path):
    """As numpy does where the handler raises while it hashes a dtype."""
    (tmp_path / "slow_command.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "except BaseException as stop:\n"
        "    raise SystemError('returned a result with an exception set') from stop\n"
    )
    done = run_snippet(f"""
        sys.path.append({str(tmp_path)!r})
        sys.exit(cli.main("slow_command", []))
    """)
    assert (done.returncode, done.stderr) == (143, "stopped: SIGHUP: stopped at once\n")


# --- In a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_while_training_the_finished_step_is_saved(tmp_path, monkeypatch, number):
    config = tiny_run.experiment_of(tmp_path, checkpoint__every_steps=0)
    workdir = tmp_path / "run"

    def at_step_2(_, rows):
        if rows[0]["step"] == 2:  # written while step 3 runs
            os.kill(os.getpid(), number)

    before(monkeypatch, MetricsFile, "append", at_step_2)
    with pytest.raises(ENDS_BY[number], match="step 3 is saved"):
        loop.run(config, workdir)
    assert small_run.checkpoint_steps(workdir) == [3]
    assert [row["step"] for row in tiny_run.rows(workdir) if "loss" in row] == [1, 2, 3]


def test_while_tokenizing_nothing_is_kept(tmp_path, monkeypatch):
    config, workdir = tiny_run.experiment_of(tmp_path), tmp_path / "run"
    before(monkeypatch, Progress, "tokenizing", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(signals.Preempted):
        loop.run(config, workdir)
    assert not workdir.exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_while_evaluating_a_second_sigint_saves_nothing(tmp_path, monkeypatch):
    config, workdir = tiny_run.experiment_of(tmp_path, eval__every_steps=1), tmp_path / "run"

    def twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before(monkeypatch, loop.Run, "place", twice)
    with pytest.raises(KeyboardInterrupt, match="at once"):
        loop.run(config, workdir)
    assert small_run.checkpoint_steps(workdir) == []


# --- Whole commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Starts `train.py` or `eval.py` on one workdir."""
    folder = tmp_path_factory.mktemp("signals")
    words = f"--config={small_run.write_page(folder)}", f"--workdir={folder / 'run'}"
    long = (f"--config.{key}" for key in ("training.num_steps=100000", "eval.every_steps=0"))
    words = *words, *long, "--config.checkpoint.every_steps=0"
    return folder, lambda script, *more: small_run.start(
        folder, small_run.ROOT / script, *words, *more
    )


def interrupt_at(process, beginning: str, number: signal.Signals) -> int:
    """Sends a signal when the process has said a line, and returns the exit status."""
    for line in process.stderr:
        if line.startswith(beginning):
            process.send_signal(number)
            break
    errors = small_run.wait(process)
    assert "Traceback" not in errors
    return process.returncode


def test_commands_end_with_143_and_130_and_go_on_from_there(command):
    folder, start = command
    run = folder / "run"
    assert interrupt_at(start("train.py"), "devices", signal.SIGUSR1) == 143  # compiling
    assert small_run.checkpoint_steps(run) == []

    assert interrupt_at(start("train.py"), "step 1/", signal.SIGTERM) == 143
    (first,) = small_run.checkpoint_steps(run)
    assert [row["step"] for row in small_run.rows(run)] == list(range(1, first + 1))

    assert interrupt_at(start("train.py"), "compiling took", signal.SIGINT) == 130
    *_, second = small_run.checkpoint_steps(run)
    assert second >= first
    assert [row["step"] for row in small_run.rows(run)] == list(range(1, second + 1))

    output = folder / "result.json"
    evaluation = start("eval.py", f"--output={output}", "--config.eval.batch_size=1")
    assert interrupt_at(evaluation, "text", signal.SIGHUP) == 143
    assert not output.exists()
