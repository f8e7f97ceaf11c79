"""The same documents from every kind of file, and one line for what is wrong with one."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from hybrid.config import ConfigError
from hybrid.data import sources
from hybrid.data.config import DataConfig

TEXTS = [f"Zeile {i}: größer, 日本語 {'x' * i}" for i in range(600)]


def lines(texts=TEXTS):
    return "".join(json.dumps({"n": i, "body": text}) + "\n" for i, text in enumerate(texts))


def write_arrow(path, table):
    """As `datasets` saves a table: a stream."""
    with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=100)


def saved(folder, tables):
    """A folder as `Dataset.save_to_disk` leaves it."""
    folder.mkdir()
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_arrow(folder / name, table)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """All documents in every form."""
    folder = tmp_path_factory.mktemp("tree")
    table = pyarrow.table({"n": range(len(TEXTS)), "body": TEXTS})
    (folder / "plain.jsonl").write_text(lines())
    (folder / "packed.jsonl.gz").write_bytes(
        gzip.compress(lines(TEXTS[:300]).encode()) + gzip.compress(lines(TEXTS[300:]).encode())
    )
    with pyarrow.CompressedOutputStream(str(folder / "packed.jsonl.zst"), "zstd") as file:
        file.write(lines().encode())
    (folder / "many").mkdir()
    for start in range(0, 600, 200):
        text = lines(TEXTS[start : start + 200])
        (folder / "many" / f"{start}.jsonl").write_text(text)
    (folder / "many" / "README.md").write_text("no lines of JSON")
    (folder / "many" / ".hidden.jsonl").write_text("no lines of JSON")
    pyarrow.parquet.write_table(table, folder / "table.parquet", row_group_size=250)
    saved(folder / "saved", [table[:350], table[350:]])
    (folder / "splits").mkdir()
    saved(folder / "splits" / "train", [table])
    (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("jsonl", "plain.jsonl"),
        ("jsonl", "packed.jsonl.gz"),
        ("jsonl", "packed.jsonl.zst"),
        ("jsonl", "many"),
        ("jsonl", "many/*.jsonl"),
        ("parquet", "table.parquet"),
        ("datasets", "saved"),
        ("datasets", "splits/train"),
        ("datasets", "splits/*/*.arrow"),
    ],
)
def test_every_form_holds_the_same_documents(tree, source, path):
    config = DataConfig(source=source, paths=(f"{tree}/{path}",), text_field="body")
    found = sources.documents(config, "all")
    assert sorted(document.text.decode() for document in found) == sorted(TEXTS)
    plain = DataConfig(source="jsonl", paths=(f"{tree}/plain.jsonl",), text_field="body")
    assert found.fingerprint == sources.documents(plain, "all").fingerprint
    train, held_out = (sources.documents(config, split) for split in ("train", "eval"))
    assert len(train) + len(held_out) == len(TEXTS)
    assert {document.text for document in held_out} == {
        document.text for document in sources.documents(plain, "eval")
    }
    if path != "many":
        assert found.names[0].rpartition(":")[2] == "1"


def test_compressed_text_is_a_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"two"))  # whatever its name says
    config = DataConfig(source="text", paths=(str(tmp_path),))
    assert [document.text for document in sources.documents(config, "all")] == [b"one", b"two"]


def test_hugging_face_datasets_saves_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": TEXTS[:50]})
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    config = DataConfig(source="datasets", paths=(str(tmp_path / "saved"),))
    found = sources.documents(config, "all")
    assert [document.text.decode() for document in found] == TEXTS[:50]


@pytest.mark.parametrize(
    ("source", "path", "keys", "message"),
    [
        ("parquet", "table.parquet", {}, r"text_field: .*no such field, got text; .*: n, body"),
        ("parquet", "table.parquet", {"text_field": "n"}, r"row 1 holds no text there, got 0"),
        ("parquet", "plain.jsonl", {}, r"data\.paths: can't be read as parquet \("),
        ("datasets", "plain.jsonl", {}, r"data\.paths: can't be read as an Arrow stream \("),
        ("datasets", "splits", {}, r"data\.paths: holds several splits, got .*splits/train"),
        ("datasets", "many", {}, r"data\.paths: holds no file of datasets, .*; files of \.arrow"),
        ("jsonl", "saved", {}, r"data\.text_field|data\.paths"),
        ("parquet", "none.parquet", {}, r"data\.paths: no such file, got .*none\.parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tree, source, path, keys, message):
    config = DataConfig(source=source, paths=(f"{tree}/{path}",), **keys)
    with pytest.raises(ConfigError, match=message) as caught:
        sources.documents(config, "all")
    assert "\n" not in str(caught.value)


def test_a_table_with_holes_or_without_rows_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    config = DataConfig(source="parquet", paths=(str(path),))
    for values, message in ((["a", None], "row 2 holds no text"), ([], "no text in these files")):
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(values, "str")}), path)
        with pytest.raises(ConfigError, match=message):
            sources.documents(config, "all")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"can't be read as parquet"):
        sources.documents(config, "all")


def test_a_folder_of_text_holds_all_files_below_but_hidden_ones(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c", ".hidden"):
        (tmp_path / name).write_text(name)
    config = DataConfig(source="text", paths=(str(tmp_path), f"{tmp_path}/a.md"))
    names = [os.path.relpath(name, tmp_path) for name in sources.documents(config, "all").names]
    assert names == ["a.md", "b.txt", "sub/c"]
    (tmp_path / "empty").mkdir()
    config = DataConfig(source="text", paths=(f"{tmp_path}/empty",))
    with pytest.raises(ConfigError, match=r"data\.paths: holds no file of text, got .*empty"):
        sources.documents(config, "all")


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/c.txt").write_text("c")
    (tmp_path / "text/sub").mkdir(parents=True)
    (tmp_path / "text/a.txt").write_text("a")
    (tmp_path / "text/link").symlink_to("../there")
    (tmp_path / "text/sub/up").symlink_to("..")
    config = DataConfig(source="text", paths=(f"{tmp_path}/text",))
    names = [os.path.relpath(name, tmp_path) for name in sources.documents(config, "all").names]
    assert names == ["text/a.txt", "text/link/c.txt"]


def test_an_empty_file_among_others_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    (tmp_path / "b.jsonl").write_text("")
    assert len(sources.documents(DataConfig(source="jsonl", paths=(str(tmp_path),)), "all")) == 1


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    column = pyarrow.array(["a", "b"])
    table = pyarrow.Table.from_arrays([column, column], ["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    config = DataConfig(source="parquet", paths=(str(tmp_path),))
    with pytest.raises(ConfigError, match=r"data\.text_field: .* several columns of the name"):
        sources.documents(config, "all")


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ['{"epoch": 1}', "[]", '{"_data_files": [3], "splits": 1}'])
def test_a_saved_folder_of_another_form_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    config = DataConfig(source="datasets", paths=(str(tmp_path),))
    with pytest.raises(ConfigError, match=rf"data\.paths: lists no .*{name}"):
        sources.documents(config, "all")


def test_the_folder_around_saved_ones_holds_what_these_list(tmp_path):
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
        table = pyarrow.table({"text": [f"{part} text"]})
        for file in ("d.arrow", "cache-1.arrow"):
            with pyarrow.ipc.new_stream(str(tmp_path / part / file), table.schema) as writer:
                writer.write_table(table)
    config = DataConfig(source="datasets", paths=(str(tmp_path),))
    assert len(sources.documents(config, "all")) == 2


def test_zstd_may_begin_with_a_frame_to_skip(tmp_path):
    packed = pyarrow.compress(b"a text", codec="zstd", asbytes=True)
    (tmp_path / "a.txt.zst").write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + packed)
    found = sources.documents(DataConfig(source="text", paths=(str(tmp_path),)), "all")
    assert [document.text for document in found] == [b"a text"]
