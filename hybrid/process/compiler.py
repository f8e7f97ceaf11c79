"""The compiler of this process: the flags that a program gets, and where compiled ones are kept.

Flags are options of one program. In XLA_FLAGS or LIBTPU_INIT_ARGS they would have to be there
before jax starts, would change every program of the process, and XLA ends the process for a name
that it does not have; as options it raises, so that a wrong one can be refused by its key.

The cache is jax's own. Its settings are the process's, so they are set for the time of a `with`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import SingleDeviceSharding

from hybrid.config import ConfigError
from hybrid.process.config import CompilationCacheConfig
from hybrid.process.files import check_writable, path_of

FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment, for a whole process
_DIR = "jax_compilation_cache_dir"
_READ, _KEPT = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))


# --- Flags -----------------------------------------------------------------------------------


def options(flags: Sequence[str]) -> dict[str, bool | str]:
    """`NAME=VALUE` as jax's `compiler_options` take them, which tell truth values from text.

    >>> options(["xla_cpu_enable_fast_math=true", "xla_backend_optimization_level=0"])
    {'xla_cpu_enable_fast_math': True, 'xla_backend_optimization_level': '0'}
    """
    pairs = (flag.partition("=") for flag in flags)
    truths = {"true": True, "false": False}
    return {name: truths.get(text.lower(), text) for name, _, text in pairs}


def check_flags(flags: Sequence[str], device: jax.Device) -> None:
    """Raises: ConfigError for a flag that the compiler of `device` does not take.

    They are tried on an empty program, which costs a part of a second.
    """
    if not flags:
        return
    empty = jax.jit(lambda: jnp.zeros(()), out_shardings=SingleDeviceSharding(device)).lower()
    try:
        empty.compile(compiler_options=options(flags))
    except jax.errors.JaxRuntimeError as error:
        status, _, reason = str(error).partition(": ")
        named = [flag for flag in flags if flag.partition("=")[0] in re.findall(r"\w+", reason)]
        if status != "INVALID_ARGUMENT" or not named:
            raise
        problem = f"is refused by XLA ({reason.strip(': .')})"
        raise ConfigError(f"xla.{device.platform}_flags", problem, named[0]) from None


# --- The cache of compiled programs ----------------------------------------------------------


@contextlib.contextmanager
def programs_kept(config: CompilationCacheConfig) -> Iterator[None]:
    """Inside, compiled programs are kept as `config` says; without a folder, as jax is set up.

    Raises: ConfigError for a folder that can't be used; jax would warn at every program and go on.
    """
    if not config.dir:
        yield
        return
    check_writable(path_of("compilation_cache.dir", config.dir), "compilation_cache.dir")
    settings = {
        _DIR: config.dir,
        "jax_persistent_cache_min_compile_time_secs": config.min_seconds,
        "jax_persistent_cache_min_entry_size_bytes": config.min_bytes,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # which keeps the folder that it began with


@contextlib.contextmanager
def cache_watched() -> Iterator[Callable[[], str]]:
    """Gives a function that says what the cache did for the program compiled inside, the last one.

    That is `: read from DIR`, `: kept in DIR`, or nothing.
    """
    done = {_READ: "read from", _KEPT: "kept in"}
    seen = [""]

    def listen(event: str, **about: Any) -> None:
        if event in done:
            seen.append(f": {done[event]} {getattr(jax.config, _DIR)}")

    jax.monitoring.register_event_listener(listen)
    try:
        yield lambda: seen[-1]
    finally:
        jax.monitoring.unregister_event_listener(listen)
