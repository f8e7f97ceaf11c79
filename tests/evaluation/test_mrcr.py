"""MRCR: rows of the public form, conversations made by rule, the published score, its floors."""

import dataclasses
import difflib
import hashlib
import json
import re

import pytest
from test_retrieval import ONE_ROW, evaluated, samples, workdir  # noqa: F401  (fixtures)

from hybrid.config import ConfigError
from hybrid.data.tasks.example import Draws
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.evaluation.config import RetrievalConfig
from hybrid.evaluation.retrieval import mrcr, mrcr_made, mrcr_rows
from hybrid.evaluation.retrieval.prompts import Encoder, plain
from hybrid.evaluation.retrieval.sample import Request

ENCODER = Encoder(ByteTokenizer(), 257, 264)


def made(num_needles=4, size=20, index=0, seed=0):
    return mrcr_made.conversation(Request(f"mrcr {seed}", index, 0), num_needles, size)


def row(num_needles=2, size=5, index=0, **changes):
    """A made conversation as a row of the public form."""
    held = made(num_needles, size, index)
    roles = "user", "assistant"
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(held.turns)]
    wanted = held.answer.removeprefix(held.random_string)
    return {
        "prompt": json.dumps(messages),
        "answer": held.answer,
        "random_string_to_prepend": held.random_string,
        "n_needles": num_needles,
        "desired_msg_index": held.turns.index(wanted),
        "total_messages": len(messages),
        "n_chars": sum(map(len, held.turns)),
        "date_added": "2025-04-12",
    } | changes


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- Score, bins, floors -----------------------------------------------------------------------


def test_the_score_is_the_published_one():
    assert mrcr.score("Xy1abc", "Xy1abc", "Xy1") == 1
    assert mrcr.score("abc", "Xy1abc", "Xy1") == 0  # no random string
    assert mrcr.score(" Xy1abc", "Xy1abc", "Xy1") == 0  # white space is not stripped
    assert mrcr.score("Xy1", "Xy1abc", "Xy1") == 0
    ratio = difflib.SequenceMatcher(None, "abx\n", "abc").ratio()
    assert mrcr.score("Xy1abx\n", "Xy1abc", "Xy1") == ratio == pytest.approx(4 / 7)


# The example conversation of the data set's card (openai/mrcr, README.md): its question asks to
# prepend aYooSG8CQg, and its answer is this. The card's grade() is the ratio 2·M/T of difflib.
STRING, ANSWER = "aYooSG8CQg", "aYooSG8CQg(2nd poem about tapirs)"
GRADES = {
    ANSWER: 1,
    f"{STRING}(1st poem about tapirs)": 2 * 20 / 46,  # "(" and " poem about tapirs)" match
    f"{STRING}(2nd poem about tapirs": 2 * 22 / 45,
    f"{ANSWER}\n": 2 * 23 / 47,  # nothing is stripped
    f"{STRING}{ANSWER}": 2 * 23 / 56,  # the string is taken off once
    STRING: 0,
    "": 0,
    "(2nd poem about tapirs)": 0,  # no string
    f"Sure: {ANSWER}": 0,  # not in front
    f"\n{ANSWER}": 0,
    ANSWER.lower(): 0,  # another string
}


@pytest.mark.parametrize("reply", GRADES)
def test_replies_to_the_cards_example_get_the_cards_grade(reply):
    assert mrcr.score(reply, ANSWER, STRING) == pytest.approx(GRADES[reply], abs=1e-12)


def test_the_ratio_has_difflibs_heuristic_for_long_texts():
    """Characters that are more than 1 % of an answer of 200 and more begin no match."""
    long = "ab" * 100
    assert mrcr.score(f"k{long}", f"k{long}", "k") == 1
    assert mrcr.score(f"kx{long}", f"k{long}", "k") == 0
    assert mrcr.score(f"kx{long[:-2]}", f"k{long[:-2]}", "k") == pytest.approx(2 * 198 / 397)


@pytest.mark.parametrize(
    ("tokens", "end"),  # the card: [4096, 8192], (8192, 16384], …, (524288, 1048576]
    [
        *((4096, 8192), (4097, 8192), (8192, 8192), (8193, 16_384), (131_072, 131_072)),
        *((131_073, 262_144), (524_288, 524_288), (524_289, 1_048_576), (1_048_576, 1_048_576)),
    ],
)
def test_bins_hold_their_upper_end(tokens, end):
    assert mrcr.bin_end(tokens) == end


def test_the_floors_are_replies_of_the_conversation():
    held = made(num_needles=3, size=12)
    assert mrcr.random_reply(held, Draws("x", 0)) in held.turns[1::2]
    relevant = mrcr.most_relevant_reply(held)
    asked = re.search(r"indexed\) (.*)\. Do not", held.turns[-1])[1]
    places = [i for i, turn in enumerate(held.turns[:-1:2]) if turn.endswith(f"write a {asked}")]
    assert relevant == held.turns[2 * places[-1] + 1]
    assert len(places) == 3


# --- Conversations made by rule ----------------------------------------------------------------


@pytest.mark.parametrize("num_needles", [1, 2, 4, 8])
def test_a_made_conversation_asks_for_one_of_identical_requests(num_needles):
    for index in range(4):
        held = made(num_needles, 30, index)
        assert len(held.turns) == 2 * (30 + num_needles) + 1
        question = r"Prepend (\w{10}) to the (\d)\w\w \(1 indexed\) (.*)\. Do not include"
        random_string, ordinal, asked = re.match(question, held.turns[-1]).groups()
        requests = [turn.split("conversation:\n\n")[-1] for turn in held.turns[:-1:2]]
        places = [i for i, turn in enumerate(requests) if turn == f"write a {asked}"]
        assert len(places) == num_needles
        wanted = held.turns[2 * places[int(ordinal) - 1] + 1]
        assert held.answer == random_string + wanted
        assert held.random_string == random_string
        assert held.turns.count(wanted) == 1
        form, topic = asked.split(" about ")
        others = [turn for turn in requests if turn != f"write a {asked}"]
        assert sum(f"a {form} about" in turn for turn in others) >= 30 // 4
        assert sum(turn.endswith(f"about {topic}") for turn in others) >= 30 // 4
        assert "======EXAMPLE======" in held.turns[0]


def test_a_seed_gives_the_same_conversations():
    texts = repr([made(), made(8, 40, 3)])
    digest = hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()
    assert digest == "503813e184b06477"
    assert made(seed=1).answer != made().answer


def test_made_conversations_fill_their_length():
    for length in (4000, 9000):
        config = RetrievalConfig(tasks=("mrcr",), lengths=(length,), num_needles=(2,))
        (group,) = mrcr.groups(config, ENCODER)
        assert (group.task, group.length) == ("mrcr_2needle", length)
        prompt = group.make(1)
        assert length - 700 < len(prompt.ids) + prompt.tokens_to_generate <= length
        assert prompt.score(prompt.references[0]) == 1
        assert set(prompt.floors) == {"random", "most relevant"}
        assert all(0 <= floor <= 1 for floor in prompt.floors.values())
    config = RetrievalConfig(tasks=("mrcr",), lengths=(500,))
    with pytest.raises(ConfigError, match=r"^eval.retrieval.lengths: is too short for mrcr_2"):
        next(mrcr.groups(config, ENCODER)).make(0)


def test_turns_without_a_chat_template_have_names():
    assert plain(["a", "b", "c"]) == "User: a\nAssistant: b\nUser: c\nAssistant: "
    assert plain(["a"]) == "a"


# --- Rows of files -----------------------------------------------------------------------------


def test_rows_are_sorted_into_bins_by_needles(tmp_path):
    rows = [row(2, 60, 0), row(2, 70, 1), row(4, 60, 2), row(8, 200, 3), row(2, 400, 4)]
    path = write(tmp_path / "rows.jsonl", rows)
    config = RetrievalConfig(
        tasks=("mrcr",), mrcr_paths=(path,), lengths=(8192,), num_needles=(2, 4)
    )
    found = [(group.task, group.length, group.count) for group in mrcr.groups(config, ENCODER)]
    ends = [mrcr.bin_end(mrcr.estimated_tokens(made(n, s, i))) for n, s, i in
            ((2, 60, 0), (2, 70, 1), (4, 60, 2), (2, 400, 4))]  # fmt: skip
    assert max(ends[:3]) <= 8192 < ends[3]  # the last is beyond the longest length
    assert sum(count for task, _, count in found if task == "mrcr_2needle") == 2
    assert sum(count for task, _, count in found if task == "mrcr_4needle") == 1
    assert all(task != "mrcr_8needle" for task, _, _ in found)
    prompt = next(mrcr.groups(config, ENCODER)).make(0)
    assert ByteTokenizer().decode(prompt.ids).endswith("in your response.\nAssistant: ")
    short = RetrievalConfig(tasks=("mrcr",), mrcr_paths=(path,), lengths=(64,))
    smallest = rf"^eval.retrieval.lengths: no row .*, got 64; at least {min(ends)}, the smallest"
    with pytest.raises(ConfigError, match=smallest):
        list(mrcr.groups(short, ENCODER))
    other = dataclasses.replace(config, num_needles=(1, 3))
    with pytest.raises(ConfigError, match=r"^eval.retrieval.num_needles: .*; they have 2, 4, 8$"):
        list(mrcr.groups(other, ENCODER))
    empty = dataclasses.replace(config, mrcr_paths=(write(tmp_path / "empty.jsonl", []),))
    with pytest.raises(ConfigError, match=r"^eval.retrieval.mrcr_paths: hold no row"):
        list(mrcr.groups(empty, ENCODER))


def test_bins_count_what_is_asked_for(tmp_path):
    """Characters / 4.9, as published without its tokenizer; or a tokenizer's tokens."""
    held = made(2, 20)
    num_bytes = sum(len(turn.encode()) for turn in (*held.turns, held.answer))
    count = mrcr.token_counter("", ENCODER.tokenizer)
    assert count(held) == pytest.approx(num_bytes / 4.9, abs=1)
    assert mrcr.token_counter("own", ENCODER.tokenizer)(held) == num_bytes
    path = write(tmp_path / "rows.jsonl", [row(2, 20)])
    ends = {}
    for name in ("", "own"):
        config = RetrievalConfig(
            tasks=("mrcr",), mrcr_paths=(path,), lengths=(8192,), mrcr_tokenizer=name
        )
        (group,) = mrcr.groups(config, ENCODER)
        ends[name] = group.length
    assert ends == {"": mrcr.bin_end(round(num_bytes / 4.9)), "own": mrcr.bin_end(num_bytes)}
    assert ends[""] < ends["own"]
    with pytest.raises(ConfigError, match=r"^eval\.retrieval\.mrcr_tokenizer: no such file"):
        mrcr.token_counter(str(tmp_path / "nowhere.json"), ENCODER.tokenizer)


def test_replies_end_with_the_table_of_learned_positions(tmp_path):
    held = row(2, 5)
    config = RetrievalConfig(
        tasks=("mrcr",), mrcr_paths=(write(tmp_path / "rows.jsonl", [held]),), lengths=(8192,)
    )
    whole = next(mrcr.groups(config, ENCODER)).make(0)
    assert whole.tokens_to_generate == len(held["answer"]) + mrcr.SPARE_TOKENS
    needed = len(whole.ids) + len(held["answer"])
    for positions, spare in ((needed + 99, mrcr.SPARE_TOKENS), (needed + 3, 3), (needed, 0)):
        encoder = dataclasses.replace(ENCODER, learned_positions=positions)
        prompt = next(mrcr.groups(config, encoder)).make(0)
        assert prompt.tokens_to_generate == len(held["answer"]) + spare
    encoder = dataclasses.replace(ENCODER, learned_positions=needed - 1)
    with pytest.raises(ConfigError, match=rf"row of {needed} tokens, beyond") as caught:
        list(mrcr.groups(config, encoder))
    assert caught.value.key == "eval.retrieval.lengths"


MALFORMED = {
    "answer": [{"answer": "no random string"}, {"answer": 3}, {"answer": None}],
    "random_string_to_prepend": [
        {"random_string_to_prepend": 7}, {"random_string_to_prepend": "a\ud800"},
    ],
    "n_needles": [{"n_needles": "2"}, {"n_needles": 0}, {"n_needles": True}],
    "desired_msg_index": [{"desired_msg_index": place} for place in (99, -1, 0, 2)],
    "total_messages": [{"total_messages": 1.5}],
    "n_chars": [{"n_chars": None}],
    "prompt": [
        {"prompt": "{"}, {"prompt": "[]"}, {"prompt": "3"},
        {"prompt": json.dumps([{"role": "user", "content": "a"}] * 3)},
        {"prompt": json.dumps([{"role": "user"}, {"role": "assistant"}, {"role": "user"}])},
        {"prompt": json.dumps([{"role": "user", "content": "a"}] * 2)},
        {"prompt": row()["prompt"].replace("write", "\\ud800")},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "changes"), [(name, each) for name, cases in MALFORMED.items() for each in cases]
)
def test_a_malformed_row_is_refused_by_its_number_and_column(tmp_path, column, changes):
    path = write(tmp_path / "rows.jsonl", [row(), row(**changes)])
    with pytest.raises(ConfigError, match=rf"{path} row 2 column {column}: ") as caught:
        list(mrcr_rows.read((path,)))
    assert caught.value.key == "eval.retrieval.mrcr_paths"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [*mrcr_rows.TEXTS, *mrcr_rows.NUMBERS])
def test_a_missing_column_is_named(tmp_path, column):
    held = row()
    del held[column]
    with pytest.raises(ConfigError, match=f"row 1 lacks column {column}"):
        list(mrcr_rows.read((write(tmp_path / "rows.jsonl", [held]),)))


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        list(mrcr_rows.read((str(tmp_path / "*.parquet"),)))
    for name, said in (("a.csv", "has another ending"), ("b.jsonl", "row 1 is not JSON")):
        (tmp_path / name).write_text("{\n")
        with pytest.raises(ConfigError, match=said):
            list(mrcr_rows.read((str(tmp_path / name),)))
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(ConfigError, match=r"is no Parquet file"):
        list(mrcr_rows.read((str(tmp_path / "c.parquet"),)))


def test_parquet_and_json_lines_hold_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [row(2, 6, index) for index in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write(tmp_path / "rows.jsonl", rows)
    read = [list(mrcr_rows.read((f"{tmp_path}/*.{end}",))) for end in ("parquet", "jsonl")]
    assert read[0] == read[1]
    assert len(read[0]) == 3


def test_columns_of_parquet_that_nothing_needs_are_not_read(tmp_path):
    """A date may be one that Python has none for."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([row(2, 6)]).drop_columns(["date_added"])
    dates = pyarrow.array([2**62], pyarrow.timestamp("us"))
    parquet.write_table(table.append_column("date_added", dates), tmp_path / "rows.parquet")
    assert len(list(mrcr_rows.read((f"{tmp_path}/rows.parquet",)))) == 1
    place = table.schema.get_field_index("answer")
    parquet.write_table(table.set_column(place, "answer", dates), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        list(mrcr_rows.read((f"{tmp_path}/rows.parquet",)))


# --- The command -------------------------------------------------------------------------------


def test_scores_stand_beside_their_floors(evaluated, tmp_path):  # noqa: F811
    path = write(tmp_path / "rows.jsonl", [row(2, 1, 0), row(2, 1, 0)])
    flags = [f"mrcr_paths={path}", "lengths=1024", "num_needles=2"]
    flags = [f"--config.eval.retrieval.{flag}" for flag in flags]
    result, shown = evaluated("--config=configs/mrcr.py", *flags, ONE_ROW)
    (group,) = result["groups"]
    assert (group["task"], group["num_samples"]) == ("mrcr_2needle", 2)
    kept = samples(tmp_path)
    for floor in ("random", "most relevant"):
        mean = sum(each["floors"][floor] for each in kept) / 2
        assert group["floors"][floor] == pytest.approx(100 * mean)
        assert f"{floor} reply" in shown
    assert group["score"] == 0  # two steps of training teach nothing
