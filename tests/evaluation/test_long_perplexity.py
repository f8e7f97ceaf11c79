"""LongPPL: which tokens count, and the command on a small run that judges itself."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from test_command import ROOT, SMALL

from hybrid.config import ConfigError
from hybrid.evaluation import long_perplexity
from hybrid.evaluation.__main__ import main
from hybrid.evaluation.config import LongPerplexityConfig
from hybrid.evaluation.result import summarized
from hybrid.evaluation.target import of_run
from hybrid.evaluation.token_records import TokenRecords


def result(nll, length=64):
    places = np.arange(len(nll), dtype=np.int32)
    records = TokenRecords(np.array(nll, np.float32), places, np.zeros_like(places))
    return summarized(records, context_length=length, stride=length, bos="document")


def test_key_tokens_are_far_gain_much_and_are_found_in_the_end():
    #         near, gains too little, found late, key, key
    full = result([0.1, 0.5, 2.5, 0.5, 1.9])
    short = result([9.0, 2.4, 9.0, 2.6, 4.0])
    of_model = result([8.0, 8.0, 8.0, 1.0, 3.0])
    keys = LongPerplexityConfig(judge="x", short_length=1)
    found = long_perplexity.summarized(of_model, full, short, keys)
    assert found.long_perplexity == pytest.approx(math.exp(2.0))
    assert (found.num_key_tokens, found.num_far_tokens, found.num_tokens) == (2, 4, 5)
    assert found.perplexity == pytest.approx(math.exp(5.6))
    far = LongPerplexityConfig(judge="x", short_length=9)
    assert long_perplexity.summarized(of_model, full, short, far).long_perplexity is None


@pytest.mark.parametrize("place", range(3))
def test_results_of_other_tokens_are_refused(place):
    results = [result([1.0, 2.0, 3.0]) for _ in range(3)]
    results[place] = result([1.0, 2.0])
    with pytest.raises(ConfigError, match="scores other tokens than the model") as caught:
        long_perplexity.summarized(*results, LongPerplexityConfig(judge="x"))
    assert caught.value.key == "eval.long_perplexity.judge"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of two steps on a few lines of text."""
    folder = tmp_path_factory.mktemp("run")
    for i in range(6):
        (folder / f"{i}.txt").write_text(" ".join(f"{word} {i * word}" for word in range(60)))
    overrides = SMALL | {"data.paths": f"{folder}/*.txt", "data.cache_dir": str(folder / "cache")}
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    words = [sys.executable, str(ROOT / "train.py"), "--config=configs/tiny.py", *flags]
    subprocess.run([*words, f"--workdir={folder}/workdir"], check=True, cwd=folder)
    return folder / "workdir"


def test_the_command_gives_the_figure(run, tmp_path, capsys):
    keys = {"judge": run, "short_length": 8, "stride": 4, "gain": -9.0, "most_loss": 99.0}
    flags = [f"--config.eval.long_perplexity.{name}={value}" for name, value in keys.items()]
    output = tmp_path / "far.json"
    assert main([f"--workdir={run}", f"--output={output}", *flags]) == 0
    values = json.loads(output.read_text())
    assert "LongPPL" in capsys.readouterr().out
    # With these limits every far token is a key token: the mean over positions of at least 8.
    assert values["num_key_tokens"] == values["num_far_tokens"] < values["num_tokens"]
    assert main([f"--workdir={run}", f"--output={tmp_path / 'plain.json'}"]) == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert values["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-6)
    far = [bucket for bucket in plain["by_position"] if bucket["start"] >= 8]
    counts = [bucket["num_tokens"] for bucket in far]
    assert sum(counts) == values["num_far_tokens"]
    loss = np.average([bucket["loss"] for bucket in far], weights=counts)
    assert values["long_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_the_judge_scores_what_the_model_is_asked(run):
    page = {"eval.count_eos": "false", "eval.max_tokens": "40", "eval.context_length": "16"}
    target = of_run(str(run), "latest", None, {**page, "eval.long_perplexity.judge": str(run)})
    judge = long_perplexity.judge_of(target)  # was trained with other eval.*
    assert judge.experiment.eval == target.experiment.eval
    assert (judge.experiment.data, judge.overrides) == (target.experiment.data, {})


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        (
            "eval.long_perplexity.judge",
            ["long_perplexity.judge=nowhere", "long_perplexity.short_length=8"],
        ),
        ("eval.context_length", ["long_perplexity.judge={run}"]),  # not beyond 4096
    ],
)
def test_what_is_wrong_is_refused(run, tmp_path, capsys, monkeypatch, key, settings):
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.eval.{setting.format(run=run)}" for setting in settings]
    assert main([f"--workdir={run}", "--output=far.json", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {key}: ")
    assert not list(tmp_path.iterdir())
