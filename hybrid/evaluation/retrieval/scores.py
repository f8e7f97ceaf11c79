"""Scores of replies, each from 0 to 1 a sample.

    all_found   the share of references that the reply holds     (needles, variables, words)
    any_found   1 if it holds any of them                        (question answering)

Both ignore case, and look in the reply after white space at its ends is stripped and control
characters have become line ends.
Source: RULER, scripts/eval/synthetic/constants.py and scripts/eval/evaluate.py.
"""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(reply: str) -> str:
    """The reply as scores look at it."""
    return _CONTROL.sub("\n", reply.strip()).strip()


def all_found(reply: str, references: Sequence[str]) -> float:
    """The share of references in the reply.

    >>> all_found("first OTTER, then\\x07finch", ("otter", "finch", "heron", "owl"))
    0.5
    """
    text = cleaned(reply).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def any_found(reply: str, references: Sequence[str]) -> float:
    """1 if a reference is in the reply, else 0.

    >>> any_found(" In Oslo.", ("oslo", "bergen")), any_found("", ("oslo",))
    (1.0, 0.0)
    """
    return float(all_found(reply, references) > 0)
