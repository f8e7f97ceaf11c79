"""Batches through the model, one ahead of the host; what text and tasks have in common."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid.data.batch import Batch
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores
from hybrid.process import compiler


class Stopped(Exception):
    """The evaluation ended early: `should_stop` said so."""


@dataclasses.dataclass(frozen=True)
class BatchScorer:
    """How an evaluation runs batches; its fields are those of `held_out.evaluate`.

    Attributes:
      score: batch on the devices -> TokenScores on the devices.
    """

    score: Callable[[Batch], TokenScores]
    place: Callable[[Batch], Batch]
    batch_multiple: int
    should_stop: Callable[[], bool]
    progress: Callable[[int, int], None]

    def score_batches(
        self, batches: Iterable[tuple[Batch, Any]], num_batches: int
    ) -> Iterator[tuple[TokenScores, Any]]:
        """The scores of each batch on the host, beside what came with the batch.

        The model scores a batch while the caller files the one before.
        Raises: Stopped.
        """
        pending = None
        for done, (batch, about) in enumerate(batches):
            if self.should_stop():
                raise Stopped
            scores = self.score(self.place(batch))
            if pending is not None:
                yield jax.device_get(pending[0]), pending[1]
                self.progress(done, num_batches)
            pending = scores, about
        if pending is not None:
            yield jax.device_get(pending[0]), pending[1]
        self.progress(num_batches, num_batches)


def jitted(
    score: Callable[..., TokenScores],
    config: ModelConfig,
    params: Any,
    with_top: bool,
    flags: tuple[str, ...] = (),
) -> Callable[[Batch], TokenScores]:
    """batch -> `score(config, params, batch, with_top)` under jit, on the mesh the batch is on."""

    def score_batch(batch: Batch) -> TokenScores:
        sharding = getattr(batch.tokens, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        return _compiled(score, config, with_top, mesh, flags)(params, batch)

    return score_batch


@functools.lru_cache(maxsize=16)
def _compiled(
    score: Callable[..., TokenScores],
    config: ModelConfig,
    with_top: bool,
    mesh: Mesh | None,
    flags: tuple[str, ...],
):
    """Compiled once a shape; the scores are whole on every host."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        lambda *inputs: score(config, *inputs, with_top),
        out_shardings=whole,
        compiler_options=compiler.options(flags),
    )
