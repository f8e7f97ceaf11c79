"""The tokenizer of a Hugging Face folder: files to carry over, the byte tokenizer as one, hints."""

import pathlib

from hybrid.data import tokenizers as ours
from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL = {
    ours.BYTE_PAD: ("pad_token", "<pad>"),
    ours.BYTE_BOS: ("bos_token", "<bos>"),
    ours.BYTE_EOS: ("eos_token", "<eos>"),
}


def write_tokenizer(
    tokenizer: str, folder: pathlib.Path, *, adds_bos: bool = True
) -> dict[str, int | None]:
    """Puts the tokenizer `data.tokenizer` into a folder.

    Args:
      adds_bos: whether the byte tokenizer puts BOS before a text, as a run's documents had it;
        others add what their own file says.
    Returns: the ids that config.json names (`bos_token_id`, …), None for what the tokenizer lacks:
      a key that is left out would mean transformers' default.
    """
    if tokenizer == "byte":
        _write_byte_tokenizer(folder, adds_bos)
        return {f"{role}_id": token for token, (role, _) in _SPECIAL.items()}
    copy_files(tokenizer, folder)
    loaded = ours.load(tokenizer)
    ids = {"bos": loaded.bos_id, "eos": loaded.eos_id, "pad": loaded.pad_id}
    return {f"{role}_token_id": token for role, token in ids.items()}


def copy_files(tokenizer: str, folder: AnyPath) -> None:
    """Copies a tokenizer's file and what stands beside it into a folder, under their usual names.

    The tokenizer's own file comes last: where it is, all of them are.
    """
    source = ours.file_of(tokenizer)
    is_model = source.suffix == ".model"
    own, other = ours.FILES[is_model], ours.FILES[not is_model]
    beside = BESIDE if is_model else (*BESIDE, other)
    for name in [*beside, own]:
        file = source if name == own else source.parent / name
        if file.is_file():
            (folder / name).write_bytes(file.read_bytes())


def raw_text_warning(folder: pathlib.Path) -> list[str]:
    """A line if the folder's model was tuned to chat: a warning where it scores plain text."""
    config = ours.neighbour_config(folder / ours.FILES[0]) or {}
    chats = "chat_template" in config or (folder / "chat_template.jinja").is_file()
    if not chats and not folder.resolve().name.endswith("-it"):
        return []
    return [f"{folder} is tuned to chat: on plain text its loss is no measure of the base model"]


def _write_byte_tokenizer(folder: pathlib.Path, adds_bos: bool) -> None:
    """A tokenizer.json in which byte b is id b: byte-level BPE without merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    # Printable bytes are written as they are, the others as the characters from 256 on.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: ord(character) for character in alphabet if ord(character) < 256}
    others = [byte for byte in range(256) if byte not in vocabulary.values()]
    vocabulary |= zip(alphabet[len(vocabulary) :], others, strict=True)
    special = {text: token for token, (_, text) in _SPECIAL.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | special, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    if adds_bos:
        _, bos = _SPECIAL[ours.BYTE_BOS]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ours.BYTE_BOS)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(_SPECIAL.values())}
    write_json(folder / "tokenizer_config.json", values)
