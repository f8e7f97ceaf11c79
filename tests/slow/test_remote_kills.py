"""Real processes on a workdir in an object store: killed at a request, stopped, and in a pair."""

import signal
import time

import pytest
import small_run
from process_pair import Pair

from hybrid.process.files import as_path

pytestmark = pytest.mark.slow
# As train.py, but the lease of a process that was killed runs out sooner.
TRAIN = """
import sys
from hybrid.process import lease
lease.LEASE, lease.RENEWAL, lease._POLL = 3.0, 0.5, 0.1
from hybrid.training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page, its folder, and the rows of a run on a disk."""
    folder = tmp_path_factory.mktemp("remote")
    words = f"--config={small_run.write_page(folder)}"
    run = folder / "local"
    small_run.finish(small_run.start(folder, "-c", TRAIN, words, f"--workdir={run}"))
    return words, folder, small_run.rows(run)


REQUESTS = [
    ("PUT", "config.json"),
    ("PUT", "checkpoints/4/params/_METADATA"),
    ("PUT", "checkpoints/4/commit_success.txt"),
    ("PUT", "checkpoints/8/opt_state/manifest.ocdbt"),
    ("DELETE", "checkpoints/4/_CHECKPOINT_METADATA"),
]


@pytest.mark.parametrize("at", REQUESTS)
def test_a_run_that_is_killed_at_a_request_goes_on_to_the_same_rows(
    page, object_store, at, request
):
    words, folder, rows = page
    workdir = as_path(f"gs://bucket/killed-{REQUESTS.index(at)}")
    process = small_run.start(folder, "-c", TRAIN, words, f"--workdir={workdir}")

    def kill(method, name):
        if (method, name) == (at[0], f"{workdir.name}/{at[1]}"):
            process.kill()
            process.wait()

    object_store.before = kill
    request.addfinalizer(lambda: setattr(object_store, "before", lambda method, name: None))
    small_run.wait(process)
    assert process.returncode == -signal.SIGKILL
    said = small_run.finish(small_run.start(folder, "-c", TRAIN, words, f"--workdir={workdir}"))
    assert "waiting up to 3 s to see whether process" in said
    assert small_run.rows(workdir) == rows
    assert not (workdir / ".lock").exists()


def test_a_run_that_is_stopped_gives_its_lease_back_and_goes_on(page, object_store):
    words, folder, rows = page
    workdir = as_path("gs://bucket/stopped")
    process = small_run.start(folder, "-c", TRAIN, words, f"--workdir={workdir}")
    while not (workdir / "checkpoints" / "4" / "commit_success.txt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    small_run.wait(process)
    assert process.returncode in (0, 143)
    assert not (workdir / ".lock").exists()
    said = small_run.finish(small_run.start(folder, "-c", TRAIN, words, f"--workdir={workdir}"))
    assert "waiting" not in said
    assert small_run.rows(workdir) == rows


def test_two_processes_share_a_remote_workdir(page, object_store):
    words, folder, rows = page
    workdir = as_path("gs://bucket/shared")
    with Pair(folder, "train.py", words, f"--workdir={workdir}") as pair:
        assert pair.wait() == [0, 0], pair.all_said()
    found = small_run.rows(workdir)
    assert [row.keys() for row in found] == [row.keys() for row in rows]
    for row, other in zip(found, rows, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    names = object_store.names(f"{workdir.name}/")
    assert not [name for name in names if ".shared-" in name or name.endswith(".lock")]
    assert any("ocdbt.process_1" in name for name in names)
