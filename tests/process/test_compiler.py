"""Flags of the compiler are options of a program, refused by key; compiled programs are kept."""

import contextlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from hybrid.config import ConfigError
from hybrid.process import compiler
from hybrid.process.config import CompilationCacheConfig, XlaConfig

FAST = "xla_cpu_enable_fast_math=true"


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("xla_nonsense=1", "No such compile option"),
        ("xla_cpu_enable_fast_math=perhaps", "not a valid bool"),
        ("xla_backend_optimization_level=high", "not a valid int32"),
        ("xla_gpu_enable_command_buffer=QUX", "not a valid enum"),
    ],
)
def test_what_xla_does_not_take_is_refused_by_key_and_flag(flag, problem):
    with pytest.raises(ConfigError, match=rf"^xla\.cpu_flags: .*{problem}.*, got {flag}"):
        compiler.check_flags(("xla_disable_hlo_passes=dce", flag), jax.devices()[0])


def test_flags_of_every_type_are_taken():
    flags = (FAST, "xla_backend_optimization_level=0", "xla_disable_hlo_passes=dce,cse")
    compiler.check_flags(flags, jax.devices()[0])
    compiler.check_flags((), jax.devices()[0])


@pytest.mark.parametrize("flag", ["xla_cpu_enable_fast_math", f"--{FAST}", "fast=1", ""])
def test_what_is_no_flag_is_refused_before_any_compiler(flag):
    with pytest.raises(ConfigError, match=r"^tpu_flags: is no flag"):
        XlaConfig(tpu_flags=(flag,))


def test_a_flag_has_one_value():
    with pytest.raises(ConfigError, match=r"^gpu_flags: holds a flag twice"):
        XlaConfig(gpu_flags=("xla_a=1", "xla_b=1", "xla_a=2"))


def test_each_platform_has_its_own():
    config = XlaConfig(cpu_flags=(FAST,), tpu_flags=("xla_tpu_rwb_fusion=false",))
    assert config.flags("cpu") == (FAST,)
    assert config.flags("gpu") == config.flags("another") == ()


def compile_once(factor, flags=()):
    """Compiles x -> factor · x anew; returns what is told of the cache."""
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    with compiler.cache_watched() as told:
        lowered = jax.jit(lambda x: factor * x).lower(x)
        lowered.compile(compiler_options=compiler.options(flags))
    jax.clear_caches()
    return told()


def test_a_program_is_kept_once_for_its_flags_and_read_then(tmp_path):
    folder = str(tmp_path / "programs")
    with compiler.programs_kept(CompilationCacheConfig(folder, min_seconds=0)):
        assert compile_once(2) == f": kept in {folder}"
        assert compile_once(2) == f": read from {folder}"
        assert compile_once(2, (FAST,)) == f": kept in {folder}"
        assert compile_once(3) == f": kept in {folder}"
    assert len(list((tmp_path / "programs").iterdir())) == 3


def test_settings_are_those_of_before_behind_the_with(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    with (
        contextlib.suppress(ZeroDivisionError),
        compiler.programs_kept(CompilationCacheConfig(str(tmp_path / "a"), min_seconds=0)),
    ):
        assert [getattr(jax.config, name) for name in names] == [str(tmp_path / "a"), 0]
        raise ZeroDivisionError
    assert [getattr(jax.config, name) for name in names] == before
    compile_once(5)
    assert not (tmp_path / "a").exists()
    with compiler.programs_kept(CompilationCacheConfig()):
        assert [getattr(jax.config, name) for name in names] == before


def test_what_is_small_or_quick_to_compile_is_not_kept(tmp_path):
    for limits in ({"min_seconds": 3600}, {"min_seconds": 0, "min_bytes": 1 << 30}):
        with compiler.programs_kept(CompilationCacheConfig(str(tmp_path), **limits)):
            assert compile_once(2) == ""
    assert not list(tmp_path.iterdir())


def test_programs_are_kept_in_an_object_store_too(object_store):
    folder = "gs://bucket/programs"
    with compiler.programs_kept(CompilationCacheConfig(folder, min_seconds=0)):
        assert compile_once(3) == f": kept in {folder}"
        assert compile_once(3) == f": read from {folder}"
    with (
        pytest.raises(ConfigError, match=r"^compilation_cache\.dir: there is no bucket"),
        compiler.programs_kept(CompilationCacheConfig("gs://nowhere/programs")),
    ):
        pass


@pytest.mark.parametrize("folder", ["{0}/file", "{0}/file/inner", "nowhere://bucket"])
def test_a_folder_that_cannot_be_used_is_refused_and_nothing_made(folder, tmp_path):
    (tmp_path / "file").touch()
    config = CompilationCacheConfig(folder.format(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"^compilation_cache\.dir: "),
        compiler.programs_kept(config),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def of_page(platform):
    """The flags that docs/xla_flags.md lists for a platform."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "xla_flags.md").read_text()
    section = page.partition(f"\n## {platform.upper()}\n")[2].partition("\n## ")[0]
    return tuple(re.findall(r"^\| `(xla_\w+=[^`]*)` \|", section, re.MULTILINE))


def test_jaxlib_takes_each_gpu_flag_of_the_page():
    """They are fields of one message, which jaxlib reads on a CPU too."""
    flags = of_page("gpu")
    assert len(flags) > 10
    compiler.check_flags(XlaConfig(gpu_flags=flags).gpu_flags, jax.devices()[0])
