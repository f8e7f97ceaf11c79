"""A run on a mixture: each source's loss and tokens in its rows, alike however it is cut up."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import quick
import tiny_run

from hybrid.ablate.__main__ import main as ablate
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.evaluation import report
from hybrid.evaluation.target import evaluate_target, of_run
from hybrid.prepare import main as prepare
from hybrid.process.signals import Preempted
from hybrid.sharding import make_mesh
from hybrid.training import loop, step
from hybrid.training.__main__ import main as train

NAMES = ("long", "short", "few")


def experiment_of(folder, **overrides):
    """The tiny run on three sources; texts are written once."""
    keys = {}
    for number, name in enumerate(NAMES):
        pattern = tiny_run.write_texts(folder / name, 24 - 8 * number)
        text = pathlib.Path(pattern).parent / "0.txt"
        text.write_text(f"{name} " * 40)  # no two sources hold the same
        keys[name] = {"name": name, "paths": [pattern], "weight": (0.5, 0.25, 0.25)[number]}
    for name in [key for key in overrides if key in NAMES]:
        keys[name] |= overrides.pop(name)
    values = {"data__source": "stdlib", "data__paths": (), "data__mixture": list(keys.values())}
    values |= {"optimizer__schedule": "constant", "training__peak_flops": -1.0}
    values |= {"training__batch_size": 8}
    return tiny_run.experiment_of(folder, **values | overrides)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of six steps: (its folder, experiment, workdir)."""
    folder = tmp_path_factory.mktemp("straight")
    experiment = experiment_of(folder)
    loop.run(experiment, folder / "run")
    return folder, experiment, folder / "run"


def test_rows_tell_each_sources_loss_and_tokens(straight):
    rows = tiny_run.rows(straight[2])
    training = [row for row in rows if "loss" in row]
    seen = dict.fromkeys(NAMES, 0)
    for row in training:
        counts = {name: row[f"tokens_seen/{name}"] - seen[name] for name in NAMES}
        seen = {name: row[f"tokens_seen/{name}"] for name in NAMES}
        assert sum(seen.values()) == row["tokens_seen"]
        total = sum(counts[name] * (row[f"loss/{name}"] or 0) for name in NAMES)
        assert total / sum(counts.values()) == pytest.approx(row["loss"], rel=1e-6)
    assert seen["long"] > seen["short"] > 0
    for row in rows:
        assert ("eval/loss" in row) == all(f"eval/loss/{name}" in row for name in NAMES)


def test_a_step_without_a_source_has_no_loss_of_it(tmp_path):
    experiment = experiment_of(
        tmp_path, few={"weight": 0.0}, training__num_steps=2, checkpoint__every_steps=0
    )
    scheduled = tiny_run.with_key(experiment, "data", mixture_schedule=((1, (0.0, 0.0, 1.0)),))
    loop.run(scheduled, tmp_path / "run")
    first, second = (row for row in tiny_run.rows(tmp_path / "run") if "loss" in row)
    assert first["loss/few"] is None
    assert first["tokens_seen/few"] == 0
    assert second["loss/long"] is None
    assert second["loss/few"] == pytest.approx(second["loss"], rel=1e-6)
    assert second["tokens_seen/long"] == first["tokens_seen/long"]


def test_a_run_that_was_stopped_goes_on_with_the_same_rows(straight, tmp_path, monkeypatch):
    run_due = loop.run_due

    def run_due_after_signal(events, finished):
        if finished == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_due(events, finished)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_due", run_due_after_signal)
        with pytest.raises(Preempted):
            loop.run(straight[1], tmp_path / "run")
    loop.run(straight[1], tmp_path / "run")
    assert tiny_run.rows(tmp_path / "run") == tiny_run.rows(straight[2])


FOUR_DEVICES = """
import pathlib, sys
import test_mixture_run
from hybrid.training import loop
folder = pathlib.Path(sys.argv[1])
keys = dict(mesh__data=2, mesh__fsdp=2, training__num_microbatches=2, training__num_steps=2)
loop.run(test_mixture_run.experiment_of(folder, **keys), folder / "run")
"""


def test_a_run_on_four_devices_and_in_micro_batches_goes_on_with_one(straight, tmp_path):
    folders = [pathlib.Path(__file__).parents[up] for up in range(3)]
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {quick.FLAGS}",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    command = [sys.executable, "-c", FOUR_DEVICES, str(tmp_path)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=300)
    four = [row for row in tiny_run.rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in four] == [1, 2]
    loop.run(experiment_of(tmp_path, training__num_steps=6), tmp_path / "run")
    ours, theirs = (
        [row for row in tiny_run.rows(run) if "loss" in row]
        for run in (tmp_path / "run", straight[2])
    )
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
        for name in NAMES:
            assert row[f"tokens_seen/{name}"] == other[f"tokens_seen/{name}"]


def test_the_program_of_a_plain_run_has_no_input_more(straight, tmp_path):
    mesh = make_mesh(straight[1].mesh)
    plain = step.of_experiment(tiny_run.experiment_of(tmp_path), mesh)
    mixed = step.of_experiment(straight[1], mesh)
    assert [len(jax.tree.leaves(program.batch)) for program in (plain, mixed)] == [5, 6]
    assert plain.batch.is_of_source is None
    with jax.set_mesh(mesh):
        outputs = [jax.eval_shape(p.step, p.state, p.batch)[1] for p in (plain, mixed)]
    assert outputs[1].keys() - outputs[0].keys() == {"by_source"}


# --- Evaluation ------------------------------------------------------------------------------


def evaluated(workdir, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return evaluate_target(of_run(str(workdir), "latest", None, named))


def test_a_result_tells_the_loss_of_each_source(straight):
    result = evaluated(straight[2], eval__max_tokens="0")
    values = result.to_dict()
    assert [one["name"] for one in values["by_source"]] == list(NAMES)
    parts = values["by_source"]
    keys = {"name", "loss", "perplexity", "bits_per_byte", "num_tokens", "num_bytes"}
    assert parts[0].keys() == keys
    for name in ("num_tokens", "num_bytes"):
        assert sum(one[name] for one in parts) == values[name]
    total = sum(one["loss"] * one["num_tokens"] for one in parts) / values["num_tokens"]
    assert total == pytest.approx(values["loss"], rel=1e-9)
    whole = repr({"name": "few", "paths": str(straight[0] / "few" / "*.txt")})
    alone = evaluated(straight[2], data__mixture=whole, eval__max_tokens="0")
    assert alone.num_tokens > parts[2]["num_tokens"]  # all of it, and not what was held out
    table = report.table(result, step=6, config="tiny")
    assert all(f"{name} " in table for name in NAMES)
    documents = result.records.document
    assert (np.diff(documents) >= 0).all()
    assert len(set(documents)) == documents.max() + 1


def test_a_budget_of_tokens_is_shared_and_met_exactly(straight):
    result = evaluated(straight[2], eval__max_tokens="100")
    assert result.num_tokens == 100
    assert [one.num_tokens for one in result.by_source.values()] == [34, 33, 33]
    last = tiny_run.rows(straight[2])[-1]
    own = evaluated(straight[2])
    assert last["eval/loss"] == pytest.approx(own.loss, rel=1e-6)
    for name in NAMES:
        assert last[f"eval/loss/{name}"] == pytest.approx(own.by_source[name].loss, rel=1e-6)


def test_one_text_may_stand_in_for_the_mixture(straight):
    text = str(straight[0] / "few" / "*.txt")
    result = evaluated(straight[2], data__source="text", data__paths=text)
    assert not result.by_source


# --- Identity --------------------------------------------------------------------------------


def longer(experiment, **keys):
    return tiny_run.with_key(experiment, "training", **{"num_steps": 8} | keys)


def changed_source(experiment, index, **keys):
    mixture = list(experiment.data.mixture)
    mixture[index] = dataclasses.replace(mixture[index], **keys)
    return tiny_run.with_key(experiment, "data", mixture=tuple(mixture))


def refused(experiment, workdir):
    before = tiny_run.snapshot(workdir)
    with pytest.raises(ConfigError) as error:
        loop.run(experiment, workdir)
    assert tiny_run.snapshot(workdir) == before
    return str(error.value)


def test_an_edited_source_is_refused_by_its_name_and_a_moved_one_is_not(straight, tmp_path):
    folder, experiment, workdir = straight
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (folder / "short").iterdir():
        (elsewhere / file.name).write_text(file.read_text())
    moved = changed_source(experiment, 1, paths=(f"{elsewhere}/*.txt",))
    loop.run(moved, workdir)  # the same text: finished
    (elsewhere / "new.txt").write_text("alpha beta")
    assert refused(longer(moved), workdir).startswith(
        "data.mixture[1].paths: the text is another than that of the run"
    )


def test_sources_that_moved_with_the_workdir_are_found(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "first")
    for name in ("config.json", "provenance.json"):
        file = tmp_path / "first" / "run" / name
        file.write_text(file.read_text().replace(str(straight[0]), str(tmp_path / "first")))
    shutil.move(tmp_path / "first", tmp_path / "second")
    expected = evaluated(straight[2])
    assert evaluated(tmp_path / "second" / "run").by_source == expected.by_source


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"weight": 0.3}, "data.mixture[2].weight"),
        ({"epochs": 9.0}, "data.mixture[2].epochs"),
        ({"name": "fewer"}, "data.mixture[2].name"),
    ],
)
def test_another_mixture_is_refused_at_resume(straight, keys, key):
    wrong = changed_source(longer(straight[1]), 2, **keys)
    assert refused(wrong, straight[2]).startswith(f"{key}: differs from the run in --workdir")


def test_steps_beyond_what_the_sources_hold_are_refused_with_their_number(tmp_path):
    once = experiment_of(tmp_path, eval__every_steps=0, checkpoint__every_steps=0)
    mixture = tuple(dataclasses.replace(s, epochs=0.1) for s in once.data.mixture)
    once = tiny_run.with_key(once, "data", mixture=mixture)
    keys = {"context_length": 32, "seed": 0, "vocab_size": once.model.vocab_size}
    most = pipeline.open_rows(once.data, **keys).end // 8
    with pytest.raises(ConfigError) as error:
        loop.run(tiny_run.with_key(once, "training", num_steps=most + 1), tmp_path / "run")
    assert str(error.value).startswith("training.num_steps: ")
    assert f"; at most {most}, or" in str(error.value)
    assert not (tmp_path / "run").exists()
    loop.run(tiny_run.with_key(once, "training", num_steps=most), tmp_path / "run")
    assert tiny_run.rows(tmp_path / "run")[-1]["step"] == most


# --- Commands --------------------------------------------------------------------------------

ONE = "{'name': 'a', 'source': 'stdlib'}"


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("data.mixture", ["data.mixture=a"]),
        ("data.mixture[0]", ["data.mixture=['a']"]),
        ("data.mixture", ["data.mixture=[{'name': 'a', 'source': 'stdlib', 'weight': 0}]"]),
        ("data.mixture[0].weight", ["data.mixture={'name': 'a', 'weight': -1}"]),
        ("data.mixture[0].weight", ["data.mixture={'name': 'a', 'weight': 'much'}"]),
        ("data.mixture[0].wieght", ["data.mixture={'name': 'a', 'wieght': 1}"]),
        ("data.mixture[0].epochs", ["data.mixture={'name': 'a', 'epochs': -1}"]),
        ("data.mixture[0].name", ["data.mixture={'source': 'stdlib'}"]),
        ("data.mixture[0].name", ["data.mixture={'name': 'a.b', 'source': 'stdlib'}"]),
        ("data.mixture[0].source", ["data.mixture={'name': 'a', 'source': 'needle'}"]),
        ("data.mixture[0].packing", ["data.mixture={'name': 'a', 'packing': 'tight'}"]),
        ("data.mixture[0].paths", ["data.mixture={'name': 'a'}"]),
        ("data.mixture[0].paths", ["data.mixture={'name': 'a', 'paths': 'none*.txt'}"]),
        ("data.mixture", [f"data.mixture=[{ONE}, {ONE}]"]),
        ("data.source", [f"data.mixture={ONE}", "data.source=mqar"]),
        ("data.paths", [f"data.mixture={ONE}", "data.paths=x.txt"]),
        ("data.eval_paths", [f"data.mixture={ONE}", "data.eval_paths=x.txt"]),
        ("data.mixture_schedule", ["data.mixture_schedule=((0, (1,)),)"]),
        ("data.mixture_schedule", [f"data.mixture={ONE}", "data.mixture_schedule=((0, (1, 2)),)"]),
        ("data.mixture_schedule", [f"data.mixture={ONE}", "data.mixture_schedule=((0, (0,)),)"]),
        ("data.mixture_schedule", [f"data.mixture={ONE}", "data.mixture_schedule=((-1, (1,)),)"]),
    ],
)
def test_a_wrong_mixture_is_one_line_and_status_2(key, overrides, tmp_path, capsys):
    words = [f"--config.{override}" for override in overrides]
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    page = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'new'}", cache]
    assert train([*page, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {key}: ")
    assert not list(tmp_path.iterdir())


def test_a_mixture_is_prepared_source_by_source(tmp_path, capsys):
    words = [f"--config.data.mixture={ONE}", f"--output={tmp_path / 'store'}"]
    assert prepare(["--config=configs/tiny.py", *words]) == 2
    assert "prepare each source by itself" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


PAGE = """
import json, pathlib

def get_config(path):
    return json.loads(pathlib.Path(path).read_text())
"""


def test_a_sweep_varies_the_weights(straight, tmp_path):
    base = json.loads((straight[2] / "config.json").read_text())
    mixture = [{**source, "weight": 1.0} for source in base["data"]["mixture"]]
    cells = [
        {"data.mixture_schedule": [[0, [1.0, 0.0, 0.0]]]},
        {"data.mixture": mixture, "name": "even"},
    ]
    (tmp_path / "page.py").write_text(PAGE)
    sweep = {"base": base, "cells": cells, "seeds": [0]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    words = [f"--config={tmp_path}/page.py:{tmp_path}/sweep.json", f"--workdir={tmp_path}/sweep"]
    assert ablate(words) == 0
    found = json.loads((tmp_path / "sweep" / "results.json").read_text())["cells"]
    assert [cell["name"] for cell in found] == ["mixture_schedule=0-1-0-0", "even"]
    assert all(f"eval/loss/{name}" in cell["metrics"] for cell in found for name in NAMES)
    assert found[0]["metrics"]["eval/loss"] != found[1]["metrics"]["eval/loss"]
