"""The command behind `python -m hybrid.lm_eval`: tasks in, the library's table and results out.

The library is imported when there is work for it, and what can be wrong is refused before the model
is read, the tasks' own files included.
"""

import importlib.util
import pathlib
from typing import Any

from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.generate.flags import MODEL_FLAGS, GenerateConfig, check_one_folder, model_of_flags
from hybrid.process import cli, compiler, distributed
from hybrid.process.files import output_file, write_json

_FLAGS = ("batch_size", "max_length", "max_gen_toks", "seed", "workdir")
_FLAG_OF = {name: f"--{name}" for name in _FLAGS} | {"bos": "data.bos"}


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("lm_eval", arguments.overrides)
    parsed = config_lib.parse_overrides(GenerateConfig, arguments.overrides)
    given = config_lib.build(GenerateConfig, config_lib.updated({}, parsed))
    names, flags = config_lib.split_list(arguments.require("tasks")), arguments.flags
    output = output_file("--output", flags.output)
    _check(flags)
    if importlib.util.find_spec("lm_eval") is None:
        remedy = "pip install 'hybrid-attention[lm_eval]'"
        raise ConfigError("lm_eval", "the library is not installed", accepted=remedy)
    from lm_eval.utils import handle_non_serializable

    from hybrid.lm_eval import tasks

    found = tasks.Tasks(names, flags.include_path)
    with compiler.programs_kept(given.compilation_cache), cli.errors_by_flag(_FLAG_OF):
        results = tasks.evaluate(found, _model(flags, parsed), flags.num_fewshot, flags.limit)
    if output is not None:
        write_json(output, results, default=handle_non_serializable)
    print(tasks.tables(results))


def _check(flags: Any) -> None:
    """Raises: ConfigError for a flag out of range or a folder that isn't there."""
    check_one_folder(flags)
    if flags.limit is not None and flags.limit <= 0:
        raise ConfigError("--limit", "must be above 0", flags.limit)
    if flags.num_fewshot is not None and flags.num_fewshot < 0:
        raise ConfigError("--num_fewshot", "must be at least 0", flags.num_fewshot)
    if flags.include_path and not pathlib.Path(flags.include_path).is_dir():
        raise ConfigError("--include_path", "no such folder", flags.include_path)


def _model(flags: Any, parsed: dict[str, Any]) -> Any:
    """The `HybridLM` of the flags, under the run's own keys and those of the command line."""
    from hybrid.lm_eval.model import HybridLM

    model = model_of_flags(flags)
    of_run = {"inference": (model.origin.run or {}).get("inference", {})}
    settings = config_lib.build(GenerateConfig, config_lib.updated(of_run, parsed))
    return HybridLM(
        model,
        tokenizer=settings.data.tokenizer,
        bos=settings.data.bos,
        batch_size=flags.batch_size,
        max_length=flags.max_length,
        max_gen_toks=flags.max_gen_toks,
        seed=flags.seed,
        inference=settings.inference,
    )


COMMAND = cli.Command(
    name="python -m hybrid.lm_eval",
    doc=(
        "Runs tasks of lm-evaluation-harness on a run or a Hugging Face folder. With "
        "data.bos=window BOS also stands before what is left of a text that was too long."
    ),
    flags={
        **MODEL_FLAGS,
        "tasks": ("names of tasks, groups or tags, or YAML files, with commas between", str),
        "include_path": ("a folder of further tasks", pathlib.Path),
        "num_fewshot": ("examples before each question; without it as each task says", int),
        "limit": ("questions of each task, or the part of them if below 1", float),
        "batch_size": ("rows of a batch; 0: by length", 0),
        "max_length": (
            "tokens that are read at most; 0: what the folder was made for, or the run trained on",
            0,
        ),
        "max_gen_toks": ("new tokens where a task names no limit", 256),
        "seed": ("of draws", 0),
        "output": ("a JSON file to write the results to", cli.AnyPath),
    },
    config_class=GenerateConfig,
    run=_run,
)
