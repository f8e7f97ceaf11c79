"""Paths in an object store: they behave as files do, and what can't be read is not absent."""

import pathlib

import pytest

from hybrid.ablate.command import COMMAND as ablate
from hybrid.config import ConfigError
from hybrid.evaluation.command import COMMAND as evaluate
from hybrid.export import COMMAND as export
from hybrid.process import cli, remote
from hybrid.process.files import as_path, log_of, path_of, write_json, write_whole
from hybrid.process.remote import RemotePath
from hybrid.training.__main__ import main
from hybrid.training.command import COMMAND as train


@pytest.fixture
def folder(object_store, request):
    """A folder in the bucket, and its objects by name."""
    return as_path(f"gs://bucket/{request.node.name}")


def test_a_path_is_read_written_listed_and_deleted(folder):
    write_json(folder / "a" / "values.json", {"x": 1})
    write_whole(folder / "b.txt", lambda file: file.write(b"bytes"))
    assert (folder / "a" / "values.json").read_text() == '{\n  "x": 1\n}\n'
    assert (folder / "b.txt").read_bytes() == b"bytes"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b.txt"]
    assert all(isinstance(path, RemotePath) for path in folder.iterdir())
    assert [folder.is_dir(), folder.is_file(), folder.exists()] == [True, False, True]
    assert [(folder / "b.txt").is_dir(), (folder / "b.txt").is_file()] == [False, True]
    assert (folder / "a" / "values.json").relative_to(folder).parts == ("a", "values.json")
    assert {name: size for name, (size, _) in folder.digests().items()} == {
        "a/values.json": 13,
        "b.txt": 5,
    }
    (folder / "b.txt").unlink()
    (folder / "b.txt").unlink(missing_ok=True)
    folder.rmtree()
    assert not folder.exists()


def test_what_another_process_has_written_shows(folder, object_store):
    (folder / "a").write_bytes(b"")
    assert [path.name for path in folder.iterdir()] == ["a"]
    object_store.put(f"{folder.name}/b", b"")
    (folder / "b").stat()
    assert [path.name for path in folder.iterdir()] == ["a", "b"]
    assert (folder / "b").exists()


def test_what_is_not_there_says_so_by_its_name(folder):
    calls = [folder.read_bytes, folder.stat, folder.unlink, folder.rmtree, folder.iterdir]
    for call in calls:
        with pytest.raises(FileNotFoundError) as error:
            call()
        assert error.value.filename == str(folder)
    assert not folder.exists()


def test_what_can_not_be_read_is_not_absent(object_store):
    path = RemotePath("gs://private/run")
    calls = [path.read_bytes, path.exists, path.is_dir, path.is_file, path.stat]
    for call in [*calls, lambda: [*path.iterdir()]]:
        with pytest.raises(PermissionError, match="status 401"):
            call()
    with pytest.raises(PermissionError, match="status 403"):
        RemotePath("gs://read-only/x").write_bytes(b"")


def test_a_log_is_put_at_a_sync_and_now_and_then(folder, object_store, monkeypatch):
    now = 100.0
    monkeypatch.setattr(remote.time, "monotonic", lambda: now)
    log = log_of(folder / "log")
    assert log.read() == b""
    log.replace(b"1\n")
    log.append(b"2\n")
    assert object_store.text(f"{folder.name}/log") == "1\n"
    assert log.read() == b"1\n2\n"
    log.sync()
    assert object_store.text(f"{folder.name}/log") == "1\n2\n"
    number = len(object_store.requests)
    log.sync()
    assert len(object_store.requests) == number  # nothing is new
    now += remote.SECONDS_BETWEEN_PUTS
    log.append(b"3\n")
    assert object_store.text(f"{folder.name}/log") == "1\n2\n3\n"
    assert log_of(folder / "log").read() == b"1\n2\n3\n"  # as another process finds it


# --- At the door -----------------------------------------------------------------------------


TYPING_ERRORS = ("gs:/bucket/run", "gs:bucket", "gs://", "gs://bucket", "gs://bucket/a/../b")
OTHERS = ("s3://bucket/run", "s3:/bucket", "gcs://bucket/run", "https://host/run", "memory://run")


@pytest.mark.parametrize("url", TYPING_ERRORS + OTHERS)
def test_other_urls_and_typing_errors_are_refused(url, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--config=configs/tiny.py", f"--workdir={url}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    accepted = "a path on this machine or gs://BUCKET/FOLDER"
    assert lines == [f"error: --workdir: is not served, got {url}; {accepted}"]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("command", "flag"),
    [(ablate, "--workdir"), (train, "--config"), (evaluate, "--pretrained"), (export, "--output")],
)
def test_what_is_only_done_on_a_disk_refuses_a_store(command, flag, capsys):
    assert cli.main(command, [f"{flag}=gs://bucket/x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {flag}: is not served, got gs://bucket/x; a path on this machine"]


@pytest.mark.parametrize("key", ["data.paths", "data.eval_paths", "data.cache_dir"])
def test_keys_that_want_a_disk_refuse_a_store(key, capsys, tmp_path):
    words = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}"]
    assert main([*words, f"--config.{key}=gs://bucket/x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {key}: is not served, got ")
    assert line.endswith("; a path on this machine")


def test_a_path_of_this_machine_is_pathlibs(tmp_path):
    for text in (str(tmp_path), "runs/gs", "gs"):
        assert path_of("--workdir", text) == pathlib.Path(text)


@pytest.mark.parametrize(
    ("bucket", "problem"),
    [("missing", "there is no bucket missing"), ("private", "can't be reached")],
)
def test_a_bucket_that_is_out_of_reach_is_refused(object_store, capsys, bucket, problem):
    assert main(["--config=configs/tiny.py", f"--workdir=gs://{bucket}/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --workdir: {problem}")
    assert f"got gs://{bucket}/run" in line


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(remote, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError) as error:
        path_of("init_from", "gs://bucket/run")
    assert str(error.value) == (
        "init_from: needs the package no_such_package, got gs://bucket/run; "
        'pip install "hybrid-attention[gcs]"'
    )
