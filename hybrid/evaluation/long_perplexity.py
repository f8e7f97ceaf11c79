"""Perplexity on the tokens that need far context: LongPPL, with a second model as the judge.

Most tokens are predicted from near ones, so the plain mean hides what a long context is worth. With
ℓ_long and ℓ_short the judge's losses of a token behind the whole window and behind only
`short_length` tokens, a token at a position of at least `short_length` is a key token if

    ℓ_short − ℓ_long > gain      and      ℓ_long < most_loss

and the figure is exp(mean of the evaluated model's losses on key tokens). Judge and model read
the same tokens; windows of the short context move by `stride`, so each token has at least
`short_length` tokens before it and fewer than `short_length + stride`.

Source: "What is Wrong with Perplexity for Long-context Language Modeling?" (2410.23771), with its
defaults: 4096 tokens, a gain of 2 nats, a loss below 2 nats.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid import origin
from hybrid.config import ConfigError
from hybrid.data import tokenizers
from hybrid.data.cache import Progress
from hybrid.evaluation.config import EvalConfig, LongPerplexityConfig
from hybrid.evaluation.result import Result
from hybrid.evaluation.target import Target, evaluate_target, of_pretrained, of_run

KEY = "eval.long_perplexity.judge"


@dataclasses.dataclass(frozen=True)
class LongPerplexity:
    """The figure beside the plain one, over the same tokens.

    Attributes:
      long_perplexity: on key tokens; None without one.
      perplexity: on all predicted tokens.
      num_key_tokens, num_far_tokens, num_tokens: key tokens, of those at positions of at least
        `short_length`, of all.
    """

    long_perplexity: float | None
    perplexity: float
    num_key_tokens: int
    num_far_tokens: int
    num_tokens: int
    context_length: int
    short_length: int


def evaluate(
    target: Target, make_progress: Callable[[str], Progress] | None = None
) -> LongPerplexity:
    """LongPPL of the target on its text, at the largest of `eval.context_length`.

    Raises: ConfigError for a judge that can't be read, or has another tokenizer; for a context
      that is not longer than the short one; as `evaluate_target`.
    """
    config, keys = target.experiment, target.experiment.eval.long_perplexity
    if config.data.is_task:
        problem = "is set although the data is a task"
        raise ConfigError(KEY, problem, config.data.source, "text")
    longest = max(config.eval.lengths(config.training.context_length))
    if longest <= keys.short_length:
        problem = f"must exceed eval.long_perplexity.short_length ({keys.short_length})"
        raise ConfigError("eval.context_length", problem, longest)
    judge = judge_of(target)
    far = {"context_length": (longest,), "stride": 0}
    near = {"context_length": (keys.short_length + keys.stride,), "stride": keys.stride}
    of_model, full, short = (
        evaluate_target(_with_eval(each, settings), make_progress)
        for each, settings in ((target, far), (judge, far), (judge, near))
    )
    return summarized(of_model, full, short, keys)


def judge_of(target: Target) -> Target:
    """The judge as a target of its own, on the text of `target` and with its `eval.*`.

    Raises: ConfigError for another tokenizer or policy of BOS: it would read other tokens.
    """
    path = target.experiment.eval.long_perplexity.judge
    is_run = origin.find(path, KEY).is_run
    found = of_run(path, "latest", None, {}) if is_run else of_pretrained(path, None, {})
    own, data = found.experiment.data, target.experiment.data
    names = own.tokenizer, data.tokenizer
    if len({tokenizers.load(name).fingerprint for name in names}) > 1:
        raise ConfigError(KEY, "has another tokenizer than the model", path)
    # What decides which tokens count, such as count_eos, is the model's: not as the judge was run.
    of_target = {name: getattr(target.experiment, name) for name in ("data", "training", "eval")}
    config = dataclasses.replace(found.experiment, **of_target)
    return dataclasses.replace(
        found, experiment=config, split=target.split, overrides={}, record=target.record
    )


def _with_eval(target: Target, settings: dict[str, Any]) -> Target:
    keys: EvalConfig = dataclasses.replace(target.experiment.eval, **settings)
    return dataclasses.replace(target, experiment=dataclasses.replace(target.experiment, eval=keys))


def summarized(
    of_model: Result, full: Result, short: Result, keys: LongPerplexityConfig
) -> LongPerplexity:
    """The figure of three results over the same tokens, in the same order.

    Raises: ConfigError where they are of other tokens.
    """
    _check_tokens(of_model, full, short, keys.judge)
    is_far = full.records.position >= keys.short_length
    gain = short.records.nll - full.records.nll
    is_key = is_far & (gain > keys.gain) & (full.records.nll < keys.most_loss)
    losses = of_model.records.nll[is_key].astype(np.float64)
    return LongPerplexity(
        long_perplexity=math.exp(losses.mean()) if len(losses) else None,
        perplexity=of_model.perplexity,
        num_key_tokens=int(is_key.sum()),
        num_far_tokens=int(is_far.sum()),
        num_tokens=of_model.num_tokens,
        context_length=full.context_length,
        short_length=keys.short_length,
    )


def _check_tokens(of_model: Result, full: Result, short: Result, judge: str) -> None:
    """Raises: ConfigError unless all score the same tokens; short windows have other positions."""
    model = of_model.records
    pairs = [(model.position, full.records.position)]
    pairs += [(model.document, each.records.document) for each in (full, short)]
    if not all(np.array_equal(one, other) for one, other in pairs):
        counts = [each.num_tokens for each in (of_model, full, short)]
        problem = "scores other tokens than the model ({:,}, {:,} and {:,})".format(*counts)
        raise ConfigError(KEY, problem, judge, "a judge that reads the same text")


def table(found: LongPerplexity, *, step: int | None, config: str, judge: str) -> str:
    """The figure as lines of text."""
    at = "" if step is None else f"step {step}, "
    value = "no key token" if found.long_perplexity is None else f"{found.long_perplexity:.4f}"
    rows = [
        ("model", f"{at}{config}"),
        ("judge", judge),
        ("LongPPL", value),
        ("perplexity", f"{found.perplexity:.4f}"),
        ("key tokens", f"{found.num_key_tokens:,} of {found.num_far_tokens:,} far ones"),
        ("tokens", f"{found.num_tokens:,}"),
        ("context length", f"{found.context_length} (short: {found.short_length})"),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)
