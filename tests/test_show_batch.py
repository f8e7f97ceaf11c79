"""A packed row is shown as training reads it: read off the lines, compared to the arrays."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from data import chat_folder

from hybrid import experiment, show_batch
from hybrid.data import pipeline
from hybrid.data.tokenizers import ByteTokenizer, load
from hybrid.process import cli
from hybrid.show_batch import Palette, lines, main, spelled

LINE = re.compile(r" *([\d,]+) +(\d+) +([\d,]+) +(\d+)  (.*?) +(> .+|\.)$")


@pytest.fixture
def flags(tmp_path):
    rows = [{"prompt": f"{n} + 1 = ", "completion": f"{n + 1}"} for n in range(9)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {
        "data.source": "jsonl",
        "data.paths": tmp_path / "x.jsonl",
        "data.prompt_field": "prompt",
        "data.cache_dir": tmp_path / "cache",
        "training.context_length": 40,
    }
    page = "--config=configs/tiny.py"
    return [page, *(f"--config.{name}={value}" for name, value in keys.items())]


@pytest.fixture
def shown(capsys):
    def run(*words):
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
@pytest.mark.parametrize("number", [0, 1, 7])  # 7: of a later epoch
def test_the_lines_are_the_row_that_training_reads(flags, shown, packing, number):
    flags = [*flags, f"--config.data.packing={packing}"]
    out = shown(*flags, f"--row={number}")
    overrides = cli.parse(show_batch.COMMAND, flags).overrides
    loaded = experiment.load("configs/tiny.py", overrides)
    rows = pipeline.open_rows(loaded.data, context_length=40, seed=0, vocab_size=259)
    row = rows.row(number)
    found = [match.groups() for match in map(LINE.fullmatch, out.splitlines()) if match]
    num_real = int((row["segment_ids"] > 0).sum())
    assert [int(line[0]) for line in found] == list(range(num_real))
    for column, name in ((1, "segment_ids"), (2, "positions"), (3, "tokens")):
        assert [int(line[column]) for line in found] == row[name][:num_real].tolist()
    assert [line[5] != "." for line in found] == row["loss_mask"][:num_real].tolist()
    predicted = spelled(ByteTokenizer(), row["targets"][row["loss_mask"]])
    assert [line[5][2:] for line in found if line[5] != "."] == predicted
    assert f"{row['loss_mask'].mean():.1%} predicted ({row['loss_mask'].sum()})" in out
    assert f"{1 - num_real / 40:.1%} padding ({40 - num_real})" in out
    assert "\033" not in out


def test_documents_are_named_by_the_segments_they_are(flags, shown, tmp_path):
    out = shown(*flags, "--config.data.packing=best_fit")
    names = re.findall(r"segment (\d+): .*x\.jsonl:(\d+)$", out, re.MULTILINE)
    begins = re.findall(r"257  <bos> .*\n.* (\d+)  '(\d)' ", out)
    assert [int(line) - 1 for _, line in names] == [int(digit) for _, digit in begins]
    assert [int(segment) for segment, _ in names] == list(range(1, 1 + len(names)))
    joined = shown(*flags, "--config.data.cross_document=true")
    assert re.search(r"^1 segment of \d documents: .*x\.jsonl:\d, ", joined, re.MULTILINE)


def test_rows_under_every_policy_of_bos_have_a_name_for_each_segment(flags):
    for bos in ("document", "window", "never"):
        for length in range(2, 14):
            words = [
                *flags,
                f"--config.data.bos={bos}",
                f"--config.training.context_length={length}",
            ]
            overrides = cli.parse(show_batch.COMMAND, words).overrides
            data = experiment.load("configs/tiny.py", overrides).data
            rows = pipeline.open_rows(data, context_length=length, seed=0, vocab_size=259)
            for number in range(rows.num_rows):
                assert len(rows.names(number)) == rows.row(number)["segment_ids"].max()


def test_a_tasks_row_shows_ids_and_what_is_asked(shown):
    keys = ("data.source=needle", "training.context_length=16", "model.vocab_size=300")
    out = shown("--config=configs/tiny.py", *(f"--config.{key}" for key in keys))
    asked = [match for match in map(LINE.fullmatch, out.splitlines()) if match and match[6] != "."]
    assert [int(match[1]) for match in asked] == [15]
    assert "6.2% predicted (1)" in out


def test_colours_are_for_terminals_that_take_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    palette = Palette.of(Terminal())
    assert palette.predicted.startswith("\033[")
    assert Palette.of(io.StringIO()) == Palette()
    row = {
        "segment_ids": np.array([1, 2, 0]),
        "positions": np.array([0, 0, 0]),
        "tokens": np.array([65, 66, 0]),
        "loss_mask": np.array([True, False, False]),
    }
    words = row, ("a.txt", "b.txt"), ("'A'", "'B'", ""), ("'a'", "'b'", "")
    coloured, plain = ("\n".join(lines(*words, p)) for p in (palette, Palette()))
    assert re.sub("\033\\[[0-9;]*m", "", coloured) == plain
    assert coloured.count(palette.segments[0]) == coloured.count(palette.segments[1]) == 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert Palette.of(Terminal()) == Palette()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Palette.of(Terminal()) == Palette()


def test_tokens_are_spelled_with_their_spaces_and_control_tokens(tmp_path):
    tokenizer = load(str(chat_folder.write(tmp_path / "folder")))
    text = "<start_of_turn>user\nthe cat ö it"
    ids = tokenizer.encode_parsed(text)
    found = spelled(tokenizer, ids)
    assert found[0] == "<start_of_turn>"
    assert "".join([found[0], *(piece[1:-1] for piece in found[1:])]) == text.replace("\n", "\\n")
    assert spelled(ByteTokenizer(), np.array([257, *"ö".encode(), 258])) == [
        "<bos>",
        "''",
        "'ö'",
        "<eos>",
    ]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([], "--config"),
        (["--config=configs/tiny.py", "--row=-1"], "--row"),
        (["--config=configs/tiny.py", "--config.data.prompt_field=x"], "data.prompt_field"),
        (["--config=configs/tiny.py", "--config.data.source=text"], "data.paths"),
    ],
)
def test_what_is_wrong_is_one_line_with_status_2(words, key, tmp_path):
    command = [sys.executable, "-m", "hybrid.show_batch", *words]
    words = [*command, f"--config.data.cache_dir={tmp_path}/cache"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {key}[: ].*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_mixtures_rows_are_those_of_its_steps(tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name * 40}\n" * 40)
    mixture = [{"name": name, "paths": f"{tmp_path}/{name}.txt"} for name in "ab"]
    page = [
        "--config=configs/tiny.py",
        f"--config.data.cache_dir={tmp_path}/cache",
        f"--config.data.mixture={mixture}",
        "--config.data.mixture_schedule=((0, (1, 0)), (1, (0, 1)))",
        "--config.training.batch_size=4",
        "--config.training.context_length=32",
    ]
    for row, name in ((3, "a.txt"), (4, "b.txt")):
        assert main([*page, f"--row={row}"]) == 0
        assert f"{tmp_path}/{name}" in capsys.readouterr().out
    capped = [{**source, "epochs": 0.1} for source in mixture]
    page[2:4] = [f"--config.data.mixture={capped}"]
    assert main([*page, "--row=1000"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --row: is behind the last row of the mixture, got 1000; below ")


def test_a_tokenizer_without_control_tokens_has_no_bytes_names(tmp_path):
    import tokenizers as hf

    own = hf.Tokenizer(hf.models.WordLevel({f"w{n}": n for n in range(300)}, unk_token="w0"))
    own.save(str(tmp_path / "tokenizer.json"))
    found = spelled(load(str(tmp_path / "tokenizer.json")), np.array([255, 256, 257]))
    assert not any("<" in name for name in found)
