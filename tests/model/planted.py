"""Mistakes planted in the source, each of which a check that stands elsewhere must find.

    with planted(rg_lru, "factor * i * x", "i * x"), pytest.raises(AssertionError):
        check()

A mistake is a piece of a module's text and what is put in its place. The functions and methods
that it changes run the wrong code wherever they were imported to; they and their classes stay the
objects that they are. A mistake outside of them, such as in a constant, is refused.
"""

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator

import jax
import pytest

from hybrid import model
from hybrid.model import stack


def assert_found(
    check: Callable[[], None],
    module: types.ModuleType,
    right: str,
    wrong: str,
    error=AssertionError,
) -> None:
    """`check` fails with `error` where `wrong` stands in place of `right`."""
    with planted(module, right, wrong), pytest.raises(error):
        check()


@contextlib.contextmanager
def planted(module: types.ModuleType, right: str, wrong: str) -> Iterator[None]:
    """`module` with `wrong` in place of `right`, which its text holds once."""
    text = inspect.getsource(module)
    assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {module}"
    sound, mistaken = (
        dict(_functions(compile(each, module.__file__, "exec", dont_inherit=True)))
        for each in (text, text.replace(right, wrong))
    )
    changed = [_live(module, name) for name in sound if sound[name] != mistaken[name]]
    assert changed, f"{right!r} stands in no function of {module}"
    kept = [function.__code__ for function in changed]
    try:
        for function in changed:
            function.__code__ = mistaken[function.__qualname__]
        forget()
        yield
    finally:
        for function, code in zip(changed, kept, strict=True):
            function.__code__ = code
        forget()


def forget() -> None:
    """Drops programs and plans: they are kept by function and config, whatever the code was."""
    for kept in (model.layer_plan, model.abstract, stack.abstract_layer):
        kept.cache_clear()
    jax.clear_caches()


def _functions(code: types.CodeType) -> Iterator[tuple[str, types.CodeType]]:
    """The functions and methods of a compiled module by name: those inside others are parts."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if inner.co_flags & inspect.CO_OPTIMIZED:
                yield inner.co_qualname, inner
            else:  # the body of a class
                yield from _functions(inner)


def _live(module: types.ModuleType, name: str) -> types.FunctionType:
    """The function of that name, without what wraps it: checked types, custom gradients."""
    found = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    return inspect.unwrap(found)
