"""What a run rests on, it owns or knows by content: tokenizer, texts, split, base; not by path."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError
from hybrid.data import sources
from hybrid.data.config import DataConfig
from hybrid.evaluation.target import evaluate_target, of_run
from hybrid.loading import api
from hybrid.pretrained.tokenizer import write_tokenizer
from hybrid.process.lock import WriterLock
from hybrid.training import loop
from hybrid.workdir import provenance


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with texts, a tokenizer, and a run of two steps on them in `run`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tokenizer").mkdir()
    write_tokenizer("byte", folder / "tokenizer")
    keys = {"training__num_steps": 2, "data__tokenizer": str(folder / "tokenizer")}
    loop.run(tiny_run.experiment_of(folder, **keys), folder / "run")
    return folder


@pytest.fixture
def moved(trained, tmp_path):
    """A copy of it all, as if the whole had been moved; the run's paths lead to the old place."""
    shutil.copytree(trained, tmp_path / "moved")
    return tmp_path / "moved"


def loss(workdir, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return evaluate_target(of_run(str(workdir), "latest", None, named)).loss


def other_tokenizer(folder):
    """Bytes by other ids, in the place of a tokenizer.json."""
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


# --- The tokenizer ---------------------------------------------------------------------------


def test_a_run_keeps_its_tokenizer_whatever_lies_at_the_old_path(trained, moved, tmp_path):
    other_tokenizer(moved / "tokenizer")
    assert loss(moved / "run") == loss(trained / "run")
    api.save_pretrained(api.load(moved / "run"), tmp_path / "exported")
    original = (trained / "tokenizer" / "tokenizer.json").read_bytes()
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == original
    shutil.rmtree(moved / "tokenizer")
    assert loss(moved / "run") == loss(trained / "run")


def test_a_copy_that_was_changed_is_refused(moved):
    other_tokenizer(moved / "run" / "tokenizer")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: is not the tokenizer"):
        loss(moved / "run")


def longer(folder, **keys):
    paths = {"data__tokenizer": str(folder / "tokenizer"), "training__num_steps": 3}
    return tiny_run.experiment_of(folder, **paths | keys)


def test_a_resume_takes_no_other_tokenizer_and_does_without_the_original(moved, capsys):
    other_tokenizer(moved / "tokenizer")
    before = tiny_run.snapshot(moved / "run")
    with pytest.raises(ConfigError) as error:
        loop.run(longer(moved), moved / "run")
    assert error.value.key == "data.tokenizer"
    assert tiny_run.snapshot(moved / "run") == before
    shutil.rmtree(moved / "tokenizer")
    loop.run(longer(moved), moved / "run")
    assert "the run's own copy is used" in capsys.readouterr().err


# --- Texts -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    removed=st.sets(st.integers(0, 23)),
    added=st.integers(0, 9),
    fraction=st.sampled_from([1e-6, 0.01, 0.2, 0.9, 0.99]),
)
def test_no_document_that_was_trained_on_is_ever_held_out(
    tmp_path_factory, removed, added, fraction
):
    folder = tmp_path_factory.mktemp("texts")
    pattern = tiny_run.write_texts(folder)
    config = DataConfig(source="text", paths=(pattern,), eval_fraction=fraction)
    held_out = sources.documents(config, "eval")
    then = {sources.digest_of(document.text) for document in sources.documents(config)}
    again = sources.documents(config, "eval", held_out.held_out_below)
    assert again.fingerprint == held_out.fingerprint
    for number in removed:
        (folder / f"{number}.txt").unlink()
    for number in range(added):
        (folder / f"new{number}.txt").write_text(f"new {number}")
    try:
        now = list(sources.documents(config, "eval", held_out.held_out_below))
    except ConfigError:
        now = []
    assert not then & {sources.digest_of(document.text) for document in now}


def test_an_edited_corpus_is_named_and_what_was_trained_on_is_not_scored(moved, capsys):
    data = longer(moved).data
    held_out = sources.documents(data, "eval").names
    assert len(held_out) > 1
    pathlib.Path(held_out[0]).unlink()
    capsys.readouterr()
    loss(moved / "run", data__cache_dir=str(moved / "cache"))
    warning = capsys.readouterr().err
    # The run looks into the folder that it was started on first: which is as it was.
    assert "warning" not in warning
    values = json.loads((moved / "run" / "config.json").read_text())
    values["data"]["paths"] = [str(moved / "texts" / "*.txt")]
    (moved / "run" / "config.json").write_text(json.dumps(values))
    loss(moved / "run")
    assert "warning: the held-out text is another than the run's" in capsys.readouterr().err
    for path in held_out[1:]:
        pathlib.Path(path).unlink()
    with pytest.raises(ConfigError, match=r"data\.paths: nothing is left"):
        loss(moved / "run")


def test_other_held_out_files_are_refused_at_resume(tmp_path):
    keys = {"data__eval_paths": (str(tmp_path / "held.txt"),), "training__num_steps": 2}
    (tmp_path / "held.txt").write_text("alpha beta gamma")
    experiment = tiny_run.experiment_of(tmp_path, **keys)
    loop.run(experiment, tmp_path / "run")
    (tmp_path / "held.txt").write_text("alpha beta delta")
    before = tiny_run.snapshot(tmp_path / "run")
    with pytest.raises(ConfigError, match="held-out text is another") as error:
        loop.run(tiny_run.with_key(experiment, "training", num_steps=3), tmp_path / "run")
    assert error.value.key == "data.eval_paths"
    assert tiny_run.snapshot(tmp_path / "run") == before


# --- Places ----------------------------------------------------------------------------------


def test_what_is_moved_together_is_found_from_anywhere(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "first")
    here = tmp_path / "first"
    keys = {"data__paths": ("texts/*.txt",), "training__num_steps": 2}
    monkeypatch.chdir(here)
    experiment = tiny_run.experiment_of(here, **keys)
    shutil.rmtree(here / "run")
    loop.run(experiment, pathlib.Path("run"))
    expected = loss("run")
    monkeypatch.chdir("/")
    assert loss(here / "run") == expected
    shutil.move(here, tmp_path / "second")
    assert loss(tmp_path / "second" / "run") == expected
    # The text alone was moved: a flag names it, and its content says that it is the run's own.
    shutil.move(tmp_path / "second" / "texts", tmp_path / "third")
    with pytest.raises(ConfigError, match=r"data\.paths: no such file"):
        loss(tmp_path / "second" / "run")
    third = str(tmp_path / "third" / "*.txt")
    assert loss(tmp_path / "second" / "run", data__paths=third) == expected
    (tmp_path / "third" / "more.txt").write_text("alpha")
    assert loss(tmp_path / "second" / "run", data__paths=third) != expected


def test_text_that_the_run_still_finds_is_scored_whole_when_it_is_named(trained):
    target = of_run(
        str(trained / "run"), "latest", None, {"data.paths": str(trained / "texts" / "*.txt")}
    )
    assert target.split == "all"


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.sampled_from([".", "texts/..", "../{}", "./."]), max_size=4))
def test_one_text_may_be_spelled_in_any_way(trained, steps):
    detour = "/".join(step.format(trained.name) for step in steps)
    experiment = longer(trained)
    data = {"paths": (str(trained / detour / "texts" / "*.txt"),), "cache_dir": "elsewhere"}
    same = tiny_run.with_key(experiment, "data", **data)
    assert provenance.check_resume(trained / "run", same) == [
        "training.num_steps grew from 2 to 3: the schedule is another one"
    ]


@pytest.mark.parametrize(
    ("section", "keys", "warned"),
    [
        ("training", {"profile_start": 2, "profile_steps": 1}, False),
        ("training", {"tensorboard": True}, False),
        ("training", {"peak_flops": -1.0}, False),
        ("model", {"remat": "full"}, False),
        ("training", {"num_microbatches": 2}, True),
        ("model", {"unroll": True}, True),
        ("model", {"attention": "chunked"}, True),
    ],
)
def test_what_changes_no_number_may_change(trained, section, keys, warned):
    experiment = longer(trained, training__num_steps=2)
    warnings = provenance.check_resume(
        trained / "run", tiny_run.with_key(experiment, section, **keys)
    )
    assert len(warnings) == warned
    assert all("bits may differ" in line for line in warnings)


# --- One writer ------------------------------------------------------------------------------


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path):
    folder = tmp_path / "run"
    with WriterLock(folder) as first:
        assert not folder.exists()
        assert not first.claim()
        for _ in range(2):
            with pytest.raises(ConfigError) as error, WriterLock(folder):
                pass
            assert f"process {os.getpid()} on " in str(error.value)
    with WriterLock(folder) as again:
        assert again.claim()


def test_of_two_that_begin_at_once_one_goes_on(tmp_path):
    with WriterLock(tmp_path / "run") as first, WriterLock(tmp_path / "run") as second:
        first.claim()
        with pytest.raises(ConfigError, match="is in use"):
            second.claim()


HOLDER = """
import pathlib, sys, time
from hybrid.process.lock import WriterLock
with WriterLock(pathlib.Path(sys.argv[1])) as lock:
    lock.claim()
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == b"held\n"
    with (
        pytest.raises(ConfigError, match=f"process {process.pid} on"),
        WriterLock(tmp_path / "run"),
    ):
        pass
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            with WriterLock(tmp_path / "run"):
                return
        except ConfigError:
            assert time.monotonic() < deadline


def test_a_run_refuses_a_workdir_in_use(trained):
    before = tiny_run.snapshot(trained / "run")
    with WriterLock(trained / "run"), pytest.raises(ConfigError, match="is in use"):
        loop.run(longer(trained), trained / "run")
    assert tiny_run.snapshot(trained / "run") == before


def test_the_page_names_all_keys_that_may_change():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "workdir.md").read_text()
    names = (
        *provenance.MAY_CHANGE,
        *provenance.MAY_CHANGE_BITS,
        *provenance.COMPARED_BY_CONTENT,
    )
    for name in names:
        assert f"`{name}*`" in page or f"`{name}`" in page


def test_a_workdir_that_leads_nowhere_is_refused_and_not_made(trained, tmp_path):
    (tmp_path / "run").symlink_to("/not/mounted/run")
    for workdir in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(ConfigError, match="leads to /not/mounted/run, which isn't there"):
            loop.run(longer(trained), workdir)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_of_one_text_the_end_that_was_held_out_is_scored_or_none(tmp_path):
    (tmp_path / "one.txt").write_text("alpha beta gamma\n" * 60)
    keys = {"data__paths": (str(tmp_path / "one.txt"),), "training__num_steps": 1}
    loop.run(tiny_run.experiment_of(tmp_path, **keys), tmp_path / "run")
    assert loss(tmp_path / "run") > 0
    with open(tmp_path / "one.txt", "a") as file:
        file.write("delta\n" * 90)
    with pytest.raises(ConfigError, match=r"data\.paths: the held-out text is another"):
        loss(tmp_path / "run")


def test_a_finished_run_is_not_that_of_another_text(trained, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("alpha beta")
    (tmp_path / "b.txt").write_text("gamma delta")
    finished = longer(trained, training__num_steps=2)
    other = tiny_run.with_key(finished, "data", paths=(str(tmp_path / "*.txt"),))
    with pytest.raises(ConfigError, match=r"data\.paths: the text is another"):
        loop.run(other, trained / "run")
    same = tiny_run.with_key(finished, "data", paths=(str(trained / "texts" / "*.txt"),))
    loop.run(same, trained / "run")
    assert "finished: all 2 steps are done" in capsys.readouterr().err
