"""Tokens to text as they come, never half a character, and where a text is to stop.

A character may take several tokens, and what a token spells may depend on those before it (a
leading space, a run of bytes). So all tokens so far are decoded each time, behind the last few of
the prompt, and what is new is returned, except replacement characters at the end: they may be the
first bytes of a character whose other bytes are still to come. One that does not become a character
within a few tokens is broken text, and is returned as it is.
"""

from collections.abc import Sequence

from hybrid.data.tokenizers import Ids, Tokenizer

BROKEN = "\ufffd"
MOST_HELD = 12  # bytes of three characters, which byte-fallback vocabularies may all show broken
CONTEXT = 8  # tokens of the prompt that are decoded with the new ones


class TextStream:
    """The text of a growing list of tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Ids = ()):
        self._tokenizer = tokenizer
        self._ids = [int(token) for token in prompt][-CONTEXT:]
        self._given = len(tokenizer.decode(self._ids))

    def feed(self, tokens: Ids) -> str:
        """What the tokens add to the text, as far as it is certain."""
        self._ids += [int(token) for token in tokens]
        text = self._tokenizer.decode(self._ids)
        certain = text.rstrip(BROKEN)
        if len(text) - len(certain) > MOST_HELD:
            certain = text[: len(text) - MOST_HELD]
        return self._added(certain)

    def rest(self) -> str:
        """What was held back, at the end of all tokens."""
        return self._added(self._tokenizer.decode(self._ids))

    def _added(self, text: str) -> str:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new


class StopTexts:
    """Finds the first of some texts in one that comes piece by piece, also across pieces."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._tail = ""  # of the text so far: a stop may have begun in it
        self.is_met = False

    def cut(self, piece: str) -> str:
        """The piece, or what of it leads to the end of the first stop; nothing behind that."""
        if self.is_met or not self._stops:
            return "" if self.is_met else piece
        text = self._tail + piece
        ends = [text.find(stop) + len(stop) for stop in self._stops if stop in text]
        if ends:
            self.is_met = True
            return text[len(self._tail) : min(ends)]
        self._tail = text[len(text) - min(len(text), self._longest - 1) :]
        return piece
