"""A mixture on two processes, stopped in its first epoch, goes on in one with the same rows."""

import pytest
import small_run
from process_pair import Pair, alone

pytestmark = pytest.mark.slow


def test_a_run_of_two_processes_goes_on_with_one(tmp_path):
    page = small_run.write_page(tmp_path)
    mixture = [
        {"name": name, "paths": f"{tmp_path}/text/{glob}", "weight": weight}
        for name, glob, weight in (("a", "1*.txt", 0.7), ("b", "2*.txt", 0.2), ("c", "3*.txt", 0.1))
    ]
    keys = {
        "model.num_layers": 2,
        "data.source": "stdlib",
        "data.paths": "",
        "data.mixture": mixture,
        "optimizer.schedule": "constant",
        "checkpoint.every_steps": 2,
        "eval.every_steps": 0,
    }
    words = [f"--config={page}", *(f"--config.{key}={value}" for key, value in keys.items())]

    def of(folder, num_steps):
        return [
            *words,
            f"--workdir={tmp_path / folder}",
            f"--config.training.num_steps={num_steps}",
        ]

    with Pair(tmp_path, "train.py", *of("run", 2)) as pair:
        assert pair.wait() == [0, 0], pair.all_said()
    alone(tmp_path, 1, small_run.ROOT / "train.py", *of("run", 6))
    alone(tmp_path, 1, small_run.ROOT / "train.py", *of("straight", 6))
    found, expected = (
        [row for row in small_run.rows(tmp_path / run) if "loss" in row]
        for run in ("run", "straight")
    )
    for row, other in zip(found, expected, strict=True):
        known = {name: value for name, value in other.items() if value is not None}
        assert {name: row[name] for name in known} == pytest.approx(known, rel=1e-3)
        for name in "abc":
            assert row[f"tokens_seen/{name}"] == other[f"tokens_seen/{name}"]
