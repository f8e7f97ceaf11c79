"""The one entry of the evaluation: what is held out, text or a task, at each context length.

Read first: `perplexity.py` and `recall.py`, which score the one and the other at one length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.data.pipeline import EvalDocuments
from hybrid.data.tasks import Examples
from hybrid.evaluation import perplexity, recall, scoring
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.result import Result
from hybrid.inference.config import InferenceConfig
from hybrid.inference.scoring import through_cache
from hybrid.model.config import ModelConfig


def evaluate(
    model_config: ModelConfig,
    params: Any,
    held_out: EvalDocuments | Examples,
    eval_config: EvalConfig,
    *,
    context_length: int,
    put: Callable[[Batch], Batch] = jax.device_put,
    batch_multiple: int = 1,
    inference: InferenceConfig | None = None,
    score_fn: scoring.ScoreFn | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result | None:
    """Scores `held_out` at each context length of `eval_config`.

    Args:
      params: as `model.init` gives them, on the devices.
      context_length: training's, which stands for a 0 in `eval.context_length`.
      put: places a Batch of numpy arrays on the devices (rows over data and fsdp on a mesh).
      batch_multiple: what the rows of a batch must be a multiple of.
      inference: how caches are kept, for `eval.mode=cached`; None: the defaults.
      score_fn: (params, batch) -> what by default `model.token_nll` gives of text, and
        `model.token_scores` of a task, under jit.
      should_stop: asked before each batch; a True ends the evaluation without a result.
      progress: called with (batches done, batches in all) of each length.
    Returns: the result of the largest context length, with the others in `by_context`; None if
      it was stopped.
    Raises: ConfigError for a stride or task that doesn't fit, or text without a token to predict.
    """
    is_task = isinstance(held_out, Examples)
    if score_fn is not None:
        of_batch = lambda batch: score_fn(params, batch)  # noqa: E731
    else:
        scores = model.token_scores if is_task else model.token_nll
        if eval_config.mode == "cached":
            of_stream = model.stream_scores if is_task else model.stream_nll
            scores = through_cache(of_stream, inference or InferenceConfig())
        of_batch = scoring.of_model(scores, model_config, params)
    scorer = scoring.Scorer(of_batch, put, batch_multiple, should_stop, progress)
    at_length: Callable[..., Result] = recall.score if is_task else perplexity.score
    lengths = eval_config.lengths(context_length)
    try:
        results = {
            length: at_length(scorer, held_out, eval_config, length)
            for length in dict.fromkeys(lengths)
        }
    except scoring.Stopped:
        return None
    largest = results[max(lengths)]
    if len(lengths) == 1:
        return largest
    return dataclasses.replace(largest, by_context=tuple(results[length] for length in lengths))


def all_scores(result: Result) -> dict[int, Any]:
    """The raw rows of every context length of a result, as `scores.save_scores` takes them."""
    return {one.context_length: one.scores for one in result.at_lengths}
