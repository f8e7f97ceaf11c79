"""What is told of each source of a mixture in the rows of training."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ops.loss import GroupSums
from hybrid.workdir.metrics import Row, number


class SourceTotals:
    """The predicted tokens of each source so far.

    Attributes:
      tokens_seen: by name, over the whole run; goes into the record of a checkpoint.
    """

    def __init__(self, names: Sequence[str], record: Mapping[str, Any]):
        """`record` is that of the checkpoint that a run goes on from; {}: a new run."""
        held = record.get("tokens_seen_by_source", {})
        self.tokens_seen = {name: int(held.get(name, 0)) for name in names}

    def add(self, sums: GroupSums | None) -> Row:
        """Counts a step's sums, on the host.

        Returns: `loss/NAME` of this step alone, null where it had no token of the source, and
          `tokens_seen/NAME`; empty without a mixture.
        """
        if sums is None:
            return {}
        row: Row = {}
        for name, nll, count in zip(self.tokens_seen, *sums, strict=True):
            self.tokens_seen[name] += int(count)
            row[f"loss/{name}"] = number(nll / count) if count else None
        return row | {f"tokens_seen/{name}": seen for name, seen in self.tokens_seen.items()}
