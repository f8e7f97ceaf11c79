"""What a start says and records of its compiler, and what a resume may change of it."""

import dataclasses
import json
import re
import shutil

import jax
import pytest
import tiny_run

from hybrid.config import ConfigError
from hybrid.evaluation.target import evaluate_target, of_run
from hybrid.process.config import CompilationCacheConfig, XlaConfig
from hybrid.sharding import make_mesh
from hybrid.training import loop, step

FLAG = "xla_cpu_enable_fast_math=false"
OTHER = "xla_cpu_enable_fast_math=true"


CACHE = jax.config.jax_compilation_cache_dir  # the tests' own, so that little is compiled here


def with_compiler(experiment, *flags):
    cache = CompilationCacheConfig(CACHE, min_seconds=0.3)
    xla = XlaConfig(cpu_flags=flags, tpu_flags=("xla_tpu_rwb_fusion=false",))
    return dataclasses.replace(experiment, compilation_cache=cache, xla=xla)


def run_anew(experiment, workdir):
    """As a process of its own would run it: nothing is compiled yet."""
    jax.clear_caches()
    step._build.cache_clear()
    loop.run(experiment, workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of two steps, and its experiment."""
    folder = tmp_path_factory.mktemp("run")
    keys = {"training__num_steps": 2, "eval__every_steps": 0, "optimizer__schedule": "constant"}
    experiment = tiny_run.experiment_of(folder, **keys)
    experiment = with_compiler(experiment, FLAG)
    run_anew(experiment, folder / "run")
    return folder, experiment


def test_flags_are_recorded_those_of_the_environment_too(trained):
    record = json.loads((trained[0] / "run" / "provenance.json").read_text())
    assert record["xla_flags"]["config"] == [FLAG]
    assert record["xla_flags"].keys() == {"config", "XLA_FLAGS", "LIBTPU_INIT_ARGS"}


def test_a_second_start_reads_the_step_from_the_cache_and_says_its_flags(trained, capsys):
    folder, experiment = trained
    run_anew(experiment, folder / "second")
    said = capsys.readouterr().err
    assert f" s: read from {CACHE}\n" in said
    assert f"XLA flags: {FLAG}\n" in said
    assert "tpu" not in said
    assert tiny_run.rows(folder / "second") == tiny_run.rows(folder / "run")


def test_a_resume_may_change_cache_and_flags_the_latter_with_a_warning(trained, capsys):
    folder, experiment = trained
    shutil.copytree(folder / "run", folder / "resumed")
    longer = tiny_run.with_key(experiment, "training", num_steps=3)
    elsewhere = CompilationCacheConfig(CACHE, min_seconds=0.5)
    changed = dataclasses.replace(with_compiler(longer, OTHER), compilation_cache=elsewhere)
    loop.run(changed, folder / "resumed")
    said = capsys.readouterr().err
    assert f"warning: xla.cpu_flags was ['{FLAG}'], is ['{OTHER}']: bits may differ" in said
    assert "compilation_cache" not in said


def test_an_evaluation_takes_this_machines_flags_not_the_runs(trained):
    folder, _ = trained
    target = of_run(str(folder / "run"), "latest", None, {})
    assert target.experiment.xla == XlaConfig()
    assert target.experiment.compilation_cache == CompilationCacheConfig()
    texts = {
        "compilation_cache.dir": str(folder / "scores"),
        "compilation_cache.min_seconds": "0.2",
    }
    jax.clear_caches()
    evaluate_target(of_run(str(folder / "run"), "latest", None, texts))
    assert list((folder / "scores").iterdir())
    with pytest.raises(ConfigError, match=r"^xla\.cpu_flags: "):
        evaluate_target(of_run(str(folder / "run"), "latest", None, {"xla.cpu_flags": "xla_n=1"}))


def test_flags_reach_the_compiler_of_the_step_and_of_the_scores(trained, monkeypatch):
    """What no check has refused XLA itself refuses."""
    folder, experiment = trained
    wrong = dataclasses.replace(experiment, xla=XlaConfig(cpu_flags=("xla_nonsense=1",)))
    mesh = make_mesh(wrong.mesh)
    with jax.set_mesh(mesh), pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
        _ = step.of_experiment(wrong, mesh).compiled
    monkeypatch.setattr("hybrid.process.compiler.check_flags", lambda *_: None)
    target = of_run(str(folder / "run"), "latest", None, {"xla.cpu_flags": "xla_nonsense=1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
        evaluate_target(target)


# --- What comes first --------------------------------------------------------------------------


class NotCompiled(Exception):
    """Stands for what XLA raises where a step does not fit."""


@pytest.fixture
def broken_compiler(monkeypatch):
    def compiled(program):
        raise NotCompiled

    monkeypatch.setattr(step.Program, "compiled", property(compiled))


def test_a_step_that_does_not_compile_shows_before_text_is_tokenized(tmp_path, broken_compiler):
    experiment = tiny_run.experiment_of(tmp_path, training__num_steps=1)
    with pytest.raises(NotCompiled):
        loop.run(experiment, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.paths", ("{0}/none/*.txt",)),
        ("data.paths", ("{0}/blank.txt",)),
        ("data.cache_dir", "{0}/blank.txt"),
        ("model.vocab_size", 257),
    ],
)
def test_wrong_data_shows_before_a_step_is_compiled(key, value, tmp_path, broken_compiler):
    (tmp_path / "blank.txt").write_text("")
    where = lambda text: text.format(tmp_path)  # noqa: E731
    value = tuple(map(where, value)) if isinstance(value, tuple) else value
    value = where(value) if isinstance(value, str) else value
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}: "):
        loop.run(tiny_run.experiment_of(tmp_path, **{key: value}), tmp_path / "run")


def test_a_step_is_compiled_and_told_of_once(trained, tmp_path, capsys):
    _, experiment = trained
    data = dataclasses.replace(experiment.data, cache_dir=str(tmp_path / "tokens"))
    run_anew(dataclasses.replace(experiment, data=data), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    compiling, tokenizing, described = (
        [number for number, line in enumerate(lines) if line.startswith(start)]
        for start in ("compiling took", "tokenizing", "data:")
    )
    assert len(compiling) == 1
    assert compiling < tokenizing[:1] < described
