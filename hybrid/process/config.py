"""The sections of a process: `distributed.`, `compilation_cache.` and `xla.`."""

import dataclasses
import re

from hybrid.config import ConfigError, key

AUTO = "auto"
_FLAG = re.compile(r"xla_\w+=.*", re.DOTALL)


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


@dataclasses.dataclass(frozen=True)
class CompilationCacheConfig:
    """Keys under `compilation_cache.`: what compiled programs are kept; no number depends on it."""

    dir: str = key(
        "",
        "folder (or gs://...) for compiled programs, which later starts read; whoever can write to "
        "it can run code here; empty: as jax is set up (JAX_COMPILATION_CACHE_DIR)",
        path="remote",
    )
    min_seconds: float = key(1.0, "keep what took so long to compile", at_least=0)
    min_bytes: int = key(0, "keep what is so large", at_least=0)


@dataclasses.dataclass(frozen=True)
class XlaConfig:
    """Keys under `xla.`: flags of the compiler, for the train step and the evaluation."""

    tpu_flags: tuple[str, ...] = key((), "NAME=VALUE, on TPUs (docs/xla_flags.md)")
    gpu_flags: tuple[str, ...] = key((), "the same on GPUs")
    cpu_flags: tuple[str, ...] = key((), "the same on CPUs")

    def __post_init__(self):
        for platform in ("tpu", "gpu", "cpu"):
            flags, name = self.flags(platform), f"{platform}_flags"
            for flag in flags:
                if not _FLAG.fullmatch(flag):
                    raise ConfigError(name, "is no flag", flag, "xla_NAME=VALUE, without dashes")
            names = [flag.partition("=")[0] for flag in flags]
            for flag in set(names):
                if names.count(flag) > 1:
                    raise ConfigError(name, "holds a flag twice", flag)

    def flags(self, platform: str) -> tuple[str, ...]:
        """The flags for programs of `platform`, as jax names it; none where it has no key."""
        return getattr(self, f"{platform}_flags", ())
