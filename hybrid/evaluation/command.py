"""The command behind `eval.py`: flags in, the result's table and files out.

Everything that can be wrong is refused before the model is read, and files appear whole or not
at all. Signals stop it at once: there is nothing to save.
Read first: `target.py`, which decides what is scored.
"""

import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.evaluation import long_perplexity, report
from hybrid.evaluation.result import Result
from hybrid.evaluation.target import Target, evaluate_target, of_pretrained, of_run
from hybrid.experiment import Experiment
from hybrid.process import cli, distributed
from hybrid.process.files import output_file, write_json, write_whole
from hybrid.process.remote import AnyPath

SECONDS_BETWEEN_LINES = 5.0


def _run(arguments: cli.Arguments) -> None:
    page = arguments.flags.config
    with distributed.started(experiment.load_distributed(page, arguments.overrides)) as processes:
        _evaluate(arguments, processes.is_first)


def _evaluate(arguments: cli.Arguments, is_first: bool) -> None:
    """Evaluates on all processes; the first one speaks and writes."""
    target = _target(arguments)
    output, per_token = (
        output_file(f"--{name}", arguments.flags[name].value) for name in ("output", "per_token")
    )
    if output is not None and output == per_token:
        raise ConfigError("--per_token", "is the file of --output too", str(per_token))
    keys = target.experiment.eval
    if per_token is not None and (keys.retrieval.tasks or keys.long_perplexity.judge):
        raise ConfigError("--per_token", "is of plain losses alone", str(per_token))
    keys.check_one_measure()
    if keys.retrieval.tasks:
        from hybrid.evaluation.retrieval import command as retrieval  # with what only it needs

        return retrieval.evaluate(target, output)
    if keys.long_perplexity.judge:
        return _evaluate_far(target, output, is_first)
    result = evaluate_target(target, percent_lines if is_first else None)
    if not is_first:
        return
    for warning in warnings(target, result):
        print(f"warning: {warning}", file=sys.stderr)
    step, name = target.step, target.name
    if per_token is not None:
        write_whole(per_token, lambda file: np.save(file, result.per_token))
    if output is not None:
        values = result.to_dict(step=step, config=name) | {"overrides": target.overrides}
        write_json(output, values, allow_nan=False)
    print(report.table(result, step=step, config=name))


def _evaluate_far(target: Target, output: AnyPath | None, is_first: bool) -> None:
    """LongPPL in place of plain losses."""
    found = long_perplexity.evaluate(target, percent_lines if is_first else None)
    if not is_first:
        return
    judge = target.experiment.eval.long_perplexity.judge
    about: dict[str, Any] = {"step": target.step, "config": target.name, "judge": judge}
    if output is not None:
        values = dataclasses.asdict(found) | about | {"overrides": target.overrides}
        write_json(output, values, allow_nan=False)
    print(long_perplexity.table(found, **about))


def _target(arguments: cli.Arguments) -> Target:
    page, folder = arguments.flags.config, arguments.flags.pretrained
    if not folder:
        workdir, which = arguments.require("workdir"), arguments.flags.checkpoint
        return of_run(workdir, which, page, arguments.overrides)
    if arguments.flags.workdir:
        raise ConfigError("--pretrained", "stands in place of --workdir", folder, "one of them")
    return of_pretrained(folder, page, arguments.overrides)


def warnings(target: Target, result: Result) -> list[str]:
    """What makes the loss of a pretrained model doubtful, a line each."""
    if target.step is not None:
        return []
    from hybrid import pretrained

    lines = list(pretrained.raw_text_warning(target.origin.path))
    first = float(np.mean(result.per_token[: result.context_length]))
    chance = math.log(target.experiment.model.vocab_size)
    if first > chance:
        lines.append(
            f"the first window's loss, {first:.2f}, is above chance ({chance:.2f}): "
            "is this the tokenizer, and data.bos the policy, of the model?"
        )
    return lines


def percent_lines(name: str) -> Callable[[int, int], None]:
    """A function of (done, total) that writes `NAME: 40 %` every few seconds."""
    last = time.monotonic()

    def write(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{name}: {100 * done // total} %", file=sys.stderr, flush=True)

    return write


COMMAND = cli.Command(
    name="python eval.py",
    doc="""
    Evaluates a trained run or a Hugging Face folder: loss, perplexity, bits a byte or accuracy, in
    detail.
    """,
    flags={
        "config": ("config page whose eval.* keys are used; default: the run's own", pathlib.Path),
        "workdir": ("folder of the run to evaluate", cli.AnyPath),
        "checkpoint": ("latest, best (by eval/loss) or a step", "latest"),
        "pretrained": ("a Hugging Face folder (Gemma 2, 3, 4) in place of a workdir", pathlib.Path),
        "output": ("write the result to this JSON file", cli.AnyPath),
        "per_token": ("write the nats of every predicted token to this .npy file", cli.AnyPath),
    },
    config_class=Experiment,
    run=_run,
)
