"""Whether two versions compute the same numbers, bit for bit, on short runs of every kind.

    python -m benchmarks.same_numbers --old=CHECKOUT                  a quarter of an hour
    python -m benchmarks.same_numbers --old=CHECKOUT --keep=FOLDER    half of it the next time
    python -m benchmarks.same_numbers --old=CHECKOUT --only mqar shared

Both versions train, evaluate and write text through their public commands only, each in its own
checkout, one after the other (`same_tasks.py`); then rows, tokens' losses, texts and every array
of every checkpoint are compared (`same_values.py`). The new version also goes on with runs that
the old one was stopped in. Times and speeds are not compared.

`--keep` holds what the old version wrote, by its commit. Exit status 1 where anything differs.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import machine, same_values
from benchmarks.same_tasks import TASKS, Task, with_needed

HERE = Path(__file__).resolve().parents[1]
STOP_AFTER = 25  # rows of metrics
SECONDS = 3600  # that a command may take
PREEMPTED = 143
DONE = "done"  # beside a task's folder: it is whole, and made by these commands on this machine


class CommandError(RuntimeError):
    """A command failed; the text is the end of what it said."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A version: its checkout, the folder of its tasks, and that of the old version's."""

    name: str
    checkout: Path
    root: Path
    old_root: Path

    def do(self, name: str) -> float:
        """Runs a task in a fresh folder; the seconds that it took, or had taken when kept."""
        task, here, done = TASKS[name], self.root / name, self.root / f"{name}.{DONE}"
        made_by = _made_by(task, self.root)
        if done.exists() and (kept := json.loads(done.read_text()))["made_by"] == made_by:
            return kept["seconds"]
        start = time.perf_counter()
        done.unlink(missing_ok=True)
        self._begin(name, task)
        for step, words in task.steps.items():
            (here / f"{step}.txt").write_text(self._run(self._filled(words, name)))
        seconds = time.perf_counter() - start
        done.write_text(json.dumps({"made_by": made_by, "seconds": seconds}))
        return seconds

    def _begin(self, name: str, task: Task) -> None:
        here, half = self.root / name, self._half(name)
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        if not task.half:
            return
        if self.root == self.old_root:
            shutil.rmtree(half, ignore_errors=True)
            self._stop_half_way(self._filled(task.half, name), half / "run" / "metrics.jsonl")
        shutil.copytree(half / "run", here / "run")

    def _half(self, name: str) -> Path:
        return self.old_root / f"{name}_half"

    def _filled(self, words: tuple[str, ...], name: str) -> list[str]:
        """`words` with folders in place of their names."""
        folders = {"here": self.root / name, "side": self.root, "old": self.old_root}
        folders["half"] = self._half(name)
        for place, folder in folders.items():
            words = tuple(word.replace(f"{{{place}}}", str(folder)) for word in words)
        return [sys.executable, *words]

    def _run(self, words: list[str]) -> str:
        """Standard output of a command.  Raises: CommandError."""
        start = time.perf_counter()
        done = subprocess.run(words, **self._process(), timeout=SECONDS, check=False)
        self._say(words, time.perf_counter() - start)
        if done.returncode:
            raise CommandError(_failure(words, done.returncode, done.stderr))
        return done.stdout

    def _stop_half_way(self, words: list[str], metrics: Path) -> None:
        """Sends SIGTERM to a training run when it has written some rows.  Raises: CommandError."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(words, **self._process() | {"stderr": errors})
            while process.poll() is None and _num_lines(metrics) < STOP_AFTER:
                time.sleep(0.02)
            process.terminate()
            status = process.wait(SECONDS)
            errors.seek(0)
            if status != PREEMPTED:
                raise CommandError(_failure(words, status, errors.read()))
        self._say(words, time.perf_counter() - start)

    def _process(self) -> dict[str, Any]:
        environment = os.environ | {
            "PYTHONPATH": str(self.checkout),
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkout stays as it was
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return {"cwd": self.checkout, "env": environment, **pipes}

    def _say(self, words: list[str], seconds: float) -> None:
        shown = " ".join(words[1:4]).replace(str(self.root), "FOLDER")
        print(f"{self.name}: {shown} ...: {seconds:.0f} s", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raises: CommandError unless Python takes the package of this checkout."""
        found = self._run([sys.executable, "-c", "import hybrid; print(hybrid.__file__)"]).strip()
        if not Path(found).is_relative_to(self.checkout):
            raise CommandError(f"{self.checkout} runs the package of {found}")


def _made_by(task: Task, root: Path) -> dict[str, Any]:
    """What the numbers depend on besides the version, and where their paths lead."""
    tasks = [task, *([TASKS[task.needs]] if task.needs else [])]
    return {
        "words": [[*task.half, *sum(task.steps.values(), ())] for task in tasks],
        "folder": str(root),
        "machine": machine.describe(),
        "jax": [metadata.version(name) for name in ("jax", "jaxlib")],
    }


def _failure(words: list[str], status: int, errors: str) -> str:
    last = "\n".join(errors.strip().splitlines()[-15:])
    return f"`{' '.join(words[1:])}` ended with status {status}:\n{last}"


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _commit(checkout: Path) -> str:
    """The commit of a checkout.  Raises: CommandError where a tracked file is changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if git("status", "--porcelain", "--untracked-files=no"):
        raise CommandError(f"{checkout} has changes that are not committed: nothing can be kept")
    return git("rev-parse", "HEAD")


# --- Comparing -------------------------------------------------------------------------------


def compare(task: str, old: Side, new: Side) -> list[tuple[str, str, str, str]]:
    """Rows of the table: task, file, how many numbers, equal or the first difference."""
    roots = [old.root, new.root]
    files = [same_values.found(side.root / task, roots) for side in (old, new)]
    rows = []
    for name in sorted(files[0].keys() | files[1].keys()):
        values = [of_side.get(name) for of_side in files]
        if None in values:
            found = f"only in the {'new' if values[0] is None else 'old'} version"
        else:
            found = same_values.compare(*values)
        rows.append((task, name, f"{same_values.count(values[0] or {}):,}", found or "equal"))
    return rows


def run(names: list[str], old: Side, new: Side) -> tuple[list[tuple], list[tuple]]:
    """Rows of what was compared and of how long it took, task by task."""
    rows, times = [], []
    for name in names:
        before = old.do(name)
        start = time.perf_counter()
        try:
            new.do(name)
            found = compare(name, old, new)
        except CommandError as error:
            print(error, file=sys.stderr)
            found = [(name, "commands", "", f"failed: {str(error).splitlines()[-1]}")]
        took = time.perf_counter() - start
        rows += found
        times.append((name, f"{before:.0f}", f"{took:.0f}"))
        wrong = sum(row[-1] != "equal" for row in found)
        print(f"{name}: {wrong} of {len(found)} files differ", file=sys.stderr, flush=True)
    return rows, times


def main(argv: list[str] | None = None) -> int:
    """Runs and compares; prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder: dict[str, Callable] = {"type": lambda text: Path(text).resolve()}
    parser.add_argument("--old", required=True, **folder, help="checkout to compare with")
    parser.add_argument("--new", default=HERE, **folder, help="checkout that is compared")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--keep", **folder, help="folder of what the old version writes")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        roots = Path(temporary).resolve() / "old", Path(temporary).resolve() / "new"
        try:
            kept = arguments.keep / _commit(arguments.old) if arguments.keep else roots[0]
            old = Side("old", arguments.old, kept, kept)
            new = Side("new", arguments.new, roots[1], kept)
            for side in (old, new):
                side.check()
            rows, times = run(with_needed(arguments.only), old, new)
        except CommandError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(machine.table(("task", "file", "numbers or characters", "bits"), rows))
    print(machine.table(("task", "old version, s", "new version and comparing, s"), times))
    return int(any(row[-1] != "equal" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
