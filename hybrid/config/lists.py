"""Lists as one writes them on a command line."""

import itertools
import re

# An item and what ends it: within quotes, where a quote is written twice, or as it stands.
_QUOTED = r"""(['"])((?:(?!\1).|\1\1)*)\1"""
_ITEM = re.compile(rf"\s*(?:{_QUOTED}|([^,]*?))\s*(?:,|$)", re.DOTALL)
_QUOTED_ITEM = re.compile(rf"(?:^|(?<=[,(\[]))\s*{_QUOTED}(?=\s*(?:[,)\]]|$))", re.DOTALL)


def split_list(text: str) -> list[str]:
    """The items of a list: separated by commas, in brackets or not; quotes protect an item.

    >>> split_list("a b.txt, 'c,d.txt'")
    ['a b.txt', 'c,d.txt']
    >>> split_list("[01]/[ab]"), split_list("[1, 2]")
    (['[01]/[ab]'], ['1', '2'])
    """
    text = text.strip()
    text = text[1:-1] if _in_brackets(text) else text
    items = ((m[1], m[2].replace(m[1] * 2, m[1]) if m[1] else m[3]) for m in _ITEM.finditer(text))
    return [item for quote, item in items if quote or item]


def _in_brackets(text: str) -> bool:
    """Whether the first character is a bracket that the last one closes."""
    if text[:1] + text[-1:] not in ("()", "[]"):
        return False
    outside = _QUOTED_ITEM.sub(lambda match: "." * len(match[0]), text)
    steps = ((c in "([") - (c in ")]") for c in outside)
    return list(itertools.accumulate(steps)).index(0) == len(text) - 1
