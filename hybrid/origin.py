"""The folder that a model comes from: the workdir of a run, or a Hugging Face folder.

Both say what the model is, how its text is cut into tokens and where BOS stands; reading their
parameters is `initial.py`'s work.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from hybrid.config import ConfigError, flatten, opened_path, updated
from hybrid.data.sources import names_something
from hybrid.data.tasks import TASKS
from hybrid.model.config import RUNTIME_KEYS
from hybrid.process.files import as_path, is_dir, path_of
from hybrid.process.remote import AnyPath, RemotePath

CONFIG, PROVENANCE, TOKENIZER = "config.json", "provenance.json", "tokenizer"
MIXTURE = "data.mixture"
PATHS = ("data.paths", "data.eval_paths", "init_from")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a folder says of its model.

    Attributes:
      path: the folder.
      model: values of `model.*`.
      tokenizer, bos: values of `data.tokenizer` and `data.bos`.
      run: of a workdir, its whole config; None of a Hugging Face folder.
      key: what named the folder, for complaints about what is in it.
    """

    path: AnyPath
    model: Mapping[str, Any]
    tokenizer: str
    bos: str
    run: Mapping[str, Any] | None = None
    key: str = "init_from"

    @property
    def is_run(self) -> bool:
        """Whether it is a workdir of ours."""
        return self.run is not None


def find(path: str | os.PathLike[str], key: str = "init_from") -> Origin:
    """What the folder `path` holds.  Raises: ConfigError under `key` where it is neither kind."""
    folder = path_of(key, path)
    accepted = "the workdir of a run, or a Hugging Face folder"
    if not is_dir(folder):
        raise ConfigError(key, "no such folder", str(path), accepted)
    try:
        values = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise ConfigError(key, f"holds no {CONFIG}", str(path), accepted) from None
    except OSError as error:
        raise ConfigError(
            key, f"its {CONFIG} can't be read ({error.strerror})", str(path)
        ) from None
    except ValueError as error:
        raise ConfigError(key, f"its {CONFIG} is broken ({error})", str(path)) from None
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = with_places(upgraded(values), folder)
        data = values.get("data", {})
        names = data.get("tokenizer", "byte"), data.get("bos", "auto")
        return Origin(folder, values["model"], *names, run=values, key=key)
    if isinstance(folder, RemotePath):
        problem = "is no run's workdir, and a Hugging Face folder is read from a disk"
        raise ConfigError(key, problem, str(path), "a copy of it on this machine")
    from hybrid import pretrained  # only those who read such folders pay for it

    return Origin(folder, *pretrained.describe(folder, key), key=key)


def with_places(values: Mapping[str, Any], workdir: AnyPath) -> Mapping[str, Any]:
    """A run's config values with its own tokenizer, and paths that lead to where things are now.

    A path is looked up from the directory that the run was started in, then where it lies if it
    was moved together with the workdir, then from here; what is nowhere stays as it is.
    """
    try:
        started = json.loads((workdir / PROVENANCE).read_bytes())
        began = [as_path(started[name]) for name in ("directory", "workdir")]
    except (OSError, ValueError, KeyError, TypeError):  # a run of an earlier version
        began = []

    def placed(flat: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            value = flat.get(name)
            if isinstance(value, str) and value:
                found[name] = _place(opened_path(name, value, remote=True), workdir, *began)
            elif isinstance(value, list | tuple):
                found[name] = [_place(opened_path(name, path), workdir, *began) for path in value]
        return found

    flat = flatten(values)
    found = placed(flat, PATHS)
    if flat.get(MIXTURE):
        found[MIXTURE] = [
            {**source, **placed(source, ("paths", "eval_paths"))} for source in flat[MIXTURE]
        ]
    if (workdir / TOKENIZER).is_dir():
        found["data.tokenizer"] = str(workdir / TOKENIZER)
    return updated(values, found)


def leads_somewhere(values: Mapping[str, Any], name: str) -> bool:
    """Whether all paths under a dotted key of a run's config lead to something."""
    return all(map(names_something, flatten(values).get(name) or ()))


def _place(
    path: str,
    workdir: AnyPath,
    directory: AnyPath | None = None,
    workdir_then: AnyPath | None = None,
) -> str:
    """Where the file, folder or glob `path` of a run leads to now; `path` where that is nowhere.

    Beside a workdir in an object store nothing is looked for, and what lies in one stays there.
    """
    places = [path]
    if isinstance(as_path(path), RemotePath):
        return path
    if directory and workdir_then:
        then = os.path.join(directory, path)
        places = [then, path]
        if isinstance(workdir, pathlib.Path) and isinstance(workdir_then, pathlib.Path):
            beside = os.path.relpath(then, workdir_then)
            places.insert(1, os.path.normpath(os.path.join(workdir.absolute(), beside)))
    return next(filter(names_something, places), path)


def base_folder(origin: Origin) -> AnyPath | None:
    """The Hugging Face folder that the parameters began as; None without one, or if it is gone."""
    while origin.run is not None:
        start = origin.run.get("init_from")
        if not start:
            return None
        try:
            origin = find(start)
        except ConfigError:
            return None
    return origin.path


def upgraded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Nested config values as recorded by an earlier version, under the keys of this one.

    `model.window_schedule` became `training.window_schedule`; its last window was the model's.
    """
    model = values.get("model")
    if not isinstance(model, Mapping) or "window_schedule" not in model:
        return values
    schedule = model["window_schedule"]
    model = {name: value for name, value in model.items() if name != "window_schedule"}
    last = {"model.window_size": schedule[-1][1]} if schedule else {}
    return updated({**values, "model": model}, {"training.window_schedule": schedule, **last})


def inherit(values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Nested config `values` with the model, tokenizer and BOS policy of `origin`.

    What no parameter depends on (dtype, rematerialisation, …) stays as `values` have it.
    """
    own = values.get("model", {})
    model = {**origin.model, **{name: own[name] for name in RUNTIME_KEYS if name in own}}
    data = {**values.get("data", {}), "tokenizer": origin.tokenizer}
    return with_bos({**values, "model": model, "data": data}, origin)


def with_bos(values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """`values` with the BOS policy of `origin` in place of `auto`; a task has no BOS."""
    data = values.get("data", {})
    if data.get("bos", "auto") != "auto" or data.get("source") in TASKS:
        return dict(values)
    return {**values, "data": {**data, "bos": origin.bos}}
