"""What `same_numbers` has both versions do: commands that a user could type, task by task.

A command is the words behind `python`. In them `{here}` stands for the task's own folder, `{side}`
for the folder of all tasks of a version, `{old}` for that of the old one, and `{half}` for a run
that the old version was stopped in, which both go on with.
"""

import dataclasses

SAMPLE = "class Example:\n    def close(self):\n"


@dataclasses.dataclass(frozen=True)
class Task:
    """Commands of one task.

    Attributes:
      steps: name -> words, in order; NAME.txt keeps what a step prints.
      needs: another task whose files these commands read.
      half: words of the run that the old version is stopped in; `{here}/run` begins as a copy.
    """

    steps: dict[str, tuple[str, ...]]
    needs: str = ""
    half: tuple[str, ...] = ()


def train(page: str, *keys: str, folder: str = "{here}", tokens: str = "{here}") -> tuple[str, ...]:
    """A training run in `folder`/run, every step logged, its token cache in `tokens`/tokens."""
    return (
        *("train.py", f"--config=configs/{page}", f"--workdir={folder}/run"),
        f"--config.data.cache_dir={tokens}/tokens",
        "--config.training.log_every=1",
        *(f"--config.{key}" for key in keys),
    )


def evaluate(name: str, *keys: str, run: str = "{here}/run") -> tuple[str, ...]:
    """An evaluation of `run` with its numbers in NAME.json and NAME.npy."""
    files = f"--output={{here}}/{name}.json", f"--per_token={{here}}/{name}.npy"
    return ("eval.py", f"--workdir={run}", *files, *(f"--config.{key}" for key in keys))


def generate(prompt: str, *words: str) -> tuple[str, ...]:
    """Text from the demo's run."""
    return ("-m", "hybrid.generate", "--workdir={side}/demo/run", f"--prompt={prompt}", *words)


SHORT = (
    "training.num_steps=20",
    "eval.every_steps=10",
    "eval.max_tokens=16384",
    "training.tensorboard=false",
)
RECALL = (
    *("model.pattern=LLLG", "model.num_layers=4", "model.window_size=16", "training.batch_size=64"),
    *("training.num_steps=40", "eval.every_steps=20"),
)
MQAR = ("data.source=mqar", "model.vocab_size=256", "training.context_length=64")
NEEDLE = (
    *("data.source=needle", "model.vocab_size=64", "training.context_length=128"),
    *("data.needle.distances=4,12,24,60,120", "data.needle.num_eval_examples=500"),
    *("model.unified_kv=false", "model.num_kv_heads=4", "model.global_head_dim=0"),
    *("optimizer.name=adafactor", "optimizer.schedule=wsd", "training.z_loss=0.0001"),
)
EXPERTS = (
    *("model.num_experts=8", "model.num_active_experts=2", "model.expert_dim=64"),
    *("training.load_balance_loss=0.01", "training.router_z_loss=0.001"),
    "training.num_microbatches=2",
)
SHARED = (
    *("model.pattern=LG", "model.num_layers=4", "model.num_kv_shared_layers=2"),
    *("model.kv_shared_ffn_dim=256", "model.layer_embedding_dim=8", "model.num_global_kv_heads=2"),
    *("model.attention_sinks=true", "model.attention_softcap=50", "model.layer_scalar=trained"),
    *("model.remat=full", "optimizer.name=muon", "training.num_steps=10", "eval.every_steps=5"),
)
LORA = (
    *("training.context_length=128", "training.num_steps=10", "training.tensorboard=false"),
    *("eval.every_steps=5", "eval.max_tokens=16384"),
)
LONGER = ("training.num_steps=60", "eval.every_steps=10", "checkpoint.every_steps=20")


def resume(page: str, *keys: str, needs: str = "") -> Task:
    """The old version's run, stopped half-way: scored as it is, finished, and scored again."""
    keys = (*keys, *LONGER)
    return Task(
        {
            "half": evaluate("half", run="{half}/run"),
            "train": train(page, *keys, tokens="{half}"),
            "eval": evaluate("eval"),
        },
        needs=needs,
        half=train(page, *keys, folder="{half}", tokens="{half}"),
    )


TASKS = {
    "demo": Task(
        {
            "train": train("tiny.py"),
            "eval": evaluate("eval", "eval.context_length=128,256"),
            "cached": evaluate("cached", "eval.mode=cached"),
            "int8": evaluate("int8", "eval.mode=cached", "inference.cache_dtype=int8"),
        }
    ),
    "generate": Task(
        {
            "greedy": generate(SAMPLE, "--max_new_tokens=400"),
            "drawn": generate("def ", "--temperature=0.8", "--top_p=0.95", "--seed=7"),
            "rotated": generate(SAMPLE, "--config.inference.unified_cache=value_and_rotated"),
            "scanned": generate(SAMPLE, "--config.inference.layers=scan"),
        },
        needs="demo",
    ),
    "mqar": Task({"train": train("micro.py", *SHORT, *RECALL, *MQAR), "eval": evaluate("eval")}),
    "needle": Task(
        {"train": train("micro.py", *SHORT, *RECALL, *NEEDLE), "eval": evaluate("eval")}
    ),
    "experts": Task({"train": train("micro.py", *SHORT, *EXPERTS), "eval": evaluate("eval")}),
    "shared": Task(
        {
            "train": train("micro.py", *SHORT, *SHARED),
            "eval": evaluate("eval"),
            "cached": evaluate("cached", "eval.mode=cached"),
        }
    ),
    "lora": Task(
        {
            "train": train("finetune.py:lora", "init_from={side}/demo/run", *LORA),
            "eval": evaluate("eval"),
        },
        needs="demo",
    ),
    "resume": resume("micro.py", *SHORT),
    "resume_lora": resume("finetune.py:lora", "init_from={old}/demo/run", *LORA, needs="demo"),
}


def with_needed(names: list[str]) -> list[str]:
    """`names` and the tasks whose files theirs read, in order."""
    wanted = {*names, *(TASKS[name].needs for name in names)}
    return [name for name in TASKS if name in wanted]
