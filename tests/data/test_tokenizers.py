"""Ids, special ids and bytes of each token, for bytes and for tokenizer.json files."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError
from hybrid.data import tokenizers

TEXT = "Über den Wolken: naïve café, 日本語 and \U0001f600 \n\n  def f(x):\n    return x ▁ <eos>!"
SPECIALS = ["<pad>", "<bos>", "<eos>"]


def byte_level() -> hf.Tokenizer:
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    template = hf.processors.TemplateProcessing
    backend.post_processor = template(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return backend


def sentencepiece(prepend: bool = False) -> hf.Tokenizer:
    pieces = ["▁", "▁de", "ca", "fé", "▁▁", *sorted(set("abcdefghijklmnopqrstuvwxyz()<>:,!\n"))]
    names = [*SPECIALS, "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, "d", "de"]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    merges = [("c", "a"), ("d", "e"), ("▁", "de"), ("▁", "▁")]
    model = hf.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = hf.Tokenizer(model)
    steps = [hf.normalizers.Prepend("▁")] if prepend else []
    backend.normalizer = hf.normalizers.Sequence([*steps, hf.normalizers.Replace(" ", "▁")])
    fallback, fuse = hf.decoders.ByteFallback(), hf.decoders.Fuse()
    backend.decoder = hf.decoders.Sequence([hf.decoders.Replace("▁", " "), fallback, fuse])
    backend.add_special_tokens(SPECIALS)
    return backend


def wordpiece() -> hf.Tokenizer:
    vocab = {
        name: i for i, name in enumerate(["[UNK]", "[PAD]", "uber", "den", ":", "na", "##ive"])
    }
    backend = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    return backend


def load(folder, backend, config=None):
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizers.load(str(folder / "tokenizer.json"))


def test_byte_b_is_id_b_and_specials_follow():
    tokenizer = tokenizers.load("byte")
    assert tokenizer.encode(bytes(range(256))).tolist() == list(range(256))
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    specials = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)
    assert specials == (256, 257, 258, 259)
    assert tokenizer.decode([257, 0xC3, 0xA9, 258]) == "é"
    assert tokenizer.token_num_bytes([257, 65, 258]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_text_comes_back_and_no_special_token_is_added(tmp_path, make):
    tokenizer = load(tmp_path, make())
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    assert tokenizer.decode(ids).replace("▁", " ") == TEXT.replace("▁", " ")
    batch = tokenizer.encode_batch([TEXT.encode(), b"def"])
    np.testing.assert_array_equal(batch[0], ids)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    with_both = load(tmp_path, backend).encode(TEXT)
    np.testing.assert_array_equal(with_both, load(tmp_path, byte_level()).encode(TEXT))


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_bytes_of_each_token_are_its_own(tmp_path, make):
    tokenizer = load(tmp_path, make())
    text = TEXT.replace("▁", "")
    ids, counts = tokenizer.encode_with_bytes(text.encode())
    assert counts.sum() == len(text.encode())
    np.testing.assert_array_equal(counts, tokenizer.token_num_bytes(ids))
    encoded, place = text.encode(), 0
    for index, count in zip(ids, counts, strict=True):
        piece = encoded[place : place + count].decode("utf-8", "replace")
        assert tokenizer.decode([index]) in (piece, piece.lstrip(" "))
        place += count


@settings(derandomize=True, deadline=None, max_examples=60)
@given(text=st.text(alphabet="ab é▁日\U0001f600<>\n", min_size=1, max_size=12))
@pytest.mark.parametrize("make", [byte_level, sentencepiece, lambda: sentencepiece(prepend=True)])
def test_bytes_of_a_document_sum_to_its_length(tmp_path_factory, make, text):
    tokenizer = load(tmp_path_factory.mktemp("t"), make())
    ids, counts = tokenizer.encode_with_bytes(text.encode())
    assert len(ids) == len(counts)
    assert counts.sum() == len(text.encode())
    assert (counts >= 0).all()


def test_dropped_spaces_count_with_the_next_token_and_unknown_words_are_not_counted(tmp_path):
    tokenizer = load(tmp_path, wordpiece())
    text = "Über  den : "
    ids, counts = tokenizer.encode_with_bytes(text.encode())
    assert counts.tolist() == [5, 5, 3]
    assert tokenizer.token_num_bytes(ids) is None
    assert tokenizer.encode_with_bytes(b"den xyz")[1] is None
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, 1)


def test_tokenizer_config_says_which_tokens_are_special(tmp_path):
    named = {"bos_token": {"content": "<eos>"}, "eos_token": "<pad>", "pad_token": None}
    tokenizer = load(tmp_path, byte_level(), named)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 0, 0)
    without = load(tmp_path, byte_level(), {"bos_token": None})
    assert without.bos_id is None
    assert without.fingerprint != tokenizer.fingerprint


def test_bos_policy_follows_the_tokenizer(tmp_path):
    with_bos, without = tokenizers.ByteTokenizer(), load(tmp_path, wordpiece())
    assert tokenizers.resolve_bos("auto", with_bos) == "document"
    assert tokenizers.resolve_bos("window", with_bos) == "window"
    assert tokenizers.resolve_bos("auto", without) == "never"
    with pytest.raises(ConfigError, match=r"data\.bos: the tokenizer has no BOS, got window"):
        tokenizers.resolve_bos("window", without)


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"model": 3}', b"\xff\xfe"])
def test_a_missing_or_broken_file_is_refused_by_key(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.tokenizer: (no such file|can't be loaded)"):
        tokenizers.load(str(path))


# --- SentencePiece -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tokenizer.model that falls back to bytes."""
    import io

    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_writer=content,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        pad_id=3,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    return folder


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(alphabet="aeé日 \n<s>/\U0001f600", max_size=40))
def test_sentencepiece_counts_every_byte_once_and_reads_no_control_symbol(model, text):
    tokenizer = tokenizers.load(str(model))
    ids, counts = tokenizer.encode_with_bytes(text.encode())
    assert ids.tolist() == tokenizer.encode(text).tolist()
    assert not set(ids.tolist()) & set(tokenizer.control_tokens.values())
    assert tokenizer.encode_batch([text.encode()])[0].tolist() == ids.tolist()
    if ids.size and counts is not None:
        assert counts.sum() == len(text.encode())
        assert counts.min() >= 0


def test_sentencepiece_names_its_special_ids_and_goes_into_processes(model):
    tokenizer = tokenizers.load(str(model / "tokenizer.model"))
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert 256 < tokenizer.vocab_size <= 330
    parsed, counts = tokenizer.encode_with_bytes(b"<s>de</s>", parsed=True)
    assert parsed.tolist() == tokenizer.encode_parsed("<s>de</s>").tolist()
    assert (parsed[0], parsed[-1], counts.sum()) == (1, 2, 2)
    assert tokenizer.decode([1, *tokenizer.encode("den Wolken"), 2]) == "den Wolken"
    assert tokenizer.token_num_bytes([1, *tokenizer.encode("é")]).tolist()[0] == 0
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert again.fingerprint == tokenizer.fingerprint


def test_a_broken_model_is_refused_and_a_json_beside_it_comes_first(model, tmp_path):
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: can't be loaded"):
        tokenizers.load(str(tmp_path / "x.model"))
    shutil.copy(model / "tokenizer.model", tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert isinstance(tokenizers.load(str(tmp_path)), tokenizers.JsonTokenizer)


def test_a_copy_has_the_usual_name(model, tmp_path):
    from hybrid.pretrained.tokenizer import copy_files

    shutil.copy(model / "tokenizer.model", tmp_path / "mine.model")
    (tmp_path / "copy").mkdir()
    copy_files(str(tmp_path / "mine.model"), tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["tokenizer.model"]
    assert (
        tokenizers.load(str(tmp_path / "copy")).fingerprint
        == tokenizers.load(str(model)).fingerprint
    )


@pytest.mark.parametrize("make", [byte_level, sentencepiece, wordpiece])
def test_control_tokens_of_a_parsed_text_stand_for_no_bytes(tmp_path, make):
    """Also where bytes are measured by offsets, as of a vocabulary that does not spell them."""
    backend = make()
    backend.add_special_tokens(["<turn>"])
    tokenizer, turn = load(tmp_path, backend), backend.token_to_id("<turn>")
    text = b"<turn>den<turn>uber"
    ids, counts = tokenizer.encode_with_bytes(text, parsed=True)
    assert (ids == turn).sum() == 2
    assert not counts[ids == turn].any()
    assert counts.sum() == len(text) - 2 * len("<turn>")
    as_text, _ = tokenizer.encode_with_bytes(text)
    assert turn not in as_text
    assert tokenizer.encode_parsed(text).tolist() == ids.tolist()
