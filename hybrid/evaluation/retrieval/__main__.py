"""`python -m hybrid.evaluation.retrieval`: a benchmark's prompts with their answers, to train on.

Rows of `prompt` and `completion`, which `data.source=jsonl` with `data.prompt_field=prompt` reads:
only answers are predicted. Lengths count what may be generated, which answers seldom exceed (five
names of `vt` do, as bytes), so rows of a little more than that length hold a sample each
uncut, packed by `document` or `best_fit`.
"""

import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.evaluation.config import RULER
from hybrid.evaluation.retrieval.benchmark import CHAT_KEY, Benchmark, benchmark
from hybrid.experiment import Experiment
from hybrid.process import cli, distributed
from hybrid.process.files import output_file, write_whole

_TASKS = "eval.retrieval.tasks"


def rows(asked: Benchmark) -> Iterator[dict[str, str]]:
    """Every prompt of a benchmark with a right reply, the groups in turn: one of each, then one."""
    most = max(group.count for group in asked.groups)
    for index, group in itertools.product(range(most), asked.groups):
        if index < group.count:
            made = group.make(index)
            yield {"prompt": made.text, "completion": made.answer}


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("retrieval", arguments.overrides)
    loaded = experiment.load(arguments.require("config"), arguments.overrides)
    output = output_file("--output", arguments.require("output"))
    assert output is not None
    retrieval = loaded.eval.retrieval
    if not retrieval.tasks:
        raise ConfigError(_TASKS, "is empty", (), f"tasks of text, say {RULER[0]}")
    if "needle_keys" in retrieval.tasks:
        problem = "has no text: data.source=needle trains on it"
        raise ConfigError(_TASKS, problem, "needle_keys")
    if retrieval.chat_template:
        raise ConfigError(CHAT_KEY, "is of evaluations; rows are plain text", True, "false")
    asked = benchmark(loaded)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(asked))
    write_whole(output, lambda file: file.writelines(line.encode() for line in lines))
    tasks = ", ".join(asked.tasks)
    print(f"written: {output}: {asked.num_samples:,} rows, {tasks}")
    print(f"evaluations of eval.retrieval.seed={retrieval.seed} ask the same: take another there")


COMMAND = cli.Command(
    name="python -m hybrid.evaluation.retrieval",
    doc="""
Writes the prompts of a config's eval.retrieval.* with their answers as JSON lines, to train on.
""",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "output": ("JSON lines to write, with the fields prompt and completion", cli.AnyPath),
    },
    config_class=Experiment,
    run=_run,
)

main = functools.partial(cli.main, COMMAND)

if __name__ == "__main__":
    sys.exit(main())
