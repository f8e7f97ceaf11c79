"""Joins the processes of a run, before anything touches a device, and takes leave of them.

    with distributed.started(config):
        ...   # jax.devices() are those of all processes, `group.current()` is all of them

jax's client ends its process by abort() when the coordinator can't be reached or is lost, with a
page of its own and no way to take part (its callback can't be called from Python). So abort() is
met by a handler in C's sense, which adds the line that says what happened and gives the status.

Read first: `members.py` (who is alive, how all stop), `group.py` (how all decide).
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from hybrid.config import ConfigError
from hybrid.process import cli, group, signals
from hybrid.process.config import AUTO, DistributedConfig
from hybrid.process.members import TOGETHER, Members, Record

START_SECONDS = 300  # that the processes of a run may come one after the other
_SHUTDOWN_SECONDS = 10
_LATER = 60.0  # that jax's own watch over the processes comes after ours


@contextlib.contextmanager
def started(config: DistributedConfig) -> Iterator[group.Group]:
    """Inside, this process and the others of `config` are one group; alone without a coordinator.

    Raises: ConfigError by key where the others can't be found.
    """
    if not config.coordinator:
        yield group.current()
        return
    with signals.caught() as interrupts:
        joined = _joined(config, interrupts)
        group.enter(joined)
        try:
            yield joined
        except BaseException as error:
            _leave_after(error, joined, config)
            raise
        else:
            _leave(joined, config, cli.OK)
        finally:
            group.enter(group.Group())


def refuse(what: str, overrides: Any = ()) -> None:
    """Raises: ConfigError where `what`, a command for one process, is to run on several."""
    for name in overrides:
        if name.startswith("distributed."):
            raise ConfigError(name, f"is of no use here: {what} runs in one process")
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        problem = f"{what} runs in one process"
        raise ConfigError("distributed.num_processes", problem, jax.process_count(), "1")


# --- Joining ---------------------------------------------------------------------------------


def _joined(config: DistributedConfig, interrupts: signals.Interrupts) -> group.Group:
    address = None if config.coordinator == AUTO else config.coordinator
    if address and config.process_id != 0:
        _check_host(address)
    if getattr(jax.config, "jax_cpu_collectives_implementation", "") is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; `members.py` makes all processes stop together.
    jax.config.update("jax_enable_preemption_service", False)
    is_given = address and config.num_processes and config.process_id >= 0
    state = _State()
    _meet_abort(state)
    try:
        jax.distributed.initialize(
            address,
            config.num_processes or None,
            None if config.process_id < 0 else config.process_id,
            cluster_detection_method="deactivate" if is_given else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=int(2 * config.stall_seconds + _LATER),
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        _on_abort(signal.SIG_DFL)
        raise _not_found(config, error) from None
    except RuntimeError as error:
        _on_abort(signal.SIG_DFL)
        if "must be called before" not in str(error):
            raise
        problem = "comes too late: something has used jax's devices before (a config page?)"
        raise ConfigError("distributed.coordinator", problem, config.coordinator) from None
    from jax._src.distributed import global_state  # there is no public way to the client

    own = Record(socket.gethostname(), os.getpid())
    store: Any = global_state.client
    index, count = global_state.process_id, global_state.num_processes
    state.address = global_state.coordinator_address
    if count == 1:
        return group.Group()
    if index > 0:
        logging.getLogger("hybrid").setLevel(logging.WARNING)  # the first one speaks for all
    state.members = Members(store, index, count, config.stall_seconds, interrupts, own)
    return group.Group(store, state.members)


def _check_host(address: str) -> None:
    try:
        socket.getaddrinfo(address.rpartition(":")[0].strip("[]"), None)
    except OSError as error:
        problem = f"names a host that can't be found ({error.strerror})"
        raise ConfigError("distributed.coordinator", problem, address) from None


def _not_found(config: DistributedConfig, error: ValueError) -> ConfigError:
    """The key that the environment does not tell."""
    if config.coordinator == AUTO:
        accepted = "HOST:PORT, or a start by TPU VM, Slurm, Open MPI or Kubernetes (there with "
        accepted += "jax[k8s] installed)"
        problem = f"nothing in the environment says where the others are ({error})"
        return ConfigError("distributed.coordinator", problem, AUTO, accepted)
    name = "process_id" if config.num_processes else "num_processes"
    problem = "is not set, and the environment does not say it"
    return ConfigError(f"distributed.{name}", problem, getattr(config, name))


# --- Where jax aborts ------------------------------------------------------------------------


class _State:
    """What the handler of abort() has to know."""

    address: str | None = None
    members: Members | None = None


_handlers: list[Any] = []  # which C may hold pointers to


def _meet_abort(state: _State) -> None:
    """Lets abort() end the process in our way, where the lost coordinator is its cause."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        del number
        told = state.members.ended if state.members else None
        if told is None and state.address is None:
            line = f"not all processes have come within {START_SECONDS} s, or their numbers differ"
            os.write(2, f"error: distributed.coordinator: {line}\n".encode())
        elif told is None:
            if _answers(state.address):
                return  # another cause: it goes on as it would
            line = f"process 0, the coordinator at {state.address}, has ended without a word"
            os.write(2, f"stopped: {line}\n".encode())
        os._exit(1 if told is None else told)

    _on_abort(ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)


def _on_abort(handler: Any) -> None:
    """Sets what C calls at abort(); Python's own handlers would run too late, or never."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)


def _answers(address: str | None) -> bool:
    host, _, port = str(address).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


# --- Leaving ---------------------------------------------------------------------------------


def _leave_after(error: BaseException, joined: group.Group, config: DistributedConfig) -> None:
    """Leaves the group after what ended the `with`; returns only where all end alike."""
    if isinstance(error, jax.errors.JaxRuntimeError) and joined.members:
        try:
            joined.members.wait_for_verdict()
        except signals.Ended as end:
            error = end
    status, line = cli.ending(error)
    _leave(joined, config, status, line, error)


def _leave(
    joined: group.Group,
    config: DistributedConfig,
    status: int,
    line: str = "",
    error: BaseException | None = None,
) -> None:
    members = joined.members
    if members is not None:
        members.tell_end(status, line)
        if status not in TOGETHER or not members.wait_for_ends(config.stall_seconds):
            if status == cli.FAILED and not isinstance(error, signals.Ended):
                traceback.print_exception(error)
            else:
                cli.say(line)
            members.exit(status)
        members.close()
    jax.distributed.shutdown()
    _on_abort(signal.SIG_DFL)
