"""The command behind `eval.py`: which config counts, what is scored, where results go.

Model, tokenizer, text and BOS policy are the run's own, from the workdir's `config.json`;
`eval.*` comes from the page where one is given; overrides change either, the text included.
Everything that can be wrong is refused before the model is read, and files appear whole or not
at all. Signals stop it at once: there is nothing to save.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from hybrid import cli, experiment, model
from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.data import cache, pipeline
from hybrid.data.config import WITHOUT_PATHS
from hybrid.evaluation import held_out, report
from hybrid.evaluation.result import Result
from hybrid.experiment import Experiment
from hybrid.files import write_whole
from hybrid.sharding import batch_sharding, make_mesh, num_batch_parts, placed, shardings
from hybrid.training import checkpoint, provenance

TEXT_KEYS = ("data.source", "data.paths")
FIXED_KEYS = ("model.pattern", "model.last_layer")
SECONDS_BETWEEN_LINES = 5.0


def _define(values: flags.FlagValues) -> None:
    def text(name: str, doc: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, doc, flag_values=values)

    text("config", "config page whose eval.* keys are used; default: the run's own")
    text("workdir", "folder of the run to evaluate")
    text("checkpoint", "latest, best (by eval/loss) or a step", "latest")
    text("pretrained", "a Hugging Face folder in place of a workdir (not built yet)")
    text("output", "write the result to this JSON file")
    text("per_token", "write the nats of every predicted token to this .npy file")


def _run(arguments: cli.Arguments) -> None:
    if arguments.flags.pretrained:
        raise ConfigError("--pretrained", "is not built yet", arguments.flags.pretrained)
    workdir, page = pathlib.Path(arguments.require("workdir")), arguments.flags.config
    config, overrides = resolve(workdir, page, arguments.overrides)
    step = checkpoint.find_step(workdir, arguments.flags.checkpoint)
    output, per_token = (_output(arguments, name) for name in ("output", "per_token"))
    if output is not None and output == per_token:
        raise ConfigError("--per_token", "is the file of --output too", str(per_token))

    name = page or str(workdir / provenance.CONFIG)
    # Text named on the command line is scored whole; the run's own has a held-out part.
    split = "all" if any(key in overrides for key in TEXT_KEYS) else "eval"
    result = score(config, workdir, step, split, Lines)
    values = result.to_dict(step=step, config=name) | {"overrides": overrides}
    if per_token is not None:
        write_whole(per_token, lambda file: np.save(file, result.per_token))
    if output is not None:
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_whole(output, text)
    print(report.table(result, step=step, config=name))


# --- Which config counts ---------------------------------------------------------------------


def resolve(
    workdir: pathlib.Path, page: str | None, texts: dict[str, str]
) -> tuple[Experiment, dict[str, Any]]:
    """The config to evaluate under, and the overrides as values by dotted key.

    Raises: ConfigError for a folder that is no workdir, a wrong page or override, and an
      override that trained parameters don't fit.
    """
    # The devices are those that are here, however many the run had.
    values = provenance.read_config(workdir) | {"mesh": {}}
    trained = experiment.from_config(values)
    if page is not None:
        of_page = experiment.from_config(config_lib.load_page(page))
        values = values | {"eval": config_lib.to_dict(of_page.eval)}
    overrides = config_lib.parse_overrides(Experiment, texts)
    check_fixed(trained, overrides)
    if "model.window_size" in overrides:  # the schedule's windows are those of the training
        values = config_lib.updated(values, {"model.window_schedule": ()})
    if overrides.get("data.source") in WITHOUT_PATHS:  # the run's paths are of another source
        values = config_lib.updated(values, {"data.paths": (), "data.eval_paths": ()})
    config = experiment.from_config(config_lib.updated(values, overrides))
    check_shapes(trained, config, overrides)
    return config, overrides


def check_fixed(trained: Experiment, overrides: Mapping[str, Any]) -> None:
    """Raises: ConfigError for an override of what makes a layer the layer it was trained as."""
    for name in FIXED_KEYS:
        has = getattr(trained.model, name.removeprefix("model."))
        if overrides.get(name, has) != has:
            accepted = f"the run has {has}"
            raise ConfigError(name, "can't change in a trained model", overrides[name], accepted)


def check_shapes(trained: Experiment, config: Experiment, overrides: Mapping[str, Any]) -> None:
    """Raises: ConfigError naming the override under which the parameters would not fit."""
    if _shapes(trained) == _shapes(config):
        return
    problem = "changes the shapes of the trained parameters"
    names = [name for name in overrides if name.startswith("model.")]
    for name in names:
        alone = config_lib.updated(config_lib.to_dict(trained), {name: overrides[name]})
        if _shapes(experiment.from_config(alone)) != _shapes(trained):
            has = getattr(trained.model, name.removeprefix("model."))
            raise ConfigError(name, problem, overrides[name], f"the run has {has}")
    raise ConfigError(names[0], problem, overrides[names[0]])


def _shapes(config: Experiment) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, model.abstract(config.model))


def _output(arguments: cli.Arguments, name: str) -> pathlib.Path | None:
    """The file that a flag names.  Raises: ConfigError where it can't be written."""
    value = arguments.flags[name].value
    if value is None:
        return None
    path = pathlib.Path(value)
    if not value or path.is_dir():
        raise ConfigError(f"--{name}", "must be a file", value)
    if not path.parent.is_dir():
        raise ConfigError(f"--{name}", "its folder doesn't exist", value)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--{name}", "its folder can't be written to", value)
    return path


# --- Scoring ---------------------------------------------------------------------------------


def score(
    config: Experiment,
    workdir: pathlib.Path,
    step: int,
    split: str = "eval",
    lines: Callable[[str], cache.Progress] | None = None,
) -> Result:
    """Scores the checkpoint of `step` on the text or task of `config`, on all devices.

    `lines(what)` makes what hears of (done, total) of each part; None: nobody does.
    """
    tokenizing, evaluating = (
        lines(what) if lines else None for what in ("tokenizing", "evaluating")
    )
    mesh = make_mesh(config.mesh)
    scored = pipeline.open_held_out(
        config.data,
        vocab_size=config.model.vocab_size,
        context_length=max(config.eval.lengths(config.training.context_length)),
        split=split,
        progress=tokenizing,
    )
    if lines:
        what = "task" if config.data.is_task else "text"
        print(f"{what}: {scored.description}", file=sys.stderr)
    with jax.set_mesh(mesh):
        result = held_out.evaluate(
            config.model,
            read_params(config, workdir, step, mesh),
            scored,
            config.eval,
            context_length=config.training.context_length,
            put=lambda batch: jax.device_put(batch, batch_sharding(mesh)),
            batch_multiple=num_batch_parts(mesh),
            progress=evaluating,
        )
    assert result is not None, "nobody asked it to stop"
    return result


def read_params(config: Experiment, workdir: pathlib.Path, step: int, mesh: jax.sharding.Mesh):
    """The parameters of a checkpoint, each where the mesh has it."""
    shapes = model.abstract(config.model)
    places = shardings(mesh, model.logical_axes(config.model), shapes)
    return checkpoint.restore_params(workdir, str(step), placed(shapes, places))[0]


class Lines:
    """Progress on standard error: `evaluating: 40 %`, a line every few seconds."""

    def __init__(self, what: str):
        self._what, self._last = what, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"{self._what}: {100 * done // total} %", file=sys.stderr, flush=True)


COMMAND = cli.Command(
    name="python eval.py",
    doc="Evaluates a trained run: loss, perplexity, bits a byte or accuracy in detail.",
    define=_define,
    config_class=Experiment,
    run=_run,
)
