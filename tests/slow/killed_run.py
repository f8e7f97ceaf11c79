"""`train.py` that is killed by itself inside a chosen phase; the product has no hook for this.

    python tests/slow/killed_run.py PHASE COUNT NOTE --config=... --workdir=...

The COUNT-th time that the run enters PHASE it writes the phase's name to the file NOTE and sends
itself SIGKILL, so what is on the disk is what a kill at that place leaves. The phases:

    append          half a line of metrics.jsonl is written
    append eval     the same, of an evaluation's row
    evaluate        between two batches of an evaluation
    write files     the checkpoint's first files are there, and it can't be finished any more
    write commit    all arrays are written, nothing is committed
    write rename    committed, but not yet under its final name
    delete          an old checkpoint is renamed, all its files are there
    delete half     half of its files are gone
    delete left     the same, of what an earlier kill left
    wait            nowhere: steps are slowed down so that whoever started this can kill it
"""

import os
import pathlib
import shutil
import signal
import sys
import threading
import time

from orbax.checkpoint._src.path import atomicity

from hybrid.evaluation import held_out
from hybrid.training.__main__ import main
from hybrid.workdir import metrics

SECONDS_A_STEP = 0.06


class Killer:
    """Counts how often a phase was entered and kills at the right time."""

    def __init__(self, phase: str, count: int, note: pathlib.Path):
        self.phase, self.count, self.note = phase, count, note

    def is_now(self) -> bool:
        """True once: at the COUNT-th question."""
        self.count -= 1
        return self.count == 0

    def kill(self) -> None:
        """Writes the note and ends the process without any clean-up."""
        self.note.write_text(self.phase)
        os.kill(os.getpid(), signal.SIGKILL)


def break_append(killer: Killer) -> None:
    of_evaluations = killer.phase == "append eval"

    def append(file, rows):
        if ("eval/loss" in rows[0]) == of_evaluations and killer.is_now():
            with open(file.path, "a", encoding="utf-8") as torn:
                torn.write(f'{{"step": {rows[0]["step"]}, "lo')
            killer.kill()
        original(file, rows)

    original, metrics.MetricsFile.append = metrics.MetricsFile.append, append


def break_evaluate(killer: Killer) -> None:
    def evaluate(*args, should_stop, **kwargs):
        def asked():
            if killer.is_now():
                killer.kill()
            return should_stop()

        return original(*args, should_stop=asked, **kwargs)

    original, held_out.evaluate = held_out.evaluate, evaluate


def break_write(killer: Killer) -> None:
    """Orbax finishes the items of a checkpoint, then commits the whole and renames it."""

    async def finalize(self):
        if killer.phase == "write files" and not killer.count:
            time.sleep(1000)  # a thread of Orbax; `kill_at_first_files` ends it
        if killer.phase == "write commit" and self._final_path.name.isdecimal() and killer.is_now():
            killer.kill()
        return await originals[0](self)

    async def rename(source, target):
        if killer.phase == "write rename" and target.name.isdecimal() and killer.is_now():
            killer.kill()
        return await originals[1](source, target)

    async def create(self):
        of_a_step = self._final_path.name.isdecimal()
        if killer.phase == "write files" and of_a_step and killer.is_now():
            kill_at_first_files(killer, pathlib.Path(self._tmp_path))
        return await originals[2](self)

    path = atomicity.AtomicRenameTemporaryPath
    originals = path.finalize, atomicity.async_path.rename, path.create
    path.finalize, atomicity.async_path.rename, path.create = finalize, rename, create


def kill_at_first_files(killer: Killer, folder: pathlib.Path) -> None:
    """From a thread: kills as soon as a file of the parameters is in `folder`."""

    def watch():
        while not any(path.is_file() for path in folder.glob("params*/**/*")):
            time.sleep(0.0005)
        killer.kill()

    threading.Thread(target=watch, daemon=True).start()


def break_delete(killer: Killer) -> None:
    of_leftovers = killer.phase == "delete left"

    def rmtree(path, *args, **kwargs):
        name = pathlib.Path(path).name.partition("deleting-")[2]
        if name and name.isdecimal() != of_leftovers and killer.is_now():
            files = sorted(item for item in pathlib.Path(path).rglob("*") if item.is_file())
            for file in files[: 0 if killer.phase == "delete" else len(files) // 2]:
                file.unlink()
            killer.kill()
        original(path, *args, **kwargs)

    original, shutil.rmtree = shutil.rmtree, rmtree


def break_wait(killer: Killer) -> None:
    del killer

    def append(file, rows):
        time.sleep(SECONDS_A_STEP)
        original(file, rows)

    original, metrics.MetricsFile.append = metrics.MetricsFile.append, append


BREAK = {
    "append": break_append,
    "evaluate": break_evaluate,
    "write": break_write,
    "delete": break_delete,
    "wait": break_wait,
}


def run(phase: str, count: str, note: str, *argv: str) -> int:
    killer = Killer(phase, int(count), pathlib.Path(note))
    BREAK[phase.split()[0]](killer)
    return main(argv)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
