"""A file system that fails at any one call loses nothing: the same command goes on afterwards.

Python tells a hook of each of its calls to the file system, and a hook that raises is as a call
that failed. Orbax's own calls are left alone: its threads wait ten minutes for one that failed.
"""

import errno
import pathlib
import random
import shutil
import sys

import jax
import numpy as np
import pytest
import tiny_run

from hybrid.config import ConfigError
from hybrid.loading import api
from hybrid.training import loop
from hybrid.workdir import checkpoint

EVENTS = ("open", "os.", "shutil.", "pathlib.", "glob.")


class Fault:
    """Raises EIO at one call among those on files below a folder, and counts them.

    Attributes:
      below: the folder; None: nothing is counted.  at: the call that fails, from 0.
    """

    def __init__(self):
        self.below: pathlib.Path | None = None
        self.at, self.count = -1, 0
        sys.addaudithook(self)  # for the rest of the process

    def __call__(self, event, arguments):
        if self.below is None or not event.startswith(EVENTS):
            return
        if not any(str(self.below) in str(argument) for argument in arguments) or _in_orbax():
            return
        self.count += 1
        if self.count - 1 == self.at:
            raise OSError(errno.EIO, "Input/output error", str(arguments[0]))


def _in_orbax():
    frame = sys._getframe(2)
    while frame is not None and "/orbax/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


@pytest.fixture(scope="module")
def fault():
    return Fault()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(experiment, a workdir that was stopped after 2 of 4 steps, one that went on from it)."""
    folder = tmp_path_factory.mktemp("stopped")
    keys = {"eval__every_steps": 2, "optimizer__schedule": "constant"}
    half = tiny_run.experiment_of(folder, training__num_steps=2, **keys)
    loop.run(half, folder / "half")
    whole = tiny_run.with_key(half, "training", num_steps=4)
    shutil.copytree(folder / "half", folder / "whole")
    loop.run(whole, folder / "whole")
    return whole, folder / "half", folder / "whole"


def run_with_fault(fault, experiment, workdir, at):
    """Whether the call `at` failed the run; what it raises is one of the two that may."""
    fault.below, fault.at, fault.count = workdir, at, 0
    try:
        loop.run(experiment, workdir)
    except (ConfigError, OSError):
        return True
    finally:
        fault.below = None
    return False


def check(fault, stopped, workdir, at):
    experiment, half, whole = stopped
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(half, workdir)
    run_with_fault(fault, experiment, workdir, at)
    assert 2 in checkpoint.checkpoint_steps(workdir) or 4 in checkpoint.checkpoint_steps(workdir)
    loop.run(experiment, workdir)
    assert tiny_run.rows(workdir) == tiny_run.rows(whole)
    ours, theirs = api.load(workdir).params, api.load(whole).params
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def num_calls(fault, stopped, workdir):
    shutil.copytree(stopped[1], workdir)
    assert not run_with_fault(fault, stopped[0], workdir, -1)
    return fault.count


def test_a_fault_at_any_of_some_calls_of_resume_and_save_loses_nothing(fault, stopped, tmp_path):
    count = num_calls(fault, stopped, tmp_path / "counted")
    assert count > 40
    for at in random.Random(0).sample(range(count), 12):
        check(fault, stopped, tmp_path / "run", at)


@pytest.mark.weekly
def test_a_fault_at_every_call_of_resume_and_save_loses_nothing(fault, stopped, tmp_path):
    for at in range(num_calls(fault, stopped, tmp_path / "counted")):
        check(fault, stopped, tmp_path / "run", at)
