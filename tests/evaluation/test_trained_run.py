"""What a result of `eval.py` on a trained run means: whose keys, which length, which checkpoint.

The run really is trained, for two steps. `test_command.py` has the flags and their refusals.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hybrid.evaluation.__main__ import main
from hybrid.export import main as export

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTEXT = 32
KEYS = {
    "loss", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "by_position", "step",
    "context_length", "stride", "bos", "count_eos", "config", "overrides", "repeats",
}  # fmt: skip


PAGE = """from hybrid import experiment


def get_config():
    config = experiment.defaults()
    config.model.update(
        pattern="LG", num_layers=2, window_size=8, d_model=32, num_heads=2, head_dim=8, ffn_dim=32
    )
    config.data.update(source="text", paths=("{folder}/*.txt",), cache_dir="{folder}/cache")
    config.training.update(num_steps=2, batch_size=2, context_length=32, tensorboard=False)
    config.training.peak_flops = -1.0
    # The first length of the list is not the largest: tests tell the two apart.
    config.eval.update(every_steps=1, context_length=(16, 0), max_tokens=300, batch_size=4)
    config.checkpoint.every_steps = 1
    config.model.dtype = "{dtype}"
    return config
"""


def train(folder, dtype="float32"):
    for i in range(12):
        words = " ".join(f"{word} {i * word}" for word in range(20 + 9 * i))
        (folder / f"{i}.txt").write_text(f"Text {i}.\n{words}\n")
    page = folder / "page.py"
    page.write_text(PAGE.format(folder=folder, dtype=dtype))
    words = [str(ROOT / "train.py"), f"--config={page}", f"--workdir={folder / 'run'}"]
    wide = {"JAX_ENABLE_X64": str(int(dtype == "float64"))}
    subprocess.run([sys.executable, *words], check=True, timeout=120, env=os.environ | wide)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a float32 run, evaluated in training at each of its two steps."""
    return train(tmp_path_factory.mktemp("float32"))


@pytest.fixture
def evaluated(run, tmp_path, capsys):
    """Runs the command and gives its JSON; `workdir` is the run's unless given."""

    def evaluate(*flags, workdir=run):
        output = tmp_path / "result.json"
        status = main([f"--workdir={workdir}", f"--output={output}", *flags])
        assert status == 0, capsys.readouterr().err
        return json.loads(output.read_text())

    return evaluate


@pytest.fixture
def page(tmp_path):
    """Writes a config page of the given lines and gives its path."""

    def write(*lines):
        body = "".join(f"    config.{line}\n" for line in lines)
        text = "from hybrid import experiment\n\n\ndef get_config():\n"
        path = tmp_path / "page.py"
        path.write_text(f"{text}    config = experiment.defaults()\n{body}    return config\n")
        return path

    return write


def without(result, *names):
    return {name: value for name, value in result.items() if name not in names}


def test_the_result_has_exactly_the_documented_keys(evaluated):
    several, one = evaluated(), evaluated("--config.eval.context_length=16")
    assert set(several) == KEYS | {"by_context"}
    assert set(one) == KEYS
    for inner in several["by_context"]:
        assert set(inner) == KEYS - {"overrides"}
        assert {"start", "end", "loss", "num_tokens"} == set(inner["by_position"][0])


@pytest.mark.parametrize("value", ["16", "16,", "[16]", "(16,)"])
def test_a_single_length_is_no_list_however_it_is_written(value, evaluated):
    assert "by_context" not in evaluated(f"--config.eval.context_length={value}")


def test_training_evaluates_the_first_length_and_the_command_leads_with_the_largest(
    run, evaluated, tmp_path
):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval/loss" in row][-1]
    nats = tmp_path / "nats.npy"
    result = evaluated(f"--per_token={nats}")
    first, second = result["by_context"]
    assert (first["context_length"], second["context_length"]) == (16, CONTEXT)
    assert last["eval/loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert first["loss"] != second["loss"]
    assert without(result, "by_context", "overrides") == second
    assert np.load(nats).mean(dtype=np.float64) == pytest.approx(second["loss"], rel=1e-6)


def test_the_numbers_of_a_result_fit_each_other(evaluated):
    result = evaluated("--config.eval.max_tokens=0")
    nats = result["loss"] * result["num_tokens"]
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-12)
    bits = nats / math.log(2) / result["num_bytes"]
    assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    buckets = result["by_position"]
    assert [(one["start"], one["end"]) for one in buckets][:4] == [(0, 1), (1, 2), (2, 4), (4, 8)]
    assert sum(one["num_tokens"] for one in buckets) == result["num_tokens"]
    assert sum(one["loss"] * one["num_tokens"] for one in buckets) == pytest.approx(nats, rel=1e-9)


def test_a_page_changes_nothing_of_model_data_and_context_length_of_the_run(evaluated, page):
    own = evaluated("--config.eval.context_length=0", "--config.eval.max_tokens=200")
    other = page(
        "model.pattern = 'G'",
        "model.num_layers = 3",
        "model.window_size = 2",
        "data.source = 'text'",
        "data.paths = ('nowhere/*.txt',)",
        "data.tokenizer = 'nowhere/tokenizer.json'",
        "data.bos = 'never'",
        "training.context_length = 64",
        "eval.max_tokens = 200",
        "eval.batch_size = 4",
    )
    result = evaluated(f"--config={other}")
    assert result["context_length"] == CONTEXT
    assert without(result, "config", "overrides") == without(own, "config", "overrides")


def test_without_a_page_the_runs_own_eval_keys_count(run, evaluated):
    result = evaluated()
    assert result["config"] == str(run / "config.json")
    assert result["num_tokens"] == 300
    assert [one["context_length"] for one in result["by_context"]] == [16, CONTEXT]


def test_best_is_the_checkpoint_of_the_lowest_evaluation_not_the_last(run, evaluated, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    rows = [{"step": 1, "eval/loss": 1.0}, {"step": 2, "eval/loss": 2.0}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = evaluated("--checkpoint=best", workdir=workdir)
    assert best["step"] == 1
    assert best["loss"] == evaluated("--checkpoint=1")["loss"]
    assert best["loss"] != evaluated("--checkpoint=latest", workdir=workdir)["loss"]


@pytest.mark.parametrize("bos", ["document", "window", "never"])
def test_the_policy_is_named_and_decides_what_is_counted(bos, evaluated, tmp_path):
    texts = [b"One text of some length, longer than a window.", b"b", b"Three."]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text)
    flags = [f"--config.data.bos={bos}", f"--config.data.paths={tmp_path}/*.txt"]
    result = evaluated(*flags, "--config.eval.max_tokens=0")
    lost = len(texts) if bos == "never" else 0  # the first byte of each is context only
    assert result["bos"] == bos
    assert result["num_bytes"] == sum(map(len, texts)) - lost
    assert result["num_tokens"] == sum(map(len, texts)) + len(texts) - lost  # and each EOS


def test_another_source_is_scored_whole(evaluated, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in (5, 9, 70)))
    flags = ["--config.data.source=jsonl", f"--config.data.paths={path}"]
    result = evaluated(*flags, "--config.eval.max_tokens=0")
    assert (result["num_bytes"], result["num_tokens"]) == (84, 87)
    assert result["overrides"]["data.source"] == "jsonl"


def test_the_standard_library_needs_no_word_about_the_runs_paths(evaluated):
    result = evaluated("--config.data.source=stdlib", "--config.eval.max_tokens=50")
    assert result["num_tokens"] == 50
    assert result["overrides"]["data.source"] == "stdlib"


def test_the_table_alone_is_on_standard_output(run, capsys):
    assert main([f"--workdir={run}"]) == 0
    shown, log = capsys.readouterr()
    lines = shown.splitlines()
    assert lines[0].split() == ["model", "step", "2,", str(run / "config.json")]
    heads = [line.split()[0] for line in lines if line]
    for name in ("loss", "perplexity", "tokens", "bytes", "bos", "context", "position"):
        assert name in heads
    assert "text: " in log
    assert "text: " not in shown


@pytest.mark.parametrize("bos", ["document", "never"])
def test_empty_text_is_refused(bos, run, tmp_path, capsys):
    path = tmp_path / "empty.txt"
    path.write_bytes(b"")
    output = tmp_path / "result.json"
    flags = [f"--config.data.paths={path}", f"--config.data.bos={bos}", f"--output={output}"]
    assert main([f"--workdir={run}", *flags]) == 2
    shown, log = capsys.readouterr()
    assert shown == ""
    assert log.startswith("error: data.paths: ")
    assert log.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory):
    """The workdir of a float64 run."""
    return train(tmp_path_factory.mktemp("float64"), "float64")


def test_a_float64_run_is_evaluated_in_float64(wide_run, evaluated, x64):
    rows = [json.loads(line) for line in (wide_run / "metrics.jsonl").read_text().splitlines()]
    result = evaluated(workdir=wide_run)
    loss = result["by_context"][0]["loss"]
    assert loss == pytest.approx(rows[-1]["eval/loss"], rel=1e-14)
    assert loss != float(np.float32(loss))
    packed = evaluated("--config.eval.batch_size=1", workdir=wide_run)["by_context"][0]["loss"]
    assert packed == pytest.approx(loss, rel=1e-13)


def test_a_float64_run_without_x64_is_refused_by_key(wide_run, capsys):
    assert main([f"--workdir={wide_run}"]) == 2
    assert capsys.readouterr().err.startswith("error: model.dtype: needs jax's x64 mode")


def test_a_run_its_cache_and_its_export_score_the_same_text_alike(run, evaluated, tmp_path):
    """`eval.mode=cached`, and the Hugging Face folder that `hybrid.export` writes."""
    assert export([f"--workdir={run}", f"--output={tmp_path / 'exported'}"]) == 0
    text = [f"--config.data.paths={run.parent}/*.txt", "--config.eval.context_length=16"]
    forward = evaluated(*text)
    cached = evaluated(*text, "--config.eval.mode=cached", "--config.inference.prefill_chunk=5")
    output = tmp_path / "exported.json"
    folder = [f"--pretrained={tmp_path / 'exported'}", f"--output={output}"]
    own = [
        "--config.data.source=text",
        "--config.data.bos=document",
        "--config.eval.max_tokens=300",
    ]
    assert main([*folder, *text, *own]) == 0
    exported = json.loads(output.read_text())
    for other in (cached, exported):
        assert other["num_tokens"] == forward["num_tokens"]
        assert other["num_bytes"] == forward["num_bytes"]
        assert other["loss"] == pytest.approx(forward["loss"], rel=1e-6)


def test_an_export_has_the_dtype_that_is_asked_for_else_the_runs(run, tmp_path):
    for words, dtype in (([], "float32"), (["--dtype=bfloat16"], "bfloat16")):
        output = tmp_path / dtype
        assert export([f"--workdir={run}", f"--output={output}", *words]) == 0
        assert json.loads((output / "config.json").read_text())["dtype"] == dtype
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("float32", "bfloat16")]
    assert sizes[0] > 1.9 * sizes[1]
