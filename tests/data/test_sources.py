"""Which documents a source holds, how they split, and what it refuses."""

import json
import re

import pytest

from hybrid.config import ConfigError
from hybrid.data import sources
from hybrid.data.config import DataConfig


def _write(folder, texts):
    for name, text in texts.items():
        (folder / name).write_bytes(text)


def _text(folder, **keys):
    return DataConfig(source="text", paths=(f"{folder}/*.txt",), **keys)


def test_stdlib_is_ten_megabytes_of_sources_without_tests_and_generated_files():
    found = sources.documents(DataConfig(), "all")
    names = [reference.name for reference in found.references]
    assert 5e6 < found.num_bytes < 20e6
    assert "ast.py" in names
    assert "asyncio/tasks.py" in names
    assert not {"pydoc_data/topics.py", "encodings/cp1252.py", "token.py"} & set(names)
    assert not [name for name in names if re.search(r"(^|/)(tests?|site-packages)/", name)]
    assert re.search(r"stdlib of Python 3\.\d+\.\d+.*documents.*MB, fingerprint", found.description)


def test_train_and_eval_share_all_documents():
    everything, train, held_out = (
        [r.name for r in sources.documents(DataConfig(), split).references]
        for split in ("all", "train", "eval")
    )
    assert sorted(train + held_out) == sorted(everything)
    assert 0.01 < len(held_out) / len(everything) < 0.12


def test_a_split_does_not_move_when_documents_come_and_go(tmp_path):
    _write(tmp_path, {f"{i}.txt": b"text %d" % i for i in range(60)})
    before = {r.name for r in sources.documents(_text(tmp_path, eval_fraction=0.3), "eval")}
    _write(tmp_path, {"new.txt": b"new", "copy.txt": b"text 3"})
    after = {r.name for r in sources.documents(_text(tmp_path, eval_fraction=0.3), "eval")}
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
        (b"", r"data\.paths: .*x\.jsonl line 1: the file is empty"),
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
    assert f"is a folder, got {tmp_path}; " in message(paths=(str(tmp_path),))
    assert "data.paths: no text" in message(paths=(f"{tmp_path}/empty.txt",))
    assert "data.eval_paths: nothing is left to hold out" in message(paths=(only,))
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
