"""A run in an object store: rows, bits and scores of one on a disk, also after any kill."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_run

import hybrid
from hybrid import export
from hybrid.config import ConfigError
from hybrid.evaluation.__main__ import main as evaluate
from hybrid.generate.__main__ import main as generate
from hybrid.process import cli, lease
from hybrid.process.files import as_path
from hybrid.training import loop
from hybrid.workdir import checkpoint

pytestmark = pytest.mark.usefixtures("quick_lease")
RUN = as_path("gs://bucket/trained")


@dataclasses.dataclass
class Trained:
    """An experiment, its run on a disk, and what was in the store before each change."""

    experiment: hybrid.experiment.Experiment
    local: object
    before: list


@pytest.fixture(scope="module")
def trained(tmp_path_factory, object_store):
    """The same run twice: on a disk, and in the store as `RUN`."""
    folder = tmp_path_factory.mktemp("remote")
    experiment = tiny_run.experiment_of(folder, training__tensorboard=True, checkpoint__keep=1)
    loop.run(experiment, folder / "run")
    before = []

    def remember(method, name):
        with object_store.lock:
            objects = {key: dict(value) for key, value in object_store.objects.items()}
        before.append((method, name.removeprefix(RUN.name + "/"), objects))

    object_store.before = remember
    loop.run(experiment, RUN)
    object_store.before = lambda method, name: None
    return Trained(experiment, folder / "run", before)


def assert_same(workdir, trained):
    """Rows and parameters are those of the run on a disk."""
    assert tiny_run.rows(workdir) == tiny_run.rows(trained.local)
    assert checkpoint.checkpoint_steps(workdir)[-1] == 6
    ours, theirs = hybrid.load(str(workdir)), hybrid.load(trained.local)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_a_remote_run_has_the_rows_bits_and_files_of_a_local_one(trained, object_store):
    assert_same(RUN, trained)
    names = {name.removeprefix(RUN.name + "/") for name in object_store.names(RUN.name + "/")}
    tops = {name.partition("/")[0] for name in names}
    own = {path.name for path in trained.local.iterdir()}
    assert tops == own - {".lock"}
    assert checkpoint.checkpoint_steps(RUN) == checkpoint.checkpoint_steps(trained.local)
    assert not checkpoint.damage(RUN / "checkpoints" / "6", contents=True)
    (events,) = object_store.names(RUN.name + "/tensorboard/")
    (local,) = (trained.local / "tensorboard").iterdir()
    assert len(object_store.objects[events]["data"]) == local.stat().st_size


def _at(before, method, name):
    """What the store held before the last change of that kind."""
    return next(objects for *change, objects in reversed(before) if change == [method, name])


def _copy(objects, workdir, object_store):
    for name, value in objects.items():
        if name.startswith(RUN.name + "/"):
            object_store.put(workdir.name + name.removeprefix(RUN.name), value["data"])


KILLS = {
    "after the rows, within the first save": ("PUT", "checkpoints/2/params/_METADATA"),
    "within a later save": ("PUT", "checkpoints/4/checksums.json"),
    "before a save is made whole": ("PUT", "checkpoints/4/commit_success.txt"),
    "while an old one is deleted": ("DELETE", "checkpoints/2/_CHECKPOINT_METADATA"),
    "at the very end": ("DELETE", ".lock"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_after_a_kill_the_run_goes_on_to_the_same_rows_and_bits(trained, object_store, kill):
    objects = _at(trained.before, *KILLS[kill])
    workdir = as_path(f"gs://bucket/killed-{kill.replace(' ', '-')}")
    _copy(objects, workdir, object_store)
    loop.run(trained.experiment, workdir)
    assert_same(workdir, trained)
    own, others = workdir / "checkpoints", RUN / "checkpoints"
    assert [path.name for path in own.iterdir()] == [path.name for path in others.iterdir()]


def test_rows_up_to_a_step_are_stored_before_its_checkpoint_is_made_whole(trained):
    for step in (2, 4, 6):
        name = f"checkpoints/{step}/commit_success.txt"
        objects = _at(trained.before, "PUT", name)
        lines = objects[f"{RUN.name}/metrics.jsonl"]["data"].splitlines()
        assert {json.loads(line)["step"] for line in lines} >= set(range(1, step + 1))


def test_what_makes_a_checkpoint_whole_is_deleted_first(trained):
    deleted = [change for change in trained.before if change[0] == "DELETE"]
    for step in (2, 4):
        names = [name for _, name, _ in deleted if name.startswith(f"checkpoints/{step}/")]
        assert len(names) > 10
        last = f"checkpoints/{step}/commit_success.txt"
        for _, name, objects in deleted:
            if name in names and name != last:
                assert f"{RUN.name}/{last}" not in objects


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(trained, object_store, caplog):
    workdir = as_path("gs://bucket/damaged")
    objects = _at(trained.before, "DELETE", "checkpoints/2/commit_success.txt")
    _copy(objects, workdir, object_store)
    assert checkpoint.checkpoint_steps(workdir) == [2, 4]
    arrays = workdir / "checkpoints" / "4" / "params" / "d"
    victim = max(arrays.iterdir(), key=lambda path: len(path.read_bytes()))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    assert checkpoint.newest_sound(workdir) == 2
    assert f"checkpoint 4 is damaged (params/d/{victim.name} has other content)" in caplog.text
    victim.unlink()
    assert checkpoint.damage(workdir / "checkpoints" / "4", contents=True).endswith("is missing")


def test_a_second_trainer_is_refused_and_changes_nothing(trained, object_store, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    monkeypatch.setattr(lease, "LEASE", 1.0)
    with lease.Lease(RUN) as first:
        first.claim()
        before = {name: about["generation"] for name, about in object_store.objects.items()}
        longer = tiny_run.with_key(trained.experiment, "training", num_steps=8)
        with pytest.raises(ConfigError, match="is in use by process"):
            loop.run(longer, RUN)
        after = {name: about["generation"] for name, about in object_store.objects.items()}
    assert before == after


def test_a_run_that_lost_its_lease_saves_nothing(trained, object_store, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.0)  # asked at each save
    workdir = as_path("gs://bucket/lost")

    def take_over(method, name):
        if name.endswith("checkpoints/2/commit_success.txt"):
            object_store.put(f"{workdir.name}/.lock", b"{}")

    monkeypatch.setattr(object_store, "before", take_over)
    with pytest.raises(lease.LeaseLost, match="was taken over by another process"):
        loop.run(trained.experiment, workdir)
    assert checkpoint.checkpoint_steps(workdir) == [2]
    assert object_store.text(f"{workdir.name}/.lock") == "{}"


def test_evaluation_generation_and_export_read_a_remote_run(
    trained, object_store, capsys, tmp_path
):
    results = []
    for workdir, output in ((RUN, "gs://bucket/result.json"), (trained.local, tmp_path / "r.json")):
        assert evaluate([f"--workdir={workdir}", f"--output={output}"]) == 0
        values = json.loads(as_path(output).read_text())
        results.append({name: value for name, value in values.items() if name != "config"})
    assert results[0] == results[1]

    capsys.readouterr()
    texts = []
    for workdir in (RUN, trained.local):
        assert generate([f"--workdir={workdir}", "--prompt=alpha", "--max_new_tokens=8"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]

    folders = [tmp_path / "of_remote", tmp_path / "of_local"]
    for workdir, folder in zip((RUN, trained.local), folders, strict=True):
        words = [f"--workdir={workdir}", f"--output={folder}"]
        assert cli.main(export.COMMAND, words) == 0, capsys.readouterr().err
    weights, others = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert weights == others


def test_a_run_starts_from_a_remote_one(trained, tmp_path):
    rows = []
    for number, base in enumerate((str(RUN), str(trained.local))):
        experiment = dataclasses.replace(trained.experiment, init_from=base)
        loop.run(experiment, tmp_path / str(number))
        rows.append(tiny_run.rows(tmp_path / str(number)))
    assert rows[0] == rows[1]
    assert rows[0][0]["loss"] < tiny_run.rows(trained.local)[0]["loss"]


def test_a_copy_of_a_remote_run_on_a_disk_is_one(trained, object_store, tmp_path):
    for name in object_store.names(RUN.name + "/"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(object_store.objects[name]["data"])
    assert_same(tmp_path / RUN.name, trained)
    loop.run(tiny_run.with_key(trained.experiment, "training", num_steps=7), tmp_path / RUN.name)


def test_traces_want_a_disk(trained, object_store):
    number = len(object_store.objects)
    traced = tiny_run.with_key(trained.experiment, "training", profile_start=1)
    with pytest.raises(ConfigError, match=r"training.profile_start: .* got 1; 0 with a workdir"):
        loop.run(traced, as_path("gs://bucket/traced"))
    assert len(object_store.objects) == number


def test_a_hugging_face_folder_is_read_from_a_disk(object_store):
    object_store.put("folder/config.json", b'{"model_type": "gemma3_text"}')
    with pytest.raises(ConfigError, match="a Hugging Face folder is read from a disk"):
        hybrid.from_pretrained("gs://bucket/folder")
