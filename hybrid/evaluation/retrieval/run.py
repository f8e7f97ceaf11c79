"""Replies to prompts, greedy and in batches, each scored and kept as soon as it is there.

A group's batches have one size and fixed members, so a run that goes on reads the same batches as
one that was never stopped. Read first: `prompts.py`. Read next: `sample_log.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from hybrid.evaluation import windows
from hybrid.evaluation.retrieval.prompts import Group, Prompt
from hybrid.evaluation.retrieval.sample_log import SampleLog, Scored
from hybrid.inference.session import Session

Reply = Callable[[Sequence[Prompt]], list[str]]


@dataclasses.dataclass(frozen=True)
class Replier:
    """Continues prompts greedily.

    Attributes:
      stop_ids: each ends a reply.  pad_id: fills rows.
      decode: ids to text.
    """

    session: Session
    stop_ids: tuple[int, ...]
    pad_id: int
    decode: Callable[[np.ndarray], str]

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """The reply to each prompt, without what ended it."""
        lengths = np.array([len(prompt.ids) for prompt in prompts], np.int32)
        limits = [prompt.tokens_to_generate for prompt in prompts]
        tokens = np.full((len(prompts), lengths.max()), self.pad_id, np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        cache = self.session.empty(len(prompts), int(lengths.max()), max(limits))
        cache, logits = self.session.prefill(cache, tokens, lengths)
        stops = self.stop_ids if all(prompt.is_text for prompt in prompts) else ()
        steps = self.session.stream(
            cache, logits, max(limits), stop_tokens=stops, pad_id=self.pad_id
        )
        found = np.concatenate([step.tokens for step in steps], axis=1)
        replies = zip(prompts, found, limits, strict=True)
        return [self._text(prompt, _until(row[:limit], stops)) for prompt, row, limit in replies]

    def _text(self, prompt: Prompt, reply: np.ndarray) -> str:
        return self.decode(reply) if prompt.is_text else " ".join(map(str, reply))


def _until(reply: np.ndarray, stops: tuple[int, ...]) -> np.ndarray:
    ends = np.flatnonzero(np.isin(reply, stops))
    return reply[: ends[0]] if len(ends) else reply


def run(
    groups: Sequence[Group],
    reply: Reply,
    log: SampleLog,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Scores every prompt that is not in the log yet.

    Args:
      reply: the texts that follow prompts, say a `Replier`.
      batch_size: rows; 0: by length.
      progress: called with tokens of prompts done and in all, without those of an earlier run.
    """
    batches = [
        (group, indices)
        for group in groups
        for indices in _batches(group, batch_size)
        if not all(log.holds(group, index) for index in indices)
    ]
    total = sum(group.length * len(indices) for group, indices in batches)
    done = 0
    for group, indices in batches:
        _score(group, indices, reply, log)
        done += group.length * len(indices)
        progress(done, total)


def _batches(group: Group, batch_size: int) -> list[range]:
    size = windows.rows_a_batch(group.count, group.length, batch_size, 1)
    starts = range(0, group.count, size)
    return [range(start, min(start + size, group.count)) for start in starts]


def _score(group: Group, indices: range, reply: Reply, log: SampleLog) -> None:
    """Replies to a batch; its scores are in the log when it returns."""
    prompts = [group.make(index) for index in indices]
    scored = []
    for index, prompt, text in zip(indices, prompts, reply(prompts), strict=True):
        about = prompt.references, len(prompt.ids), prompt.floors
        scored.append(Scored(index, prompt.score(text), text, *about))
    log.add(group, scored)
