"""`eval.py` end to end: on a small run's own text and on others, and what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from hybrid.config import ConfigError
from hybrid.evaluation.__main__ import main
from hybrid.evaluation.target import changed

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
    "training.num_steps": 2,
    "training.batch_size": 2,
    "training.context_length": 32,
    "training.tensorboard": "False",
    "checkpoint.every_steps": 1,
    "eval.every_steps": 1,
    "eval.max_tokens": 300,
    "data.source": "text",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of two steps on a few lines of text."""
    folder = tmp_path_factory.mktemp("run")
    for i in range(12):
        words = " ".join(f"{word} {i * word}" for word in range(20 + 9 * i))
        (folder / f"{i}.txt").write_text(f"Text {i}.\n{words}\n")
    overrides = SMALL | {"data.paths": f"{folder}/*.txt", "data.cache_dir": str(folder / "cache")}
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    workdir = folder / "workdir"
    words = [sys.executable, str(ROOT / "train.py"), "--config=configs/tiny.py", *flags]
    subprocess.run([*words, f"--workdir={workdir}"], check=True, cwd=folder)
    return workdir


@pytest.fixture
def evaluated(run, tmp_path, capsys):
    """Runs the command on the run and gives its JSON."""

    def evaluate(*flags):
        output = tmp_path / "result.json"
        status = main([f"--workdir={run}", f"--output={output}", *flags])
        assert status == 0, capsys.readouterr().err
        return json.loads(output.read_text())

    return evaluate


def evaluation_rows(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if "eval/loss" in row}


def test_a_checkpoint_scores_as_it_did_in_training(run, evaluated):
    rows = evaluation_rows(run)
    for which, step in (("1", 1), ("2", 2), ("latest", 2)):
        result = evaluated(f"--checkpoint={which}")
        assert result["step"] == step
        assert result["loss"] == pytest.approx(rows[step]["eval/loss"], rel=1e-6)
        assert result["bits_per_byte"] == pytest.approx(rows[step]["eval/bits_per_byte"], rel=1e-6)
        assert result["num_tokens"] == 300
        assert (result["context_length"], result["stride"], result["bos"]) == (32, 32, "document")
        assert result["overrides"] == {}
    best = evaluated("--checkpoint=best")["step"]
    assert rows[best]["eval/loss"] == min(row["eval/loss"] for row in rows.values())


def test_the_page_gives_only_its_eval_keys(evaluated, tmp_path):
    page = tmp_path / "page.py"
    page.write_text(
        "from hybrid import experiment\n\n\n"
        "def get_config():\n"
        "    config = experiment.defaults()\n"
        "    config.model.num_layers = 12\n"
        "    config.eval.context_length = (8, 16)\n"
        "    config.eval.stride = 4\n"
        "    config.eval.max_tokens = 100\n"
        "    return config\n"
    )
    result = evaluated(f"--config={page}")
    assert result["config"] == str(page)
    assert (result["context_length"], result["stride"], result["num_tokens"]) == (16, 4, 100)
    assert [one["context_length"] for one in result["by_context"]] == [8, 16]
    assert {one["step"] for one in result["by_context"]} == {2}
    overridden = evaluated(f"--config={page}", "--config.eval.max_tokens=50")
    assert overridden["num_tokens"] == 50


def test_text_named_on_the_command_line_is_scored_whole(evaluated, tmp_path):
    texts = []
    for name in ("a", "b"):
        texts.append(tmp_path / f"{name}.txt")
        texts[-1].write_bytes(b"Some text, " + name.encode() * 50)
    paths = ",".join(map(str, texts))
    result = evaluated(f"--config.data.paths={paths}", "--config.eval.max_tokens=0")
    assert result["num_bytes"] == sum(text.stat().st_size for text in texts)
    assert result["num_tokens"] == result["num_bytes"] + 2
    assert result["overrides"] == {
        "data.paths": list(map(str, texts)),
        "eval.max_tokens": 0,
    }


def test_another_window_is_applied_and_recorded(evaluated):
    trained = evaluated()
    narrow = evaluated("--config.model.window_size=2")
    assert narrow["overrides"] == {"model.window_size": 2}
    assert narrow["loss"] != trained["loss"]
    assert evaluated("--config.model.window_size=8")["loss"] == trained["loss"]
    assert evaluated("--config.model.pattern=LG")["loss"] == trained["loss"]


def test_per_token_is_a_float32_file_whose_mean_is_the_loss(run, tmp_path, capsys):
    path = tmp_path / "nats"
    status = main([f"--workdir={run}", f"--per_token={path}", "--config.eval.context_length=8,16"])
    assert status == 0
    nats = np.load(path)
    assert nats.dtype == np.float32
    shown, log = capsys.readouterr()
    assert f"{nats.mean(dtype=np.float64):.4f} nats a token" in shown
    assert "[8, 16)" in shown
    assert "fingerprint" in log
    assert os.listdir(tmp_path) == ["nats"]


REFUSED = {
    "--workdir": [[], ["--workdir=nowhere"], ["--workdir={tmp}"]],
    "--pretrained": [["--pretrained={tmp}"]],
    "--checkpoint": [["--checkpoint=7"], ["--checkpoint=newest"]],
    "--output": [["--output={tmp}/none/x.json"], ["--output={tmp}"], ["--output="]],
    "--per_token": [["--per_token={tmp}/none/x"], ["--output={tmp}/x", "--per_token={tmp}/x"]],
    "--config": [["--config=nowhere.py"]],
    "eval.stride": [["--config.eval.stride=33"], ["--config.eval.context_length=32,8",
                                                  "--config.eval.stride=9"]],
    "eval.context_length": [["--config.eval.context_length="],
                            ["--config.eval.context_length=1", "--config.data.bos=window"]],
    "eval.strde": [["--config.eval.strde=3"]],
    "data.paths": [["--config.data.paths=nowhere.txt"]],
    "model.pattern": [["--config.model.pattern=G"]],
    "model.last_layer": [["--config.model.last_layer=any"]],
    "model.num_layers": [["--config.model.window_size=2", "--config.model.num_layers=4"]],
    "model.vocab_size": [["--config.model.vocab_size=300"]],
    "model.d_model": [["--config.model.d_model=32"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "flags"), [(key, flags) for key, cases in REFUSED.items() for flags in cases]
)
def test_what_is_wrong_is_refused_in_one_line_and_nothing_is_created(
    run, tmp_path, capsys, monkeypatch, key, flags
):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    if key != "--workdir":
        flags.insert(0, f"--workdir={run}")
    before = sorted(run.rglob("*"))
    assert main(flags) == 2
    shown, log = capsys.readouterr()
    assert shown == ""
    errors = [line for line in log.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {key}: "), errors
    assert os.listdir(tmp_path) == []
    assert sorted(run.rglob("*")) == before


def test_a_workdir_without_a_checkpoint_is_refused(run, tmp_path, capsys):
    shutil.copy(run / "config.json", tmp_path)
    assert main([f"--workdir={tmp_path}"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_evaluating_stops_at_once_and_writes_nothing(run, tmp_path, number, status):
    output = tmp_path / "result.json"
    words = [sys.executable, str(ROOT / "eval.py"), f"--workdir={run}", f"--output={output}"]
    text = tmp_path / "long.txt"
    text.write_bytes(b"all work and no play " * 400_000)
    words += [f"--config.data.paths={text}", "--config.eval.max_tokens=0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert any(line.startswith("text: ") for line in process.stderr)
    process.send_signal(number)
    shown, log = process.communicate(timeout=60)
    assert process.returncode == status, log
    assert "Traceback" not in log
    assert shown == ""
    assert not output.exists()


def test_the_help_lists_flags_and_keys(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("--workdir", "--checkpoint", "--per_token", "eval.stride", "data.bos"):
        assert word in shown


def test_an_override_of_a_section_that_parameters_do_not_fit_is_refused_by_its_key():
    values = {"model": {"pattern": "DG", "num_layers": 2}}
    with pytest.raises(ConfigError, match=r"got 3; the model has 4$") as caught:
        changed(values, {"model.delta.conv_size": 3})
    assert caught.value.key == "model.delta.conv_size"
