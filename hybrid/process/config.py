"""The `distributed.` section: the processes that train or evaluate together."""

import dataclasses

from hybrid.config import ConfigError, key

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Keys under `distributed.`: how this process finds the others; no number depends on them."""

    coordinator: str = key(
        "",
        "HOST:PORT of process 0; auto: as TPU VM, Slurm, Open MPI or Kubernetes say; "
        "empty: one process",
    )
    num_processes: int = key(
        0, "how many processes; 0: as the environment says", at_least=0, at_most=1 << 20
    )
    process_id: int = key(
        -1, "this process's number, from 0; -1: as the environment says", at_least=-1
    )
    stall_seconds: float = key(
        60.0,
        "a process that gives no sign of life for so long ends the run",
        at_least=1,
        at_most=86400,
    )

    def __post_init__(self):
        if not self.coordinator:
            for name, unset in (("num_processes", 0), ("process_id", -1)):
                if getattr(self, name) != unset:
                    problem = "is set although distributed.coordinator is empty"
                    raise ConfigError(name, problem, getattr(self, name), str(unset))
            return
        if self.coordinator != AUTO:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                accepted = "HOST:PORT, auto, or empty for one process"
                raise ConfigError("coordinator", "is no address", self.coordinator, accepted)
        if self.num_processes and self.process_id >= self.num_processes:
            problem = f"must be less than distributed.num_processes ({self.num_processes})"
            raise ConfigError("process_id", problem, self.process_id)
