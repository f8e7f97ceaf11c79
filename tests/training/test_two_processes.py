"""A run on two processes of two devices each: rows as of one process, files as of one run."""

import json

import pytest
import small_run
from process_pair import Pair

from hybrid import experiment
from hybrid.training import loop
from hybrid.training.progress import Progress
from hybrid.workdir import checkpoint

KEYS = {
    "model.num_layers": "2",
    "training.num_steps": "4",
    "eval.every_steps": "2",
    "checkpoint.every_steps": "2",
}


def test_two_processes_train_evaluate_and_save_as_one(tmp_path, capsys):
    page = small_run.write_page(tmp_path)
    keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
    run, own = tmp_path / "run", tmp_path / "own"
    with Pair(tmp_path, "train.py", f"--config={page}", f"--workdir={run}", *keys) as pair:
        loop.run(experiment.load(page, KEYS), own, Progress())
        assert pair.wait() == [0, 0], pair.all_said()
    assert "finished: 4 steps" in pair.said(0)
    assert "finished" not in pair.said(1)

    rows, expected = small_run.rows(run), small_run.rows(own)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
        assert row.get("tokens_seen") == other.get("tokens_seen")
    assert json.loads((run / "provenance.json").read_text())["process_count"] == 2
    assert small_run.checkpoint_steps(run) == [4]
    assert checkpoint.damage(run / "checkpoints" / "4", contents=True) == ""
    assert not [path.name for path in tmp_path.rglob(".shared-*")]
