"""An int8 cache of a trained model: half the bytes, the same predictions at every position."""

import json

import pytest

from benchmarks import cache_dtype
from hybrid import experiment
from hybrid.evaluation.target import of_run
from hybrid.training import loop

pytestmark = pytest.mark.weekly


def test_perplexity_stays_at_every_position(tmp_path):
    keys = {"training.num_steps": "80", "training.tensorboard": "false"}
    loop.run(experiment.load("configs/tiny.py", keys), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval/loss"] < 2.5, "it has learned something that a cache could spoil"
    result = cache_dtype.run(of_run(str(tmp_path / "run"), "latest", None, {}), 16_384)
    assert result["bytes"]["int8"] <= cache_dtype.MOST_BYTES * result["bytes"]["bfloat16"]
    for row in result["rows"]:
        assert abs(row["perplexity_change"]) < cache_dtype.MOST_CHANGE, row
        assert row["kl"] < 1e-3
        assert row["same_top"] > 0.98
