"""Loss, perplexity and bits a byte of a model on documents, every token counted once.

`windows.py` plans what is scored where; here the model scores batch after batch and the host
adds up, in float64 and in input order, so the result depends on neither packing nor batches:

    loss           Σ nll / predicted tokens                    (nats)
    perplexity     exp(loss)
    bits_per_byte  Σ nll / ln 2 / bytes of the predicted tokens
    by_position    the same loss by how many inputs of its window precede the one that predicts
                   the token, in buckets [0, 1), [1, 2), [2, 4), [4, 8), …: a model that uses
                   far context keeps falling beyond the reach of its local windows

Pure of files. The training loop and `eval.py` call `evaluate`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid import model
from hybrid.config import ConfigError
from hybrid.data.batch import Batch
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import windows
from hybrid.evaluation.config import EvalConfig
from hybrid.model_config import ModelConfig

NllFn = Callable[[Any, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Mean loss of `num_tokens` tokens predicted at positions [start, end) of their windows."""

    start: int
    end: int
    loss: float
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      loss: mean nats a predicted token.  perplexity: its exponential.
      bits_per_byte, num_bytes: None where the tokenizer can't tell bytes.
      num_tokens: predicted tokens.
      by_position: losses by position, see above.
      context_length, stride: as used.  bos: the policy.
      per_token: float32 [num_tokens], nats of every predicted token in input order.
      by_context: a Result for each context length in the order given, if there were several.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    num_tokens: int
    num_bytes: int | None
    by_position: tuple[Bucket, ...]
    context_length: int
    stride: int
    bos: str
    per_token: np.ndarray = dataclasses.field(repr=False, compare=False)
    by_context: tuple["Result", ...] = ()

    def to_dict(self, **about: Any) -> dict[str, Any]:
        """As JSON holds it, with `about` added; numbers that JSON can't write are null."""
        values = {
            field.name: _for_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("per_token", "by_context")
        }
        values["by_position"] = [
            {name: _for_json(value) for name, value in dataclasses.asdict(bucket).items()}
            for bucket in self.by_position
        ]
        if self.by_context:
            values["by_context"] = [result.to_dict(**about) for result in self.by_context]
        return values | about


def _for_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    model_config: ModelConfig,
    params: Any,
    documents: EvalDocuments,
    eval_config: EvalConfig,
    *,
    context_length: int,
    put: Callable[[Batch], Batch] = jax.device_put,
    batch_multiple: int = 1,
    nll_fn: NllFn | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result | None:
    """Scores `documents` at each context length of `eval_config`.

    Args:
      params: as `model.init` gives them, on the devices.
      context_length: training's, which stands for a 0 in `eval.context_length`.
      put: places a Batch of numpy arrays on the devices (rows over data and fsdp on a mesh).
      batch_multiple: what the rows of a batch must be a multiple of.
      nll_fn: (params, batch) -> [b, t]; by default `model.token_nll` under jit.
      should_stop: asked before each batch; a True ends the evaluation without a result.
      progress: called with (batches done, batches in all) of each length.
    Returns: the result of the largest context length, with the others in `by_context`; None if
      it was stopped.
    Raises: ConfigError for a stride that doesn't fit, or text without a token to predict.
    """
    lengths = eval_config.lengths(context_length)
    score = _Scoring(model_config, params, put, batch_multiple, nll_fn, should_stop, progress)
    results = {}
    for length in dict.fromkeys(lengths):
        result = score(documents, eval_config, length)
        if result is None:
            return None
        results[length] = result
    largest = results[max(lengths)]
    if len(lengths) == 1:
        return largest
    return dataclasses.replace(largest, by_context=tuple(results[length] for length in lengths))


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """`evaluate` at one context length, its other arguments fixed."""

    model_config: ModelConfig
    params: Any
    put: Callable[[Batch], Batch]
    batch_multiple: int
    nll_fn: NllFn | None
    should_stop: Callable[[], bool] | None
    progress: Callable[[int, int], None] | None

    def __call__(self, documents: EvalDocuments, config: EvalConfig, length: int) -> Result | None:
        plan = windows.plan(
            [len(tokens) for tokens in documents.tokens],
            context_length=length,
            stride=config.stride,
            bos=documents.bos,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
            batch_multiple=self.batch_multiple,
        )
        if not plan.num_tokens:
            raise ConfigError("data.paths", "hold no token to predict (the text is empty)")
        scored = self._run(plan, documents)
        if scored is None:
            return None
        num_bytes = count_bytes(documents, plan.num_tokens)
        return summarize(*scored, num_bytes, length, config.stride or length, documents.bos)

    def _run(
        self, plan: windows.Plan, documents: EvalDocuments
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Nats (float64) and positions of all predicted tokens in input order; None: stopped.

        The model scores a batch while the host files the one before.
        """
        nll, positions = np.empty(plan.num_tokens), np.empty(plan.num_tokens, np.int32)
        waiting = None
        host_batches = windows.batches(plan, documents.tokens, documents.bos_id, documents.pad_id)
        for done, (host_batch, pieces) in enumerate(host_batches):
            if self.should_stop is not None and self.should_stop():
                return None
            scores = self._score(self.put(host_batch))
            if waiting is not None:
                _file(*waiting, nll, positions)
                self._report(done, plan.num_batches)
            waiting = scores, pieces
        if waiting is not None:
            _file(*waiting, nll, positions)
        self._report(plan.num_batches, plan.num_batches)
        return nll, positions

    def _score(self, batch: Batch) -> jax.Array:
        sharding = getattr(batch.tokens, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        return (self.nll_fn or compiled_token_nll(self.model_config, mesh))(self.params, batch)

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


@functools.lru_cache(maxsize=16)
def compiled_token_nll(model_config: ModelConfig, mesh: Mesh | None = None) -> NllFn:
    """`model.token_nll` of a config under jit, compiled once a shape; whole on every host."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(functools.partial(model.token_nll, model_config), out_shardings=whole)


def _file(scores: jax.Array, pieces, nll: np.ndarray, positions: np.ndarray) -> None:
    """Puts a batch's scores where their tokens stand in the input."""
    host_scores = np.asarray(jax.device_get(scores))
    for window, row, column in pieces:
        where = slice(window.offset, window.offset + window.num_scored)
        nll[where] = host_scores[row, column + window.first : column + window.length]
        positions[where] = np.arange(window.first, window.length)


def count_bytes(documents: EvalDocuments, num_tokens: int) -> int | None:
    """Bytes of text behind the first `num_tokens` predicted tokens; None where unknown."""
    if documents.num_bytes is None:
        return None
    total, left = 0, num_tokens
    unpredicted = 1 if documents.bos == "never" else 0  # a document's first token is context
    for counts in documents.num_bytes:
        predicted = counts[unpredicted : unpredicted + left]
        total += int(np.sum(predicted))
        left -= len(predicted)
    return total


def summarize(
    nll: np.ndarray,
    positions: np.ndarray,
    num_bytes: int | None,
    context_length: int,
    stride: int,
    bos: str,
) -> Result:
    """The Result of nats [n] predicted at `positions` [n], both in input order."""
    total = float(np.sum(nll, dtype=np.float64))
    loss = total / len(nll)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))
    return Result(
        loss=loss,
        perplexity=perplexity,
        bits_per_byte=total / math.log(2) / num_bytes if num_bytes else None,
        num_tokens=len(nll),
        num_bytes=num_bytes,
        by_position=position_buckets(nll, positions),
        context_length=context_length,
        stride=stride,
        bos=bos,
        per_token=nll.astype(np.float32),
    )


def position_buckets(nll: np.ndarray, positions: np.ndarray) -> tuple[Bucket, ...]:
    """Mean losses over positions [0, 1), [1, 2), [2, 4), …; buckets without tokens left out."""
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    index = np.frexp(positions)[1]
    counts, sums = np.bincount(index), np.bincount(index, weights=nll)
    return tuple(
        Bucket((1 << i) >> 1, 1 << i, float(sums[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts).tolist()
    )
