"""Two real processes of a run on this machine, over Gloo, each with CPU devices of its own."""

import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import small_run

DEVICES = "--xla_force_host_platform_device_count="


class Pair:
    """Both processes of a command, started; what they say is in files of `folder`."""

    def __init__(
        self,
        folder: pathlib.Path,
        script: str,
        *words: object,
        own: Sequence[Sequence[object]] = ((), ()),
        num_devices: int = 2,
    ):
        """`own` has further words for each process alone."""
        port = free_port()
        environment = small_run.environment(folder)
        environment["XLA_FLAGS"] += f" {DEVICES}{num_devices}"
        self.processes, self.files = [], []
        for index in range(2):
            keys = {"coordinator": f"localhost:{port}", "num_processes": 2, "process_id": index}
            joined = [f"--config.distributed.{key}={value}" for key, value in keys.items()]
            command = [sys.executable, small_run.ROOT / script, *words, *joined, *own[index]]
            file = folder / f"said-{port}-{index}"
            with open(file, "w") as said:
                process = subprocess.Popen(
                    list(map(str, command)), env=environment, stdout=said, stderr=said
                )
            self.processes.append(process)
            self.files.append(file)

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index: int) -> str:
        """What a process has said so far."""
        return self.files[index].read_text()

    def wait_for(self, text: str, index: int = 0, seconds: float = 600) -> None:
        """Returns when a process has said `text`."""
        until = time.monotonic() + seconds
        while text not in self.said(index):
            codes = [process.poll() for process in self.processes]
            assert codes[index] is None, (codes, self.all_said())
            assert time.monotonic() < until, self.all_said()
            time.sleep(0.02)

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit statuses, when both have ended."""
        until = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process hangs: {self.all_said()}") from None
        return [process.returncode for process in self.processes]

    def all_said(self) -> str:
        """What both have said."""
        return "\n".join(f"--- {index}:\n{self.said(index)}" for index in range(2))


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def alone(folder: pathlib.Path, num_devices: int, *words: object) -> str:
    """Runs a command in one process that succeeds; what it said on standard error."""
    environment = small_run.environment(folder)
    environment["XLA_FLAGS"] += f" {DEVICES}{num_devices}"
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
