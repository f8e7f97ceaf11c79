"""Processes that agree, as threads around one store: decisions, meetings, a common last unit."""

import contextlib
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jax._src import xla_bridge

from hybrid.config import ConfigError
from hybrid.process import distributed, group, members, signals
from hybrid.process.config import DistributedConfig

COUNT = 3


class Store:
    """A coordinator's key-value store, in memory."""

    def __init__(self):
        self.values, self.lock, self.is_up = {}, threading.Lock(), True
        self.members = []

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            assert self.is_up, "the coordinator is gone"
            assert allow_overwrite or key not in self.values
            self.values[key] = value

    def key_value_dir_get(self, key):
        with self.lock:
            assert self.is_up, "the coordinator is gone"
            return [(name, text) for name, text in self.values.items() if name.startswith(key)]


class Members(members.Members):
    """Members of a run whose end only notes why."""

    verdict = None

    def end(self, status, line):
        self.verdict = self.verdict or (status, line)


@pytest.fixture
def store():
    store = Store()
    yield store
    for each in store.members:
        each.close()


def joined(store, stall_seconds=60.0, count=COUNT):
    """The group of each process, with what catches its signals."""
    made = []
    for index in range(count):
        interrupts = signals.Interrupts()
        own = members.Record(f"host{index // 2}", 100 + index)
        made.append(Members(store, index, count, stall_seconds, interrupts, own))
        made[-1].interrupts = interrupts
    store.members += made
    return [group.Group(store, each) for each in made]


def in_all(groups, work):
    """`work(group)` in a thread for each, at once; results or exceptions by process."""
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(work, each) for each in groups]
        return [future.exception(30) or future.result(30) for future in futures]


def test_the_first_process_decides(store):
    groups = joined(store)
    found = in_all(groups, lambda own: own.from_first(lambda: {"step": 10 * own.index}))
    assert found == [{"step": 0}] * COUNT
    assert in_all(groups, lambda own: own.from_first(lambda: own.index + 7)) == [7] * COUNT


def test_nobody_passes_before_all_have_come(store):
    came = []

    def meet(own):
        time.sleep(0.1 * own.index)
        came.append(own.index)
        own.meet()
        return len(came)

    assert in_all(joined(store), meet) == [COUNT] * COUNT


def test_on_each_host_one_makes_it_before_the_others_come(store):
    made, arrived = [], threading.Barrier(2)  # of the leaders of two hosts

    def make(own):
        def work():
            made.append(own.index)
            if own.index != 1:
                arrived.wait(5)
                time.sleep(0.2)
                made.append("ready")
            return own.index

        return own.first_on_host(work)

    assert in_all(joined(store), make) == [0, 1, 2]
    assert made[-2:] == ["ready", 1]


def test_a_key_that_differs_is_named(store):
    def check(own):
        rate = 0.1 if own.index == 2 else 0.2
        own.check_same({"training.seed": 1, "optimizer.learning_rate": rate})

    *fine, error = in_all(joined(store), check)
    assert fine == [None, None]
    assert isinstance(error, ConfigError)
    assert "optimizer.learning_rate: differs from process 0, got 0.1; it has 0.2" in str(error)


@pytest.mark.parametrize("name", ["run", "new/deep/run"])
def test_a_folder_that_is_not_shared_is_refused_and_left_alone(store, tmp_path, monkeypatch, name):
    monkeypatch.setattr(group, "_SECONDS_FOR_A_FILE", 0.3)
    for place in ("here", "there"):
        (tmp_path / place / "run").mkdir(parents=True)
    places = ["here", "here", "there"]
    groups, left = joined(store), threading.Event()

    def check(own):
        with contextlib.suppress(ConfigError):
            groups[own.index].meet = lambda: left.wait(5)  # as if the others went on waiting
            own.check_shared(tmp_path / places[own.index] / name)
            return "shared"
        left.set()
        return "refused"

    assert in_all(groups, check) == ["shared", "shared", "refused"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "run", "run", "there"]


def test_a_folder_that_all_see_passes(store, tmp_path):
    assert in_all(joined(store), lambda own: own.check_shared(tmp_path / "run")) == [None] * COUNT
    assert list(tmp_path.iterdir()) == []


# --- Stopping at the same unit -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_after_a_signal_to_one_all_stop_at_the_same_unit(store, monkeypatch, seed):
    """Units end only where all have entered them, as collective operations do."""
    monkeypatch.setattr(members, "_SECONDS", 0.02)
    groups, rng = joined(store), random.Random(seed)
    hit, at = rng.randrange(COUNT), rng.randrange(1, 40)
    operations = [threading.Barrier(COUNT) for _ in range(3000)]

    def work(own):
        interrupts, unit = own.members.interrupts, 0
        with interrupts.deferred():
            while not own.is_last(interrupts):
                if unit > 1:
                    operations[unit - 2].wait(10)  # two run ahead, as dispatched steps do
                unit += 1
                if (own.index, unit) == (hit, at):
                    interrupts.requested = signal.SIGUSR1
                time.sleep(0.001 * rng.random())
        return unit, interrupts.requested

    stopped = in_all(groups, work)
    assert len(set(stopped)) == 1, stopped
    assert stopped[0][1] == signal.SIGUSR1


# --- Death and stalls ----------------------------------------------------------------------------


def wait_for_verdict(member, seconds=10):
    until = time.monotonic() + seconds
    while member.verdict is None and time.monotonic() < until:
        time.sleep(0.02)
    return member.verdict


def test_a_process_without_a_sign_of_life_is_named(store):
    first, second, third = (own.members for own in joined(store, stall_seconds=3.0))
    time.sleep(0.5)
    third._store = Store()  # nothing of it comes any more
    for other in (first, second):
        status, line = wait_for_verdict(other)
        assert status == 1
        assert line == "process 2 of 3 (pid 102 on host1) has given no sign of life for 3 s"


def test_a_coordinator_that_does_not_answer_is_named(store):
    _, second, _ = (own.members for own in joined(store, stall_seconds=3.0))
    time.sleep(0.5)
    store.is_up = False
    assert "process 0 of 3 (pid 100 on host0), the coordinator" in wait_for_verdict(second)[1]


def test_what_ended_one_is_told_by_the_others_with_its_status(store):
    first, second, _ = (own.members for own in joined(store))
    second.tell_end(2, "error: data.paths: no such file")
    status, line = wait_for_verdict(first)
    assert status == 2
    assert line == "process 1 of 3 (pid 101 on host0) has ended: error: data.paths: no such file"


def test_who_ends_well_is_waited_for(store):
    groups = joined(store)
    for own in groups:
        own.members.tell_end(0, "")
    assert in_all(groups, lambda own: own.members.wait_for_ends(5)) == [True] * COUNT
    assert [own.members.verdict for own in groups] == [None] * COUNT


# --- Keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"coordinator": "host"}, "coordinator: is no address, got host"),
        ({"coordinator": "host:0"}, "coordinator: is no address"),
        ({"coordinator": ":80"}, "coordinator: is no address"),
        ({"num_processes": 2}, "num_processes: is set although distributed.coordinator is empty"),
        ({"process_id": 0}, "process_id: is set although distributed.coordinator is empty"),
        (
            {"coordinator": "auto", "num_processes": 2, "process_id": 2},
            r"process_id: must be less than distributed.num_processes \(2\)",
        ),
    ],
)
def test_wrong_keys_are_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        DistributedConfig(**keys)


def test_a_coordinator_that_nothing_tells_of_is_refused(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    with (
        pytest.raises(ConfigError, match=r"distributed\.coordinator: nothing in the environment"),
        distributed.started(DistributedConfig(coordinator="auto")),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"distributed\.num_processes: is not set"),
        distributed.started(DistributedConfig(coordinator="localhost:1")),
    ):
        pass


def test_processes_can_be_joined_only_before_devices_are_used(monkeypatch):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: True)
    with (
        pytest.raises(ConfigError, match=r"distributed\.coordinator: comes too late"),
        distributed.started(DistributedConfig(coordinator="auto")),
    ):
        pass


def test_a_host_that_is_not_found_is_refused():
    keys = {"coordinator": "no.such.host.invalid:1", "num_processes": 2, "process_id": 1}
    with (
        pytest.raises(ConfigError, match=r"distributed\.coordinator: names a host that can't be"),
        distributed.started(DistributedConfig(**keys)),
    ):
        pass
