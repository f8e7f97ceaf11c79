"""`python eval.py`: the loss of a trained run on text, every token counted once.

Model, tokenizer, text and BOS policy are the run's own, from its `config.json`; `eval.*` comes from
the page where one is given; overrides change either, the text included.
"""

import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from hybrid import cli, experiment, model
from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.evaluation import perplexity, report
from hybrid.experiment import Experiment
from hybrid.sharding import batch_sharding, make_mesh, shardings
from hybrid.training import checkpoint, provenance, signals
from hybrid.training.metrics import write_atomically
from hybrid.training.progress import Progress

TEXT_KEYS = ("data.source", "data.paths")
SHAPE_KEYS = ("model.pattern", "model.last_layer")


def _define(values: flags.FlagValues) -> None:
    def text(name: str, doc: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, doc, flag_values=values)

    text("config", "config page whose eval.* keys are used; default: the run's own")
    text("workdir", "folder of the run to evaluate")
    text("checkpoint", "latest, best or a step", "latest")
    text("pretrained", "a Hugging Face folder in place of a workdir (not built yet)")
    text("output", "write the result to this JSON file")
    text("per_token", "write the nats of every predicted token to this .npy file")


def _run(arguments: cli.Arguments) -> None:
    with signals.caught():
        if arguments.flags.pretrained:
            raise ConfigError("--pretrained", "is not built yet", arguments.flags.pretrained)
        workdir = pathlib.Path(arguments.require("workdir"))
        page = arguments.flags.config
        config, overrides = resolve(workdir, page, arguments.overrides)
        step = checkpoint.find_step(workdir, arguments.flags.checkpoint)
        outputs = [_output(arguments, name) for name in ("output", "per_token")]
        result = evaluate(config, overrides, workdir, step)
        name = page or str(workdir / provenance.CONFIG)
        values = result.to_dict() | {"step": step, "config": name, "overrides": overrides}
        _write(outputs, values, result.per_token)
        print(report.table(result, step=step, config=name))


def resolve(
    workdir: pathlib.Path, page: str | None, texts: dict[str, str]
) -> tuple[Experiment, dict[str, Any]]:
    """The config to evaluate under, and the overrides as values.  Raises: ConfigError."""
    values = provenance.read_config(workdir)
    trained = experiment.from_config(_on_this_machine(values))
    if page is not None:
        of_page = experiment.to_dict(experiment.from_config(config_lib.load_page(page)))
        values = values | {"eval": of_page["eval"]}
    overrides = config_lib.parse_overrides(Experiment, texts)
    config = experiment.from_config(config_lib.updated(_on_this_machine(values), overrides))
    for name in SHAPE_KEYS:
        if name in overrides and overrides[name] != getattr(trained.model, name.split(".")[1]):
            raise ConfigError(name, "can't change for a trained model", overrides[name])
    _check_shapes(trained, config, overrides)
    return config, overrides


def _on_this_machine(values: dict[str, Any]) -> dict[str, Any]:
    """A run's config with the default mesh: it is evaluated on the devices that are here."""
    return values | {"mesh": {}}


def _check_shapes(trained: Experiment, config: Experiment, overrides: dict[str, Any]) -> None:
    """Raises: ConfigError naming the override under which the parameters would not fit."""
    if _shapes(trained) == _shapes(config):
        return
    for name in (name for name in overrides if name.startswith("model.")):
        alone = config_lib.updated(experiment.to_dict(trained), {name: overrides[name]})
        if _shapes(experiment.from_config(alone)) != _shapes(trained):
            raise ConfigError(name, "changes the shapes of the trained parameters", overrides[name])
    names = ", ".join(name for name in overrides if name.startswith("model."))
    raise ConfigError(names, "change the shapes of the trained parameters together")


def _shapes(config: Experiment) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, model.abstract(config.model))


def _output(arguments: cli.Arguments, name: str) -> pathlib.Path | None:
    value = arguments.flags[name].value
    if not value:
        return None
    path = pathlib.Path(value)
    if not path.parent.is_dir():
        raise ConfigError(f"--{name}", "its folder does not exist", value)
    if path.is_dir():
        raise ConfigError(f"--{name}", "is a folder", value)
    return path


def evaluate(
    config: Experiment, overrides: dict[str, Any], workdir: pathlib.Path, step: int
) -> perplexity.Result:
    """Scores the checkpoint of `step` on the text of `config`."""
    # Text named on the command line is evaluated whole; the run's own has a held-out part.
    split = "all" if any(name in overrides for name in TEXT_KEYS) else "eval"
    vocab_size = config.model.vocab_size
    documents = pipeline.eval_documents(config.data, vocab_size=vocab_size, split=split)
    mesh = make_mesh(config.mesh)
    progress = Progress(0)
    progress.say(f"text: {documents.description}")
    with jax.set_mesh(mesh):
        result = perplexity.evaluate(
            config.model,
            _params(config, workdir, step, mesh),
            documents,
            config.eval,
            context_length=config.training.context_length,
            put=lambda batch: jax.device_put(batch, batch_sharding(mesh)),
            batch_multiple=mesh.shape["data"] * mesh.shape["fsdp"],
            progress=lambda done, total: progress.part("evaluating", done, total),
        )
    if result is None:
        raise RuntimeError("the evaluation was stopped")
    return result


def _params(config: Experiment, workdir: pathlib.Path, step: int, mesh: jax.sharding.Mesh) -> Any:
    shapes = model.abstract(config.model)
    places = shardings(mesh, model.logical_axes(config.model), shapes)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    start = time.perf_counter()
    params, _ = checkpoint.restore_params(workdir, str(step), abstract)
    Progress(0).say(f"step {step} of {workdir} read in {time.perf_counter() - start:.1f} s")
    return params


def _write(outputs, values: dict[str, Any], per_token: np.ndarray) -> None:
    output, per_token_path = outputs
    if per_token_path is not None:
        with open(per_token_path, "wb") as file:
            np.save(file, per_token)
    if output is not None:
        write_atomically(output, json.dumps(values, indent=2) + "\n")


COMMAND = cli.Command(
    name="python eval.py",
    doc="Evaluates a trained run: loss, perplexity and bits a byte, by position and context.",
    define=_define,
    config_class=Experiment,
    run=_run,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.main(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
