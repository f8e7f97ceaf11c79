"""One writer of a workdir in an object store, also where one dies or two come at once."""

import re
import time

import pytest

from hybrid.config import ConfigError
from hybrid.process import lease as lease_lib
from hybrid.process.files import as_path
from hybrid.process.lease import FILE, LeaseLost
from hybrid.process.lock import writer_lock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease_lib, "RENEWAL", 0.05)
    monkeypatch.setattr(lease_lib, "LEASE", 0.5)
    monkeypatch.setattr(lease_lib, "_POLL", 0.02)


@pytest.fixture
def folder(object_store, request):
    """A workdir in the bucket that nobody has."""
    return as_path(f"gs://bucket/{request.node.name}")


def test_a_second_writer_is_refused_by_name_while_the_first_one_lives(folder):
    with writer_lock(folder) as first:
        assert not first.claim()
        with pytest.raises(ConfigError, match=r"is in use by process \d+ on "), writer_lock(folder):
            pass
        first.confirm()
    with writer_lock(folder) as next_one:  # given back: nothing to wait for
        next_one.claim()
    assert not (folder / FILE).exists()


def test_entering_changes_nothing(folder, object_store):
    with writer_lock(folder):
        pass
    assert not folder.exists()
    object_store.put(f"{folder.name}/{FILE}", b"{}")
    before = dict(object_store.objects[f"{folder.name}/{FILE}"])
    with writer_lock(folder):
        pass
    assert object_store.objects[f"{folder.name}/{FILE}"] == before


def test_the_lease_of_a_dead_process_is_taken_over_after_a_while(folder, object_store, caplog):
    object_store.put(f"{folder.name}/{FILE}", b'{"host": "far", "process": 7}\n')
    start = time.monotonic()
    with caplog.at_level("INFO", "hybrid"), writer_lock(folder) as lease:
        assert time.monotonic() - start > lease_lib.LEASE
        lease.claim()
        assert '"far"' not in (folder / FILE).read_text()
    assert re.search(r"waiting up to .* whether process 7 on far", caplog.text)


def test_of_two_that_found_the_same_one_gets_it(folder, object_store):
    for left_behind in (False, True):
        if left_behind:
            object_store.put(f"{folder.name}/{FILE}", b"broken")
        with writer_lock(folder) as first, writer_lock(folder) as second:
            first.claim()
            with pytest.raises(ConfigError, match="is in use by process"):
                second.claim()
            first.confirm()


def test_a_writer_whose_lease_was_taken_over_finds_out_and_leaves_it(folder, object_store):
    with writer_lock(folder) as lease:
        lease.claim()
        (folder / FILE).write_bytes(b'{"host": "far", "process": 7}\n')
        time.sleep(2 * lease_lib.RENEWAL)
        with pytest.raises(LeaseLost, match="was taken over by process 7 on far"):
            lease.confirm()
    assert '"far"' in (folder / FILE).read_text()


def test_a_workdir_that_can_not_be_written_to_is_refused_by_the_first_write(object_store):
    problem = r"can't be written to \(Permission denied"
    with (
        writer_lock(as_path("gs://read-only/run")) as lease,
        pytest.raises(ConfigError, match=problem),
    ):
        lease.claim()
