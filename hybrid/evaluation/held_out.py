"""The one entry of the evaluation: what is held out, text or a task, at each context length.

Read first: `perplexity.py` and `recall.py`, which score the one and the other at one length, and
`by_source.py` for the texts of a mixture.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.data.mixed import MixedDocuments
from hybrid.data.pipeline import EvalDocuments
from hybrid.data.tasks import Examples
from hybrid.evaluation import by_source, perplexity, recall
from hybrid.evaluation.batches import BatchScorer, Stopped, jitted
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.result import Result
from hybrid.inference.config import InferenceConfig
from hybrid.inference.scoring import through_cache
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores


def evaluate(
    model_config: ModelConfig,
    params: Any,
    held_out: EvalDocuments | MixedDocuments | Examples,
    eval_config: EvalConfig,
    *,
    context_length: int,
    place: Callable[[Batch], Batch] = jax.device_put,
    batch_multiple: int = 1,
    inference: InferenceConfig | None = None,
    flags: tuple[str, ...] = (),
    score_fn: Callable[[Any, Batch], TokenScores] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result | None:
    """Scores `held_out` at each context length of `eval_config`.

    Args:
      params: as `model.init` gives them, on the devices.
      context_length: training's, which stands for a 0 in `eval.context_length`.
      place: puts a Batch of numpy arrays on the devices (rows over data and fsdp on a mesh).
      batch_multiple: what the rows of a batch must be a multiple of.
      inference: how caches are kept, for `eval.mode=cached`; None: the defaults.
      flags: of the compiler, `NAME=VALUE`.
      score_fn: (params, batch) -> TokenScores; None: `model.score` under jit, `with_top` of a task.
      should_stop: called before each batch; True ends the evaluation without a result.
      progress: called with (batches done, batches in all) of each length.
    Returns: the result of the largest context length, with the others in `by_context`; None if
      it was stopped.
    Raises: ConfigError for a stride or task that doesn't fit, or text without a token to predict.
    """
    is_task = isinstance(held_out, Examples)
    score: Callable[[Batch], TokenScores]
    if score_fn is not None:
        score = functools.partial(score_fn, params)
    else:
        forward: Callable[..., TokenScores] = model.score
        if eval_config.mode == "cached":
            forward = through_cache(model.score_hidden, inference or InferenceConfig())
        score = jitted(forward, model_config, params, with_top=is_task, flags=flags)
    scorer = BatchScorer(score, place, batch_multiple, should_stop, progress)
    at_length: Callable[..., Result] = recall.evaluate if is_task else perplexity.evaluate
    if isinstance(held_out, MixedDocuments):
        at_length = by_source.evaluate
    lengths = eval_config.lengths(context_length)
    try:
        results = {
            length: at_length(scorer, held_out, eval_config, length)
            for length in dict.fromkeys(lengths)
        }
    except Stopped:
        return None
    largest = results[max(lengths)]
    if len(lengths) == 1:
        return largest
    return dataclasses.replace(largest, by_context=tuple(results[length] for length in lengths))
