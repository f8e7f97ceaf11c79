"""Tokens to text as they come, never half a character.

A character may take several tokens, and what a token spells may depend on those before it (a
leading space, a run of bytes). So all tokens so far are decoded each time, behind the last few of
the prompt, and what is new is returned, except replacement characters at the end: they may be the
first bytes of a character whose other bytes are still to come. One that does not become a character
within a few tokens is broken text, and is returned as it is.
"""

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
