"""Retrieval on two devices: rows, heads or time split, the replies are those of one device."""

import json
import os
import subprocess
import sys

import pytest
import quick
from evaluation.test_task_run import ROOT, train

pytestmark = pytest.mark.slow
MESHES = {"data": {}, "tensor": {"tensor": 2, "data": 1}, "context": {"context": 2, "data": 1}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of two steps on needles."""
    return train(tmp_path_factory.mktemp("run") / "workdir")


def replies(workdir, output, num_devices, **mesh):
    words = [sys.executable, str(ROOT / "eval.py"), "--config=configs/needles.py:keys"]
    words += [f"--workdir={workdir}", f"--output={output}", "--config.eval.retrieval.lengths=16"]
    words += ["--config.eval.retrieval.num_samples=8", "--config.eval.retrieval.depths=0,50"]
    words += [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    flags = f"--xla_force_host_platform_device_count={num_devices} {quick.FLAGS}"
    subprocess.run(words, check=True, env=os.environ | {"XLA_FLAGS": flags}, timeout=300)
    lines = output.with_name(f"{output.stem}.samples.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["reply"] for line in lines]


@pytest.mark.parametrize("mesh", MESHES)
def test_replies_are_those_of_one_device(workdir, tmp_path, mesh):
    alone = replies(workdir, tmp_path / "alone.json", 1)
    assert len(alone) == 16
    assert replies(workdir, tmp_path / "split.json", 2, **MESHES[mesh]) == alone
