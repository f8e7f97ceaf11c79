"""A SentencePiece model (`tokenizer.model`) as a tokenizer of the pipeline.

Its control symbols are never read out of a text; symbols that the model's author has declared
`user_defined` are, as the library does. The library tells which bytes a piece stands for, so white
space that its normaliser joins is counted with the piece behind it.
"""

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

Ids = Sequence[int | np.integer] | np.ndarray


class SentencePieceTokenizer:
    """Without an EOS documents end without one; without a pad token EOS, else id 0, fills rows."""

    is_fast = False

    def __init__(self, content: bytes):
        """Raises: RuntimeError for what is no model."""
        import sentencepiece  # only runs that use one pay for the import

        self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.vocab_size: int = self._model.get_piece_size()
        self.bos_id = _known(self._model.bos_id())
        self.eos_id = _known(self._model.eos_id())
        pad_id = _known(self._model.pad_id())
        self.pad_id: int = pad_id if pad_id is not None else self.eos_id or 0
        self._unknown_id = self._model.unk_id()
        pieces = ((self._model.id_to_piece(n), n) for n in range(self.vocab_size))
        self.control_tokens: Mapping[str, int] = {
            piece: n for piece, n in pieces if self._model.is_control(n)
        }
        self.fingerprint = hashlib.blake2b(content, digest_size=16).hexdigest()
        self.version = sentencepiece.__version__

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text.decode() if isinstance(text, bytes) else text
        return np.asarray(self._model.encode(text), np.int32)

    def encode_parsed(self, text: str | bytes) -> np.ndarray:
        text = text.decode() if isinstance(text, bytes) else text
        parts = self._parts(text)
        return np.concatenate([ids if ids.size else self.encode(part) for part, ids in parts])

    def _parts(self, text: str) -> list[tuple[str, np.ndarray]]:
        """The text cut at control symbols that it spells, each of these with its id."""
        spelled = "|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True)))
        parts = re.split(f"({spelled})", text) if spelled else [text]
        return [
            (part, np.array([self.control_tokens[part]] if number % 2 else [], np.int32))
            for number, part in enumerate(parts)
        ]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        decoded = [text.decode() for text in texts]
        return [np.asarray(ids, np.int32) for ids in self._model.encode(decoded)]

    def encode_with_bytes(
        self, text: bytes, parsed: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if not parsed:
            return self._measured(text)
        found = [
            (control, np.zeros(1, np.int64)) if control.size else self._measured(part.encode())
            for part, control in self._parts(text.decode())
            if part
        ]
        ids = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in found)])
        known = [count for _, count in found if count is not None]
        return ids, np.concatenate(known) if known and len(known) == len(found) else None

    def _measured(self, text: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        pieces = self._model.encode(text.decode(), return_type="proto").pieces
        ids = np.array([piece.id for piece in pieces], np.int32)
        if not ids.size or self._unknown_id in ids:
            return ids, None  # an unknown piece hides text, so bits a byte would flatter
        ends = np.array([piece.end for piece in pieces], np.int64)
        ends[-1] = len(text)
        return ids, np.diff(ends, prepend=0)

    def decode(self, ids: Ids) -> str:
        return self._model.decode([int(n) for n in ids if not self._model.is_control(int(n))])

    def token_num_bytes(self, ids: Ids) -> np.ndarray | None:
        return self._num_bytes_table[np.asarray(ids, np.int64)]

    @functools.cached_property
    def _num_bytes_table(self) -> np.ndarray:
        return np.array([self._num_bytes(n) for n in range(self.vocab_size)], np.int64)

    def _num_bytes(self, number: int) -> int:
        if self._model.is_control(number) or number == self._unknown_id:
            return 0
        if self._model.is_byte(number):
            return 1
        return len(self._model.id_to_piece(number).replace("▁", " ").encode())


def _known(number: int) -> int | None:
    """An id, or None for what the model lacks."""
    return None if number < 0 else number
