"""Strictness and speed for all tests: shapes checked, ranks never promoted, compiles kept.

Array annotations of `hybrid` are checked at run time (jaxtyping with beartype), which costs a run
nothing because only the tests install the hook.
"""

import os
import pathlib
import tempfile

import quick

# Before jax starts: one cache of compiled programs for all test processes of this user.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"hybrid-test-compiled-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", quick.FLAGS)

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("hybrid", "checker.check")
jax.config.update("jax_numpy_rank_promotion", "raise")


MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Compiled programs are dropped behind a module where there are many.

    Each takes some of the 65 530 memory maps that Linux gives a process, and XLA crashes without.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def object_store():
    """A bucket that this process finds as `gs://bucket` (`gcs_server.py`)."""
    import gcs_server

    with pytest.MonkeyPatch.context() as patch, gcs_server.serving() as (store, environment):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def quick_lease():
    """A lease in the bucket runs out soon."""
    from hybrid.process import lease

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "LEASE", 0.1)
        patch.setattr(lease, "_POLL", 0.02)
        yield
