"""What `eval.py` evaluates: a run or a Hugging Face folder, and which of all configs count.

Of a run, model, tokenizer, text and BOS policy are its own; a page gives `eval.*`. Of a Hugging
Face folder, model, tokenizer and BOS policy are the folder's and the page gives the rest.
Overrides change either, the text included, as far as the parameters still fit.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from hybrid import config as config_lib
from hybrid import experiment, model, origin
from hybrid.config import ConfigError
from hybrid.data import cache, pipeline, sources
from hybrid.data.config import FIELDS, WITH_FIELDS, WITHOUT_PATHS
from hybrid.data.mixed import MixedDocuments, errors_of
from hybrid.data.placement import place_whole
from hybrid.data.tasks import TASKS, Examples
from hybrid.evaluation import held_out
from hybrid.evaluation.result import Result
from hybrid.experiment import Experiment
from hybrid.loading import initial
from hybrid.loading.conversion import shapes
from hybrid.origin import Origin
from hybrid.pages import load_page
from hybrid.process import compiler
from hybrid.sharding import make_mesh, num_batch_parts
from hybrid.workdir import checkpoint, provenance

ONE_TEXT, MIXTURE = ("data.source", "data.paths"), "data.mixture"
TEXT_KEYS = (*ONE_TEXT, MIXTURE)
FIXED_KEYS = ("model.pattern", "model.last_layer", "data.eval_fraction")
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A model to evaluate and the config to evaluate it under.

    Attributes:
      experiment: the config that counts.
      origin: the folder of the parameters.
      step: of a run's checkpoint; None for a Hugging Face folder.
      name: the config's, for the result.
      split: `eval`, what the run held out, or `all` of the text.
      overrides: as values, by dotted key.
      record: of a run's checkpoint, which says what it was trained on.
    """

    experiment: Experiment
    origin: Origin
    step: int | None
    name: str
    split: str = "eval"
    overrides: Values = dataclasses.field(default_factory=dict)
    record: Values = dataclasses.field(default_factory=dict)

    def read_params(self, mesh: jax.sharding.Mesh) -> model.Params:
        """The parameters, each where the mesh has it; a folder's in the compute dtype."""
        config = self.experiment.model
        if self.step is None:
            return initial.read_params(self.origin, config, mesh, dtype=config.dtype)
        return initial.read_params(self.origin, config, mesh, which=self.step)


def evaluate_target(
    target: Target, make_progress: Callable[[str], cache.Progress] | None = None
) -> Result:
    """The result of the target on its text or task, on all devices.

    `make_progress(name)` makes what is called with (done, total) while tokenizing and evaluating.
    """
    with compiler.programs_kept(target.experiment.compilation_cache):
        return _evaluate(target, make_progress)


def _evaluate(target: Target, make_progress: Callable[[str], cache.Progress] | None) -> Result:
    config, mesh = target.experiment, make_mesh(target.experiment.mesh)
    config.check_context(mesh)
    flags = config.xla.flags(mesh.devices.flat[0].platform)
    compiler.check_flags(flags, mesh.local_devices[0])
    documents = open_text(target, make_progress("tokenizing") if make_progress else None)
    if make_progress:
        kind = "task" if config.data.is_task else "text"
        print(f"{kind}: {documents.description}", file=sys.stderr)
    with jax.set_mesh(mesh):
        result = held_out.evaluate(
            config.model,
            target.read_params(mesh),
            documents,
            config.eval,
            context_length=config.training.context_length,
            place=lambda batch: place_whole(batch, mesh),
            batch_multiple=num_batch_parts(mesh),
            inference=config.inference,
            flags=flags,
            progress=make_progress("evaluating") if make_progress else lambda done, total: None,
        )
    assert result is not None, "nothing stops it"
    return result


def open_text(
    target: Target, progress: cache.Progress | None = None
) -> pipeline.EvalDocuments | MixedDocuments | Examples:
    """What the target is scored on; a run's own text is parted as it was in training.

    Raises: ConfigError for a text or tokenizer that can't be used, also because what the run
      held out can no longer be told from what it was trained on. Other differences are warned of.
    """
    config, below = target.experiment, _held_out_below(target.record)
    held_out = pipeline.open_held_out(
        config.data,
        vocab_size=config.model.vocab_size,
        context_length=max(config.eval.lengths(config.training.context_length)),
        split=target.split,
        held_out_below=below if target.split == "eval" else None,
        progress=progress,
    )
    if not isinstance(held_out, MixedDocuments):
        _check_text(target, held_out.identity)
        return held_out
    of_sources = target.record.get("by_source", {})
    for index, (name, part) in enumerate(held_out.by_source.items()):
        alone = dataclasses.replace(config, data=config.data.parts[index])
        one = dataclasses.replace(target, experiment=alone, record=of_sources.get(name, {}))
        with errors_of(index):
            _check_text(one, part.identity)
    return held_out


def _held_out_below(record: Values) -> bytes | dict[str, bytes | None] | None:
    """The hash that parts a run's documents, of a mixture those of its sources by name."""
    if "by_source" not in record:
        below = record.get("held_out_below")
        return bytes.fromhex(below) if below else None
    return {
        name: bytes.fromhex(own["held_out_below"]) if own.get("held_out_below") else None
        for name, own in record["by_source"].items()
    }


def _check_text(target: Target, identity: Values) -> None:
    """Raises: ConfigError as `open_text` for one text."""
    config, record = target.experiment, target.record
    below = record.get("held_out_below") if target.split == "eval" else None
    changes = provenance.changed_fingerprints(record, identity)
    if "data.tokenizer" not in target.overrides and "tokenizer_fingerprint" in changes:
        was, got = changes["tokenizer_fingerprint"]
        problem = "is not the tokenizer that the run was trained with"
        raise ConfigError("data.tokenizer", problem, f"fingerprint {got}", f"it had {was}")
    is_own = target.split == "eval" and "data.eval_paths" not in target.overrides
    if is_own and "held_out_fingerprint" in changes:
        was, got = changes["held_out_fingerprint"]
        problem = "the held-out text is another than the run's"
        if not below and not config.data.eval_paths:
            key = "data.paths" if config.data.paths else "data.source"
            raise ConfigError(key, problem, f"fingerprint {got}", f"it had {was}")
        line = f"warning: {problem}: fingerprint {got}, was {was}; nothing of it was trained on"
        print(line if below else line.partition(";")[0], file=sys.stderr)


# --- Which config counts ---------------------------------------------------------------------


def of_run(workdir: str, which: str, page: str | None, texts: Mapping[str, str]) -> Target:
    """The run in `workdir`, at checkpoint `which`.

    Raises: ConfigError for a folder that is no workdir, a checkpoint that isn't there, a wrong
      page or override, and an override that trained parameters don't fit.
    """
    source = origin.find(workdir, "--workdir")
    folder = source.path
    if source.run is None:
        problem = "is a Hugging Face folder"
        raise ConfigError("--workdir", problem, workdir, "--pretrained reads it")
    # Devices, flags and caches are those that are here, whatever the run had.
    values = {**source.run, "mesh": {}, "compilation_cache": {}, "xla": {}}
    if page is not None:
        of_page = config_lib.to_dict(experiment.from_config(load_page(page)))
        values |= {name: of_page[name] for name in ("eval", "compilation_cache", "xla")}
    overrides = config_lib.parse_overrides(Experiment, texts)
    config = changed(values, overrides)
    step, name = checkpoint.find_step(folder, which), page or str(folder / provenance.CONFIG)
    record = checkpoint.read_record(folder, step)
    # Text named on the command line is scored whole; the run's own has a held-out part.
    is_own = not any(key in overrides for key in TEXT_KEYS)
    if not is_own and not origin.leads_somewhere(source.run, "data.paths"):
        is_own = _is_corpus_of(record, config)  # at a new place
    if overrides.get("init_from"):
        source = dataclasses.replace(
            source, run=config_lib.updated(source.run, {"init_from": overrides["init_from"]})
        )
    split = "eval" if is_own else "all"
    return Target(config, source, step, name, split, overrides, record)


def _is_corpus_of(record: Values, config: Experiment) -> bool:
    """Whether the text of a config is, by content, the one that a run's checkpoint names."""
    if config.data.is_task or not record.get("corpus_fingerprint"):
        return False
    return sources.documents(config.data, "all").corpus == record["corpus_fingerprint"]


def of_pretrained(folder: str, page: str | None, texts: Mapping[str, str]) -> Target:
    """The Hugging Face folder `folder`, scored on all of the text.

    Raises: ConfigError as `of_run`.
    """
    source = origin.find(folder, "--pretrained")
    if source.is_run:
        raise ConfigError("--pretrained", "is a run's workdir", folder, "--workdir reads it")
    of_page = load_page(page) if page else {}
    overrides = config_lib.parse_overrides(Experiment, texts)
    own = {**of_page, "init_from": "", "inherit_model": False}
    values = origin.inherit(own, source)
    return Target(changed(values, overrides), source, None, page or folder, "all", overrides)


def changed(values: Values, overrides: Values) -> Experiment:
    """The experiment of `values` with `overrides`.  Raises: ConfigError where they don't fit."""
    trained = experiment.from_config(values)
    check_fixed(trained, overrides)
    if any(name in overrides for name in ONE_TEXT):
        values = config_lib.updated(values, {MIXTURE: (), "data.mixture_schedule": ()})
    if MIXTURE in overrides:
        one = {"data.source": "stdlib", "data.paths": (), "data.eval_paths": ()}
        values = config_lib.updated(values, {**one, "data.mixture_schedule": ()})
    if overrides.get("data.source") in WITHOUT_PATHS:  # the run's paths are of another source
        values = config_lib.updated(values, {"data.paths": (), "data.eval_paths": ()})
    if overrides.get("data.source", WITH_FIELDS[0]) not in WITH_FIELDS:
        values = config_lib.updated(values, {f"data.{name}": "" for name in FIELDS})
    if overrides.get("data.source") in TASKS:  # which have no BOS
        values = config_lib.updated(values, {"data.bos": "auto"})
    config = experiment.from_config(config_lib.updated(values, overrides))
    check_shapes(trained, config, overrides)
    return config


def check_fixed(trained: Experiment, overrides: Values) -> None:
    """Raises: ConfigError for an override of what training has decided: layers, and the split."""
    of_run = config_lib.flatten(config_lib.to_dict(trained))
    for name in FIXED_KEYS:
        has = of_run[name]
        if overrides.get(name, has) != has:
            accepted = f"the model has {has}"
            raise ConfigError(name, "can't change in a trained model", overrides[name], accepted)


def check_shapes(trained: Experiment, config: Experiment, overrides: Values) -> None:
    """Raises: ConfigError naming the override under which the parameters would not fit."""
    if shapes(trained.model) == shapes(config.model):
        return
    problem = "changes the shapes of the trained parameters"
    names = [name for name in overrides if name.startswith("model.")]
    for name in names:
        alone = config_lib.updated(config_lib.to_dict(trained), {name: overrides[name]})
        if shapes(experiment.from_config(alone).model) != shapes(trained.model):
            has = config_lib.flatten(config_lib.to_dict(trained))[name]
            raise ConfigError(name, problem, overrides[name], f"the model has {has}")
    raise ConfigError(names[0], problem, overrides[names[0]])
