"""The checks: what public attentions got wrong at one time or another, each by itself.

A check calls the subject with small arrays and raises `Mistake` with a line that says what was
wrong. Where it has several calls, those that are served decide.

Read next: `calls.py`, then `rows.py`, `queries.py`, `scores.py`, `gradients.py`.
"""

from hybrid.testing.checks import gradients, queries, rows, scores
from hybrid.testing.checks.calls import Check

__all__ = ["CHECKS", "Check"]

CHECKS = {
    check.name: check
    for check in (*rows.CHECKS, *queries.CHECKS, *scores.CHECKS, *gradients.CHECKS)
}
