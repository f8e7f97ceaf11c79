"""Which documents a source holds, how they split, and what it refuses."""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError
from hybrid.data import sources
from hybrid.data.config import DataConfig
from hybrid.data.sources import split


def _write(folder, texts):
    for name, text in texts.items():
        (folder / name).write_bytes(text)


def _text(folder, **keys):
    return DataConfig(source="text", paths=(f"{folder}/*.txt",), **keys)


def test_stdlib_is_ten_megabytes_of_sources_without_tests_and_generated_files():
    found = sources.documents(DataConfig(), "all")
    names = found.names
    assert 5e6 < found.num_bytes < 20e6
    assert "ast.py" in names
    assert "asyncio/tasks.py" in names
    assert not {"pydoc_data/topics.py", "encodings/cp1252.py", "token.py"} & set(names)
    assert not [name for name in names if re.search(r"(^|/)(tests?|site-packages)/", name)]
    assert re.search(r"stdlib of Python 3\.\d+\.\d+.*documents.*MB, fingerprint", found.description)


def test_train_and_eval_share_all_documents():
    everything, train, held_out = (
        sources.documents(DataConfig(), split).names for split in ("all", "train", "eval")
    )
    assert sorted(train + held_out) == sorted(everything)
    assert 0.01 < len(held_out) / len(everything) < 0.12


def test_a_split_does_not_move_when_documents_come_and_go(tmp_path):
    _write(tmp_path, {f"{i}.txt": b"text %d" % i for i in range(60)})
    before = set(sources.documents(_text(tmp_path, eval_fraction=0.3), "eval").names)
    _write(tmp_path, {"new.txt": b"new", "copy.txt": b"text 3"})
    after = set(sources.documents(_text(tmp_path, eval_fraction=0.3), "eval").names)
    assert before == {name for name in after if not re.search("new|copy", name)}
    assert 8 < len(before) < 30


def test_copies_of_a_text_fall_on_one_side(tmp_path):
    _write(tmp_path, {f"{i}.txt": b"text %d" % (i % 10) for i in range(40)})
    config = _text(tmp_path, eval_fraction=0.5)
    train = {document.text for document in sources.documents(config, "train")}
    held_out = {document.text for document in sources.documents(config, "eval")}
    assert not train & held_out
    assert len(sources.documents(config, "all")) == 40


def test_two_documents_are_enough_for_both_splits(tmp_path):
    _write(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    for fraction in (0.001, 0.99):
        config = _text(tmp_path, eval_fraction=fraction)
        assert len(sources.documents(config, "train")) == 1
        assert len(sources.documents(config, "eval")) == 1


def test_eval_paths_replace_the_held_out_split(tmp_path):
    _write(tmp_path, {"a.txt": b"a", "b.txt": b"b", "valid.dat": b"valid"})
    config = _text(tmp_path, eval_paths=(f"{tmp_path}/valid.dat",))
    assert [d.text for d in sources.documents(config, "train")] == [b"a", b"b"]
    assert [d.text for d in sources.documents(config, "eval")] == [b"valid"]


def test_the_fingerprint_depends_on_the_texts_alone(tmp_path):
    _write(tmp_path, {"a.txt": b"one", "b.txt": b"two"})
    first = sources.documents(_text(tmp_path), "all").fingerprint
    _write(tmp_path, {"a.txt": b"two", "b.txt": b"one"})
    assert sources.documents(_text(tmp_path), "all").fingerprint == first
    _write(tmp_path, {"a.txt": b"twi"})
    assert sources.documents(_text(tmp_path), "all").fingerprint != first


def test_a_file_named_twice_counts_once_and_empty_files_are_left_out(tmp_path):
    _write(tmp_path, {"b.txt": b"b", "a.txt": b"a", "empty.txt": b""})
    paths = (f"{tmp_path}/b.txt", f"{tmp_path}/*.txt")
    found = sources.documents(DataConfig(source="text", paths=paths), "all")
    assert [document.text for document in found] == [b"b", b"a"]


def test_a_jsonl_line_is_a_document(tmp_path):
    lines = [{"body": "erster\nText"}, {"body": "日本語", "n": 1}, {"body": ""}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines[:1]) + "\n\n")
    with path.open("a") as file:
        file.write("\n".join(json.dumps(line) for line in lines[1:]))
    config = DataConfig(source="jsonl", paths=(str(path),), text_field="body")
    found = sources.documents(config, "all")
    assert [document.text.decode() for document in found] == ["erster\nText", "日本語"]
    assert [document.name for document in found] == [f"{path}:1", f"{path}:3"]
    assert list(found)[1].text.decode() == "日本語"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r"data\.paths: .*x\.jsonl line 2 is not JSON"),
        (b'{"text": "a"}\n{"txt": "b"}\n', r"data\.text_field: .*line 2 has no.*got text; .*txt"),
        (b'{"text": 3}\n', r"data\.text_field: .*line 1 holds no text there, got 3"),
        (b"[1]\n", r"data\.paths: .*line 1 is not a JSON object, got \[1\]"),
        (b'{"text": "\xff"}\n', r"data\.paths: .*line 1 is not JSON"),
        (b'{"text": "\\ud800"}\n', r"data\.paths: .*line 1 holds half a surrogate"),
        (b"", r"data\.paths: no text in these files"),
        (b"[" * 100_000, r"data\.paths: .*line 1 is not JSON"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        sources.documents(DataConfig(source="jsonl", paths=(str(path),)), "all")


def test_paths_without_text_are_refused_by_key(tmp_path):
    _write(tmp_path, {"a.txt": b"a", "empty.txt": b""})

    def message(split="train", **keys):
        with pytest.raises(ConfigError) as caught:
            sources.documents(DataConfig(source="text", **keys), split)
        return str(caught.value)

    only = f"{tmp_path}/a.txt"
    assert "data.paths: no such file, got nowhere/*.txt" in message(paths=("nowhere/*.txt",))
    assert "data.paths: no text" in message(paths=(f"{tmp_path}/empty.txt",))
    assert "data.eval_paths: nothing is left to hold out" in message(paths=(only,))
    assert "in which [ ] hold characters to choose from" in message(paths=("[EN]/*.txt",))
    missing = message("eval", paths=(only,), eval_paths=("no",))
    assert missing.startswith("data.eval_paths: no such file, got no;")


def test_contradicting_keys_are_refused():
    with pytest.raises(ConfigError, match=r"paths: is set although data\.source is stdlib"):
        DataConfig(paths=("a.txt",))
    with pytest.raises(ConfigError, match=r"paths: is empty although data\.source is text"):
        DataConfig(source="text")


def test_a_file_that_changes_after_listing_is_noticed(tmp_path):
    _write(tmp_path, {"a.txt": b"a"})
    found = sources.documents(_text(tmp_path), "all")
    _write(tmp_path, {"a.txt": b"b"})
    with pytest.raises(ConfigError, match=r"a\.txt changed"):
        list(found)


# --- Which files a list of paths names -------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Files under names that mean something to a glob, and other ways to them."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("a,b/1.txt", "books [EN]/2.txt", "books E/3.txt", "x/0/a.txt", "x/1/b.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    (folder / "same").symlink_to("x/0")
    (folder / "link.txt").symlink_to("x/1/b.txt")
    return folder


def files(folder, *paths):
    config = DataConfig(source="text", paths=tuple(f"{folder}/{path}" for path in paths))
    found = sources.documents(config, "all")
    return [name.removeprefix(f"{folder}/") for name in found.names]


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["a,b/1.txt"], ["a,b/1.txt"]),
        (["books [EN]/2.txt"], ["books [EN]/2.txt"]),
        (["books [EN]/*.txt"], ["books [EN]/2.txt"]),
        (["books [[]EN]/*.txt"], ["books [EN]/2.txt"]),
        (["books [EX]/*.txt"], ["books E/3.txt"]),
        (["x/[01]/[ab].txt"], ["x/0/a.txt", "x/1/b.txt"]),
        (
            ["**/*.txt"],
            ["a,b/1.txt", "books E/3.txt", "books [EN]/2.txt", "link.txt", "same/a.txt"],
        ),
        (["x/1/b.txt", "link.txt", "x/./1/b.txt", "x/*/b.txt"], ["x/1/b.txt"]),
        (["same/a.txt", "x/*/*.txt"], ["same/a.txt", "x/1/b.txt"]),
    ],
)
def test_what_is_there_under_a_name_is_no_glob_and_a_file_counts_once(tree, paths, named):
    assert files(tree, *paths) == named


SPELLINGS = ("{}", "./{}", "x/../{}", ".//{}", "{root}/{}", "{root}/x/../{}")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_counts_once_however_it_is_spelled(tree, data):
    targets = ("x/0/a.txt", "same/a.txt", "link.txt", "x/1/b.txt", "a,b/1.txt")
    spelled = st.builds(lambda how, name: how.format(name, root=tree), *map(
        st.sampled_from, (SPELLINGS, targets)))  # fmt: skip
    paths = data.draw(st.lists(spelled, min_size=1, max_size=8))
    with contextlib.chdir(tree):
        found = sources.documents(DataConfig(source="text", paths=tuple(paths)), "all")
        firsts: dict[str, str] = {}
        for path in paths:
            firsts.setdefault(os.path.realpath(path), path)
    assert list(found.names) == list(firsts.values())


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    _write(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    (tmp_path / "c.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    found = sources.documents(_text(tmp_path), "train")
    assert found.description.endswith(f"no file: {tmp_path}/c.txt, {tmp_path}/pipe.txt")
    for name, problem in (("c.txt", "is a link that leads nowhere"), ("pipe.txt", "no regular")):
        with pytest.raises(ConfigError, match=rf"data\.paths: .*{problem}.*, got .*{name}"):
            files(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", bz2.compress(b"text"), "is compressed, .*; gzip or zstd, or unpack it first"),
        ("x.txt", lzma.compress(b"text"), "is compressed"),
        ("x.ZST", b"text", "is not compressed as its name says"),
        ("x.xz", b"text", "is not compressed as its name says"),
        ("x.gz", gzip.compress(b"text " * 99, mtime=0)[:-9], r"can't be read \(.*Truncated"),
        ("x.txt", b"\x28\xb5\x2f\xfd\x04\x00", r"can't be read \("),
    ],
    ids=["bzip2", "xz", "named zst", "named xz", "cut gzip", "cut zstd"],
)
@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_what_cannot_be_unpacked_is_refused(tmp_path, source, name, content, problem):
    _write(tmp_path, {name: content})
    with pytest.raises(ConfigError, match=rf"data\.paths: {problem}"):
        sources.documents(DataConfig(source=source, paths=(f"{tmp_path}/{name}",)), "all")


def test_empty_documents_are_counted(tmp_path):
    _write(tmp_path, {"a.txt": b"a", "b.txt": b"b", "c.txt": b"", "d.txt": b""})
    found = sources.documents(_text(tmp_path), "train")
    assert found.num_empty == 2
    assert found.description.endswith(", 2 without text left out")
    (tmp_path / "x.jsonl").write_text('{"text": ""}\n\n{"text": "a"}\n  \n{"text": "b"}\n')
    config = DataConfig(source="jsonl", paths=(f"{tmp_path}/x.jsonl",))
    assert sources.documents(config, "all").num_empty == 1


# --- One text --------------------------------------------------------------------------------


def split_of(config):
    return [list(sources.documents(config, split)) for split in ("train", "eval")]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    text=st.one_of(
        st.text(alphabet="aé日\U0001f600 \n", min_size=2, max_size=200).map(str.encode),
        st.binary(min_size=5, max_size=200),
    ),
    fraction=st.sampled_from([1e-9, 0.05, 0.3, 0.5, 0.99]),
)
def test_the_end_of_one_text_is_held_out_at_a_line_or_a_character(text, fraction):
    cut = split.end_of_training(text, fraction)
    assert 0 < cut < len(text)
    held_out = len(text) - cut
    assert held_out <= 2 * max(1, round(fraction * len(text))) + 3
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    assert text[:cut].decode() + text[cut:].decode() == text.decode()
    goal = len(text) - max(1, round(fraction * len(text)))
    if b"\n" in text[max(0, 2 * goal - len(text)) : goal]:
        assert text[cut - 1 : cut] == b"\n"


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_one_document_is_trained_on_but_for_its_end(tmp_path, source):
    text = "".join(f"Zeile {i}: größer\n" for i in range(100))
    content = json.dumps({"text": text}) + "\n" if source == "jsonl" else text
    (tmp_path / "one.txt").write_text(content)
    config = DataConfig(source=source, paths=(f"{tmp_path}/one.txt",), eval_fraction=0.1)
    (train,), (held_out,) = split_of(config)
    assert (train.text + held_out.text).decode() == text
    assert held_out.text.startswith(b"Zeile ")
    assert 0.1 <= len(held_out.text) / len(text.encode()) < 0.12
    found = [sources.documents(config, split) for split in ("all", "train", "eval")]
    assert len({documents.fingerprint for documents in found}) == 3
    size = f"{len(held_out.text):,} bytes of the one document"
    assert f"(train: without the last {size}): 1 document, " in found[1].description
    assert f"(eval: the last {size}): 1 document, " in found[2].description


def test_copies_of_one_text_are_cut_alike(tmp_path):
    _write(tmp_path, {"a.txt": b"one\ntwo\n", "b.txt": b"one\ntwo\n"})
    train, held_out = split_of(_text(tmp_path, eval_fraction=0.5))
    assert {document.text for document in train} == {b"one\n"}
    assert {document.text for document in held_out} == {b"two\n"}
    assert (len(train), len(held_out)) == (2, 2)


def test_a_part_of_a_file_that_changed_is_noticed(tmp_path):
    _write(tmp_path, {"a.txt": b"one\ntwo\n"})
    found = sources.documents(_text(tmp_path, eval_fraction=0.5), "eval")
    _write(tmp_path, {"a.txt": b"one\ntwx\n"})
    with pytest.raises(ConfigError, match=r"a\.txt changed"):
        list(found)
