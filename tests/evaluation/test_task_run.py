"""A run trained on a task, by the commands: its rows, `eval.py` on it, on text and back."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hybrid.evaluation.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "model.pattern": "LG",
    "model.num_layers": 2,
    "model.window_size": 8,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.head_dim": 8,
    "model.global_head_dim": 8,
    "model.ffn_dim": 32,
    "data.source": "needle",
    "data.needle.distances": "3,11",
    "data.needle.num_eval_examples": 50,
    "training.num_steps": 2,
    "training.batch_size": 4,
    "training.context_length": 16,
    "training.tensorboard": "False",
    "training.peak_flops": -1,
    "checkpoint.every_steps": 1,
    "eval.every_steps": 1,
    "eval.max_tokens": 40,
}


def train(workdir, *flags):
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    words = [sys.executable, str(ROOT / "train.py"), "--config=configs/tiny.py", *overrides]
    subprocess.run([*words, f"--workdir={workdir}", *flags], check=True, timeout=120)
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of two steps on needles."""
    return train(tmp_path_factory.mktemp("run") / "workdir")


@pytest.fixture
def evaluated(run, tmp_path, capsys):
    """Runs the command on the run and gives its JSON and what it shows."""

    def evaluate(*flags):
        output = tmp_path / "result.json"
        status = main([f"--workdir={run}", f"--output={output}", *flags])
        shown, log = capsys.readouterr()
        assert status == 0, log
        return json.loads(output.read_text()), shown

    return evaluate


def evaluation_rows(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "eval/loss" in row]


def test_evaluation_rows_hold_the_accuracy(run):
    rows = evaluation_rows(run)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row.keys() == {
            "step", "eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/accuracy",
        }  # fmt: skip
        assert 0 <= row["eval/accuracy"] <= 1
        assert row["eval/bits_per_byte"] is None


def test_the_command_finds_what_training_found(run, evaluated):
    result, shown = evaluated()
    last = evaluation_rows(run)[-1]
    assert result["loss"] == pytest.approx(last["eval/loss"], rel=1e-6)
    assert result["accuracy"] == last["eval/accuracy"]
    assert result["num_tokens"] == 40
    assert [(one["distance"], one["num"]) for one in result["by_distance"]] == [(3, 20), (11, 20)]
    assert "accuracy" in shown
    assert "distance" in shown


def test_per_token_holds_the_nats_of_every_question(evaluated, tmp_path):
    nats = tmp_path / "nats.npy"
    result, _ = evaluated(f"--per_token={nats}", "--config.eval.max_tokens=0")
    found = np.load(nats)
    assert (found.dtype, found.shape) == (np.float32, (50,))
    assert found.mean(dtype=np.float64) == pytest.approx(result["loss"], rel=1e-6)


def test_other_distances_and_lengths_are_evaluated_without_training_anew(evaluated):
    flags = ("--config.data.needle.distances=5", "--config.eval.context_length=8,32")
    result, _ = evaluated(*flags)
    assert [one["distance"] for one in result["by_distance"]] == [5]
    assert [one["context_length"] for one in result["by_context"]] == [8, 32]
    assert result["overrides"]["data.needle.distances"] == [5]


def test_a_run_on_a_task_is_evaluated_on_another_and_on_text(evaluated, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"one two one two one")
    flags = ("--config.data.source=text", f"--config.data.paths={text}")
    result, shown = evaluated(*flags)
    assert "accuracy" not in result
    assert result["num_bytes"] == 19
    assert sum(bucket["num_tokens"] for bucket in result["repeats"]) > 0
    assert "repeat after" in shown
    recall, _ = evaluated("--config.data.source=mqar", "--config.data.mqar.num_pairs=2")
    assert [one["num_pairs"] for one in recall["by_num_pairs"]] == [2]


def test_a_task_that_does_not_fit_is_refused_before_anything_is_scored(run, tmp_path, capsys):
    output = tmp_path / "result.json"
    flags = ["--config.eval.context_length=12", f"--output={output}"]
    assert main([f"--workdir={run}", *flags]) == 2
    shown, log = capsys.readouterr()
    assert shown == ""
    assert log.startswith("error: eval.context_length: is too short for data.needle.distances")
    assert os.listdir(tmp_path) == []
