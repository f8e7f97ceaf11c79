"""Batches through the model, one ahead of the host; what text and tasks have in common."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid.data.batch import Batch
from hybrid.model.config import ModelConfig

ScoreFn = Callable[[Any, Batch], Any]


class Stopped(Exception):
    """The evaluation was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How an evaluation runs batches.

    Attributes:
      score: batch on the devices -> arrays on the devices.
      put: places a batch of numpy arrays on the devices.
      batch_multiple: what the rows of a batch must be a multiple of.
      should_stop: asked before each batch.  progress: told (batches done, batches in all).
    """

    score: Callable[[Batch], Any]
    put: Callable[[Batch], Batch]
    batch_multiple: int
    should_stop: Callable[[], bool] | None
    progress: Callable[[int, int], None] | None

    def each(
        self, batches: Iterable[tuple[Batch, Any]], num_batches: int
    ) -> Iterator[tuple[Any, Any]]:
        """The scores of each batch on the host, beside what came with the batch.

        The model scores a batch while the caller files the one before.
        Raises: Stopped.
        """
        waiting = None
        for done, (batch, about) in enumerate(batches):
            if self.should_stop is not None and self.should_stop():
                raise Stopped
            scores = self.score(self.put(batch))
            if waiting is not None:
                yield jax.device_get(waiting[0]), waiting[1]
                self._report(done, num_batches)
            waiting = scores, about
        if waiting is not None:
            yield jax.device_get(waiting[0]), waiting[1]
        self._report(num_batches, num_batches)

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def of_model(score: Callable[..., Any], model_config: ModelConfig, params: Any):
    """batch -> `score(model_config, params, batch)` under jit, on the mesh the batch is on."""

    def of_batch(batch: Batch) -> Any:
        sharding = getattr(batch.tokens, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        return compiled(score, model_config, mesh)(params, batch)

    return of_batch


@functools.lru_cache(maxsize=16)
def compiled(
    score: Callable[..., Any], model_config: ModelConfig, mesh: Mesh | None = None
) -> ScoreFn:
    """`score` of a config under jit, compiled once a shape; whole on every host."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(functools.partial(score, model_config), out_shardings=whole)
