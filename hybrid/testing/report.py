"""The outcome of a conformance run: a row a check."""

import collections
import dataclasses
from typing import Any

PASSED, FAILED, REFUSED = VERDICTS = ("passed", "failed", "refused")


@dataclasses.dataclass(frozen=True)
class Row:
    """One check: its verdict, and in a line what was wrong or why it was refused."""

    check: str
    verdict: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of all checks; `str` is a table in Markdown."""

    name: str
    dtype: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """No check failed and at least one ran to its end; `counts` tells how many."""
        counts = self.counts
        return counts[PASSED] > 0 and counts[FAILED] == 0

    @property
    def counts(self) -> dict[str, int]:
        """How many checks passed, failed and were refused."""
        found = collections.Counter(row.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def summary(self) -> str:
        """The counts in a line."""
        counts = self.counts
        ran = counts[PASSED] + counts[FAILED]
        line = f"{counts[PASSED]} of {ran} checks passed"
        return f"{line}, {counts[REFUSED]} were refused" if counts[REFUSED] else line

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON-able value."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"name": self.name, "dtype": self.dtype, "passed": self.passed} | {
            "counts": self.counts,
            "rows": rows,
        }

    def __str__(self) -> str:
        lines = [("check", "verdict", "detail"), ("---", "---", "---")]
        lines += [(row.check, row.verdict, row.detail.replace("|", "\\|")) for row in self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.name}, {self.dtype}: {self.summary}\n\n{table}"
