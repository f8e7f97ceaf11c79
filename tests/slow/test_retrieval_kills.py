"""A retrieval evaluation that is killed, by SIGTERM or SIGKILL, and started again."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from evaluation.test_task_run import ROOT, train

pytestmark = pytest.mark.slow
KEYS = {
    "lengths": "16,32",
    "depths": "0,50,100",
    "num_samples": 40,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of two steps on needles."""
    return train(tmp_path_factory.mktemp("run") / "workdir")


def started(workdir: pathlib.Path, output: pathlib.Path) -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "eval.py"), "--config=configs/needles.py:keys"]
    words += [f"--workdir={workdir}", f"--output={output}", "--config.eval.batch_size=1"]
    words += [f"--config.eval.retrieval.{name}={value}" for name, value in KEYS.items()]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_evaluation_goes_on_to_the_same_result(workdir, tmp_path, number, status):
    whole = tmp_path / "whole.json"
    assert started(workdir, whole).wait(timeout=300) == 0
    output, kept = tmp_path / "killed.json", tmp_path / "killed.samples.jsonl"
    process = started(workdir, output)
    while not (kept.exists() and kept.read_bytes().count(b"\n") > 30):
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    before = kept.read_bytes().splitlines(keepends=True)
    assert 30 < len(before) < 240
    assert not output.exists()
    assert started(workdir, output).wait(timeout=300) == 0
    assert json.loads(output.read_text()) == json.loads(whole.read_text())
    after = kept.read_bytes().splitlines(keepends=True)
    assert after[: len(before) - 1] == before[:-1]
    assert (
        after[1:] == (tmp_path / "whole.samples.jsonl").read_bytes().splitlines(keepends=True)[1:]
    )
