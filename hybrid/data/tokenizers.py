"""Text to ids and back: bytes as they are, a Hugging Face `tokenizer.json`, or SentencePiece.

`encode` gives the ids of the text alone. BOS and EOS are added where documents are laid out
(`cache.py`, the evaluation), exactly once, whatever the tokenizer's own post-processor does.
A text that spells `<eos>` is text, never a control token; `encode_parsed` alone takes it as one.

How many bytes of text a token stands for is needed for bits a byte. `token_num_bytes` finds
it from the ids, where the vocabulary spells bytes; `encode_with_bytes` is safer: it checks
that the counts of a document sum to its length, and else measures with the encoding's offsets.
Read next: `cache.py`.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hybrid.config import ConfigError
from hybrid.process.files import is_dir, is_file, path_of
from hybrid.process.remote import AnyPath

BYTE_PAD, BYTE_BOS, BYTE_EOS = 256, 257, 258
Ids = Sequence[int | np.integer] | np.ndarray


@runtime_checkable  # for the tests, which check types
class Tokenizer(Protocol):
    """What the pipeline needs of a tokenizer.

    Attributes:
      bos_id, eos_id: or None where it has none; then documents go without.
      pad_id: any valid id; padding is never seen by text nor predicted.
      vocab_size: one more than the largest id.
      control_tokens: ids of the tokens that are never text, by how they are spelled.
      fingerprint: changes when the ids of a text could.
      is_fast: whether encoding takes no longer than reading.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    vocab_size: int
    control_tokens: Mapping[str, int]
    fingerprint: str
    is_fast: bool

    def encode(self, text: str | bytes) -> np.ndarray:
        """int32 [n] without special tokens.  Raises: UnicodeDecodeError if it needs UTF-8."""

    def encode_parsed(self, text: str | bytes) -> np.ndarray:
        """`encode`, with control tokens that the text spells as these tokens."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """`encode` of each text, with all cores where that helps."""

    def encode_with_bytes(
        self, text: bytes, parsed: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids int32 [n] and the bytes of each, int64 [n], summing to len(text); None: unknown.

        parsed: as `encode_parsed`; what spells a control token is no text and counts as none.
        """

    def decode(self, ids: Ids) -> str:
        """Text of the ids, special tokens left out, broken UTF-8 replaced."""

    def token_num_bytes(self, ids: Ids) -> np.ndarray | None:
        """Bytes of text each id stands for, int64 [n], special tokens 0; None: unknown."""


CONFIG = "tokenizer_config.json"  # that may stand beside one
FILES = ("tokenizer.json", "tokenizer.model")  # of a folder; the first that is there is read
_ACCEPTED = "byte, or the path of a tokenizer.json or a SentencePiece .model"


def load(name: str, key: str = "data.tokenizer") -> Tokenizer:
    """The tokenizer of `data.tokenizer`: `byte`, a file, or a folder that holds one.

    Raises: ConfigError under `key` for a missing or broken file.
    """
    if name == "byte":
        return ByteTokenizer()
    path = file_of(name, key)
    try:
        if path.suffix == ".model":
            from hybrid.data.sentencepiece import (
                SentencePieceTokenizer,
            )  # only runs that use one pay

            return SentencePieceTokenizer(path.read_bytes())
        return JsonTokenizer(path.read_bytes(), neighbour_config(path))
    except Exception as error:  # the libraries raise bare exceptions for a broken file
        problem = f"can't be loaded ({' '.join(str(error).split())[:100]})"
        raise ConfigError(key, problem, str(path), _ACCEPTED) from error


def file_of(name: str, key: str = "data.tokenizer") -> AnyPath:
    """The file that a tokenizer's path means.  Raises: ConfigError where there is none."""
    path = path_of(key, name)
    if is_dir(path):
        files = [path / file for file in FILES]
        path = next((file for file in files if is_file(file)), files[0])
    if not is_file(path):
        raise ConfigError(key, "no such file", name, _ACCEPTED)
    return path


def resolve_bos(bos: str, tokenizer: Tokenizer) -> str:
    """`document`, `window` or `never` for the policy `data.bos`.

    Raises: ConfigError for a BOS where the tokenizer has none.
    """
    if bos == "auto":
        return "document" if tokenizer.bos_id is not None else "never"
    if bos != "never" and tokenizer.bos_id is None:
        raise ConfigError("data.bos", "the tokenizer has no BOS", bos, "never or auto")
    return bos


class ByteTokenizer:
    """Byte b is id b; every file is valid text."""

    bos_id: int | None = BYTE_BOS
    eos_id: int | None = BYTE_EOS
    pad_id: int = BYTE_PAD
    vocab_size = 259
    control_tokens: Mapping[str, int] = {}  # no bytes spell them
    fingerprint = "byte"
    is_fast = True

    def encode(self, text: str | bytes) -> np.ndarray:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def encode_parsed(self, text: str | bytes) -> np.ndarray:
        return self.encode(text)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_bytes(self, text: bytes, parsed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(text), np.ones(len(text), np.int64)

    def decode(self, ids: Ids) -> str:
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", "replace")

    def token_num_bytes(self, ids: Ids) -> np.ndarray:
        return (np.asarray(ids) < 256).astype(np.int64)


# --- tokenizer.json --------------------------------------------------------------------------

# Looked up in this order, unless a tokenizer_config.json beside the file says which it is.
_COMMON_NAMES = {
    "bos_token": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]"),
    "eos_token": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[EOS]"),
    "pad_token": ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
}


class JsonTokenizer:
    """A Hugging Face tokenizer.  Its padding, truncation and post-processor are not used.

    Without an EOS documents end without one; without a pad token EOS, else id 0, fills rows.
    """

    is_fast = False

    def __init__(self, content: bytes, config: dict[str, Any] | None = None):
        import tokenizers  # only runs that use one pay for the import

        self._backend = tokenizers.Tokenizer.from_str(content.decode())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._spec = json.loads(content)
        self._ids = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values()) + 1
        added = self._spec.get("added_tokens", [])
        self.control_tokens: Mapping[str, int] = {
            token["content"]: token["id"] for token in added if token["special"]
        }
        self.bos_id = self._special("bos_token", config)
        self.eos_id = self._special("eos_token", config)
        pad_id = self._special("pad_token", config)
        self.pad_id = pad_id if pad_id is not None else self.eos_id or 0
        self._unknown_id = self._ids.get(_unknown_token(self._spec["model"]) or "", -1)
        named = f"{self.bos_id} {self.eos_id}".encode()
        self.fingerprint = hashlib.blake2b(content + named, digest_size=16).hexdigest()
        # Ids may change with the library, so its version is part of a cache's key.
        self.version = tokenizers.__version__

    def _special(self, role: str, config: dict[str, Any] | None) -> int | None:
        if config is not None and role in config:
            token = config[role]
            token = token.get("content") if isinstance(token, dict) else token
            return None if token is None else self._ids.get(token)
        return next((self._ids[name] for name in _COMMON_NAMES[role] if name in self._ids), None)

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text.decode() if isinstance(text, bytes) else text
        return _ids(self._backend.encode(text, add_special_tokens=False))

    def encode_parsed(self, text: str | bytes) -> np.ndarray:
        with self._parsing(True):
            return self.encode(text)

    @contextlib.contextmanager
    def _parsing(self, parsed: bool) -> Iterator[None]:
        """Inside, control tokens that a text spells are taken as such, or not."""
        self._backend.encode_special_tokens = not parsed
        try:
            yield
        finally:
            self._backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        decoded = [text.decode() for text in texts]
        encodings = self._backend.encode_batch_fast(decoded, add_special_tokens=False)
        return [_ids(encoding) for encoding in encodings]

    def encode_with_bytes(
        self, text: bytes, parsed: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        decoded = text.decode()
        with self._parsing(parsed):
            encoding = self._backend.encode(decoded, add_special_tokens=False)
        ids = _ids(encoding)
        if not ids.size or self._unknown_id in ids:
            return ids, None  # an unknown token hides text, so bits a byte would flatter
        spelled = np.array([self._num_spelled.get(i, 0) if parsed else 0 for i in ids.tolist()])
        counts = self.token_num_bytes(ids)
        if counts is None or counts.sum() + spelled.sum() != len(text):
            counts = _bytes_from_offsets(encoding.offsets, decoded)
        return ids, np.where(spelled, 0, counts)

    @functools.cached_property
    def _num_spelled(self) -> dict[int, int]:
        """How many bytes spell each control token."""
        return {index: len(text.encode()) for text, index in self.control_tokens.items()}

    def decode(self, ids: Ids) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_num_bytes(self, ids: Ids) -> np.ndarray | None:
        table = self._num_bytes_table
        return None if table is None else table[np.asarray(ids, np.int64)]

    @functools.cached_property
    def _num_bytes_table(self) -> np.ndarray | None:
        spelling = _spelling(self._spec)
        if spelling is None:
            return None
        table = np.zeros(self.vocab_size, np.int64)
        for token, index in self._ids.items():
            table[index] = spelling(token)
        for added in self._spec.get("added_tokens", []):
            table[added["id"]] = 0 if added["special"] else _spaced_bytes(added["content"])
        return table


def _ids(encoding: Any) -> np.ndarray:
    return np.asarray(encoding.ids, np.int32)


def neighbour_config(path: AnyPath) -> dict[str, Any] | None:
    """The tokenizer_config.json beside a tokenizer.json; None without one.

    Raises: ValueError for one that holds no object.
    """
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return None
    found = json.loads(beside.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{beside.name} holds no object")
    return found


def _unknown_token(model: dict[str, Any]) -> str | None:
    if model.get("type") == "Unigram" and model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _spelling(spec: dict[str, Any]) -> Callable[[str], int] | None:
    """How a vocabulary entry spells bytes: a function token -> number of bytes, or None.

    Byte-level vocabularies write each byte as one character. SentencePiece ones write text
    with ▁ for a space, and a byte outside the vocabulary as <0xNN>.
    """
    kinds = {*_kinds(spec.get("normalizer")), *_kinds(spec.get("pre_tokenizer"))}
    if "ByteLevel" in kinds:
        return len
    is_sentencepiece = {"Metaspace", "ByteFallback"} & {*kinds, *_kinds(spec.get("decoder"))}
    return _sentencepiece_bytes if is_sentencepiece else None


def _sentencepiece_bytes(token: str) -> int:
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return 1 if is_byte else _spaced_bytes(token)


def _spaced_bytes(token: str) -> int:
    return len(token.replace("▁", " ").encode())


def _kinds(node: Any) -> Iterator[str]:
    """All `type`s in a part of a tokenizer.json, sequences opened."""
    if isinstance(node, dict):
        yield node.get("type", "")
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _kinds(child)


def _bytes_from_offsets(offsets: Sequence[tuple[int, int]], text: str) -> np.ndarray:
    """Bytes of each token from its end in characters; text that no token covers goes to the next.

    Tokens that split a character share its offsets: the first has all of its bytes. The last
    token has whatever is left, so the counts sum to the length of the text.
    """
    widths = np.fromiter((len(c.encode()) for c in text), np.int64, len(text))
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    reached = np.maximum.accumulate(bytes_before[np.asarray(offsets, np.int64)[:, 1]])
    reached[-1] = bytes_before[-1]
    return np.diff(reached, prepend=0)
