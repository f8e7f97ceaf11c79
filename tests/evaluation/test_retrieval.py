"""Retrieval by `eval.py`: replies of a small run, scored, kept and gone on with."""

import json
import os
import re

import numpy as np
import pytest
from data import chat_folder
from pretrained import tiny_folder
from test_task_run import train

from hybrid import config as config_lib
from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.data import chat, tokenizers
from hybrid.data.config import NeedleConfig
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.evaluation.__main__ import main
from hybrid.evaluation.config import NEEDLES, RULER, RetrievalConfig
from hybrid.evaluation.retrieval import command, report, ruler
from hybrid.evaluation.retrieval.benchmark import Benchmark, benchmark
from hybrid.evaluation.retrieval.prompts import Encoder, Group, Maker, Prompt
from hybrid.evaluation.retrieval.result import GroupScore, summarized
from hybrid.evaluation.retrieval.run import run as run_groups
from hybrid.evaluation.retrieval.sample_log import SampleLog, Scored
from hybrid.evaluation.target import Target
from hybrid.origin import Origin
from hybrid.workdir import checkpoint, checksums

ONE_ROW = "--config.eval.batch_size=1"  # one shape of arrays, which is compiled once
SMALL = (
    "--config.eval.retrieval.lengths=1200,700",
    "--config.eval.retrieval.num_samples=3",
    ONE_ROW,
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of two steps on needles."""
    return train(tmp_path_factory.mktemp("run") / "workdir")


@pytest.fixture
def evaluated(workdir, tmp_path, capsys):
    """Runs the command and gives its JSON and what it shows."""

    def evaluate(*flags, name="result.json"):
        output = tmp_path / name
        status = main([f"--workdir={workdir}", f"--output={output}", *flags])
        shown, log = capsys.readouterr()
        assert status == 0, log
        return json.loads(output.read_text()), shown

    return evaluate


def samples(folder, name="result"):
    lines = (folder / f"{name}.samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_a_task_is_scored_at_every_length(evaluated, tmp_path):
    result, shown = evaluated("--config=configs/ruler.py:niah_single_1", *SMALL)
    groups = [(each["task"], each["length"], each["num_samples"]) for each in result["groups"]]
    assert groups == [("niah_single_1", 1200, 3), ("niah_single_1", 700, 3)]
    for each in result["groups"]:
        assert 0 <= each["low"] <= each["score"] <= each["high"] <= 100
    assert [each["length"] for each in result["by_length"]] == [700, 1200]
    assert (result["seed"], result["step"], result["bos"]) == (42, 2, "document")
    assert result["effective_length"] is None  # two steps teach nothing
    assert "niah_single_1" in shown
    assert "effective length none" in shown
    kept = samples(tmp_path)
    assert [(each["length"], each["index"]) for each in kept] == [
        (length, index) for length in (1200, 700) for index in range(3)
    ]
    assert all(each["num_tokens"] + 128 <= each["length"] for each in kept)
    assert all(len(each["reply"].encode()) <= 3 * 128 for each in kept)


def test_a_run_that_was_stopped_goes_on(evaluated, tmp_path, monkeypatch):
    whole, _ = evaluated("--config=configs/ruler.py:niah_single_1", *SMALL)
    path = tmp_path / "result.samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # a kill while the fifth was written
    again, _ = evaluated("--config=configs/ruler.py:niah_single_1", *SMALL)
    assert again == whole
    assert path.read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    assert len(samples(tmp_path)) == 6
    monkeypatch.setattr("hybrid.evaluation.retrieval.run._score", None)  # all is there
    again, _ = evaluated("--config=configs/ruler.py:niah_single_1", *SMALL)
    assert again == whole


def test_more_samples_and_lengths_are_added_to_those_that_are_there(evaluated, tmp_path):
    few = ("--config.eval.retrieval.lengths=700", "--config.eval.retrieval.num_samples=1", ONE_ROW)
    evaluated("--config.eval.retrieval.tasks=niah_single_1", *few)
    before = samples(tmp_path)
    result, _ = evaluated("--config.eval.retrieval.tasks=niah_single_1", *SMALL)
    assert len(result["groups"]) == 2
    assert samples(tmp_path)[0] == before[0]
    assert len(samples(tmp_path)) == 6


def test_samples_of_another_seed_are_not_gone_on_with(evaluated, workdir, tmp_path, capsys):
    evaluated("--config=configs/ruler.py:niah_single_1", *SMALL)
    flags = ["--config=configs/ruler.py:niah_single_1", *SMALL, "--config.eval.retrieval.seed=1"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([f"--workdir={workdir}", f"--output={tmp_path}/result.json", *flags]) == 2
    (line,) = re.findall("error: .*", capsys.readouterr().err)
    assert line.startswith("error: --output: the samples beside it")
    assert "are of another eval.retrieval.seed (42), got 1; " in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


REFUSED = {
    "eval.retrieval.tasks": ["tasks=niah_single_9"],
    "eval.retrieval.lengths": ["tasks=niah_single_1", "lengths=300"],
    "eval.retrieval.squad_path": ["tasks=qa_1"],
    "eval.retrieval.hotpotqa_path": ["tasks=qa_2", "hotpotqa_path=nowhere.json"],
    "eval.retrieval.depths": ["tasks=needle_noise", "depths=101"],
    "eval.retrieval.chat_template": ["tasks=vt", "chat_template=true"],
    "eval.retrieval.num_needles": ["tasks=mrcr", "num_needles=2,4,2"],
    "eval.long_perplexity.judge": ["tasks=vt"],
    "--per_token": ["tasks=niah_single_1"],
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_wrong_is_refused_in_one_line_and_nothing_is_created(
    workdir, tmp_path, capsys, monkeypatch, key
):
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.eval.retrieval.{setting}" for setting in REFUSED[key]]
    flags += ["--per_token=nats"] if key == "--per_token" else []
    flags += [f"--config.{key}={workdir}"] if key == "eval.long_perplexity.judge" else []
    assert main([f"--workdir={workdir}", "--output=result.json", *flags]) == 2
    shown, log = capsys.readouterr()
    assert shown == ""
    assert log.startswith(f"error: {key}: ")
    assert log.count("\n") == 1
    assert os.listdir(tmp_path) == []


# --- Without a model ---------------------------------------------------------------------------


def maker(**keys):
    encoder = Encoder(ByteTokenizer(), 257, 264)
    return Maker(RetrievalConfig(**keys), encoder, ("A sentence.",) * 9, NeedleConfig())


def test_the_names_of_tasks_are_those_of_the_table():
    assert tuple(ruler.TASKS) == RULER


def test_groups_come_by_task_length_and_depth():
    tasks = ("vt", "needle_keys")
    groups = list(maker(tasks=tasks, lengths=(2000, 90), depths=(0.0, 50.0)).groups())
    assert [(group.task, group.length, group.depth) for group in groups] == [
        ("vt", 2000, None), ("vt", 90, None), ("needle_keys", 2000, 0), ("needle_keys", 2000, 50),
        ("needle_keys", 90, 0), ("needle_keys", 90, 50),
    ]  # fmt: skip


@pytest.mark.parametrize(("depth", "place"), [(0, 1), (50, 50), (100, 98)])
def test_a_key_and_its_value_stand_at_the_depth(depth, place):
    (group,) = maker(tasks=("needle_keys",), lengths=(100,), depths=(float(depth),)).groups()
    prompt = group.make(3)
    assert len(prompt.ids) == 100
    assert prompt.ids[place - 1] == prompt.ids[-1]
    assert prompt.score(str(prompt.ids[place])) == 1
    assert prompt.score("0") == 0


def test_the_seed_decides_all_prompts_and_no_length_or_depth_does():
    keys = {"tasks": ("needle_keys", "needle_noise", "vt"), "lengths": (2000,), "depths": (50.0,)}

    def answers(**changes):
        return [group.make(1).references for group in maker(**(keys | changes)).groups()]

    assert answers() == answers(depths=(100.0,)) == answers(lengths=(3000,))
    pairs = zip(answers(), answers(seed=2**40), strict=True)
    assert all(one != other for one, other in pairs)


@pytest.mark.parametrize(("task", "lengths"), [("needle_noise", "700,572"), ("mrcr", "9000,2564")])
def test_a_length_must_do_for_every_sample(task, lengths):
    """Not for the first one alone; the least that is named does."""
    keys = {"tasks": task, "num_samples": 100, "num_needles": 2, "depths": (50.0,)}

    def made(lengths):
        settings = config_lib.parse_overrides(RetrievalConfig, {"lengths": lengths})
        of = {"eval": {"retrieval": {**keys, **settings}}}
        return benchmark(experiment.from_config(of))

    with pytest.raises(ConfigError, match=r"^eval.retrieval.lengths: is too short for ") as caught:
        made(lengths)
    assert str(caught.value.got) == lengths.split(",")[1]  # the shortest
    needed = int(caught.value.accepted.removeprefix("at least "))
    group = min(made(f"9000,{needed}").groups, key=lambda group: group.length)
    held = [group.make(i) for i in range(100)]
    assert max(len(each.ids) + each.tokens_to_generate for each in held) <= needed
    with pytest.raises(ConfigError, match=f"at least {needed}$"):
        made(f"{needed - 1}")


@pytest.mark.parametrize("task", NEEDLES[1:])
def test_needles_in_text_stand_at_the_depth(task):
    for depth in (0.0, 40.0, 100.0):
        (group,) = maker(tasks=(task,), lengths=(3000,), depths=(depth,)).groups()
        prompt = group.make(0)
        text = ByteTokenizer().decode(prompt.ids)
        context = text.split("afterwards.\n")[1].rsplit("\nWhat ", 1)[0]
        place = context.index("One of the special magic")
        size = len(context) - len(context[place:].partition("1.")[0]) if depth == 100 else 3000
        assert place / size == pytest.approx(depth / 100, abs=0.15)
        assert prompt.references[0] in context


def test_bos_stands_once_and_prompt_and_answer_prefix_follow():
    (group,) = maker(tasks=("fwe",), lengths=(1500,)).groups()
    ids = group.make(0).ids
    assert (ids[0], np.sum(ids == 257)) == (257, 1)
    assert ByteTokenizer().decode(ids).endswith("words are:")


def right_when_even(prompts):
    """Replies with the reference to every other prompt."""
    return [prompt.references[0] if prompt.ids[0] % 2 == 0 else "no" for prompt in prompts]


def numbered_group(task, length, count, depth=None):
    def make(index):
        ids = np.array([index], np.int32)
        return Prompt(ids, 1, ("yes",), lambda reply: float(reply == "yes"))

    return Group(task, length, count, make, depth)


def test_means_intervals_and_the_effective_length():
    groups = [
        *(numbered_group("vt", length, count) for length, count in ((64, 1), (128, 4))),
        *(numbered_group("cwe", length, count) for length, count in ((64, 1), (128, 3))),
        numbered_group("needle_keys", 64, 2, 50.0),
    ]
    log, seen = SampleLog(None, {}), []
    run_groups(groups, right_when_even, log, 2, lambda done, total: seen.append((done, total)))
    result = summarized(groups, log, {"seed": 1})
    scores = [each.score for each in result.groups]
    assert scores == pytest.approx([100, 50, 100, 200 / 3, 50])
    assert [(each.length, each.num_tasks) for each in result.by_length] == [(64, 2), (128, 2)]
    assert result.by_length[1].score == pytest.approx((50 + 200 / 3) / 2)
    assert result.effective_length == 64
    assert (result.groups[1].low, result.groups[1].high) == pytest.approx((15.0, 85.0), abs=0.1)
    assert seen[-1] == (64 * 4 + 128 * 7, 64 * 4 + 128 * 7)
    assert result.to_dict()["seed"] == 1
    shown = report.table(result, step=3, config="page")
    assert "mean" in shown
    assert "effective length 64" in shown
    assert "needle_keys by depth" in shown


def test_a_file_of_something_else_is_not_gone_on_with(tmp_path):
    path = tmp_path / "r.samples.jsonl"
    lines = ('{"x": 1}', "text", "[1]", "\\xff", '{"task": [], "length": 1, "depth": 1}')
    samples = (f'{{"seed": 1}}\n{line}\n' for line in lines)
    for content in ("[1]\n", "text\n", '{"other": 1}\n', *samples):
        path.write_text(content)
        with pytest.raises(ConfigError, match="holds something else"):
            SampleLog(path, {"seed": 1})
        assert path.read_text() == content
    path.unlink()
    log = SampleLog(path, {"seed": 1})
    assert not path.exists()  # until there is a sample
    group = numbered_group("vt", 8, 2)
    log.add(group, [Scored(1, 0.25, "reply\n", ("a", "b"), 7)])
    assert SampleLog(path, {"seed": 1}).holds(group, 1)
    assert not SampleLog(path, {"seed": 1}).holds(group, 0)


def test_another_value_is_named_and_not_all_of_them(tmp_path):
    path = tmp_path / "r.samples.jsonl"
    held = {"keys": {"seed": 1, "squad_path": "a"}, "files": {"a": "12"}}
    SampleLog(path, held).add(numbered_group("vt", 8, 2), [Scored(1, 0.25, "", (), 7)])
    for changed, said in (
        ({"keys": {"seed": 2, "squad_path": "a"}}, r"of another keys\.seed \(1\), got 2;"),
        ({"files": {}}, r"of another files\.a \('12'\), got None;"),
    ):
        with pytest.raises(ConfigError, match=said):
            SampleLog(path, held | changed)


def test_a_log_knows_its_model_and_files_by_their_content(tmp_path):
    questions, weights = tmp_path / "squad.json", tmp_path / "model.safetensors"
    step = tmp_path / checkpoint.FOLDER / "3"
    (step / "params").mkdir(parents=True)
    keys = {"tasks": ("qa_1",), "squad_path": str(questions)}
    config = experiment.from_config({"eval": {"retrieval": keys}})
    asked = Benchmark((), Encoder(ByteTokenizer(), None, 264), None)
    files = questions, weights, step / "params" / "a", step / "opt_state"

    def identities():
        checksums.write(step)
        for number in (None, 3):
            target = Target(config, Origin(tmp_path, {}, "byte", "auto"), number, "page")
            yield command.identity(target, asked)

    def write(path, text, seconds):
        path.write_text(text)
        os.utime(path, (seconds, seconds))

    for file in files:
        write(file, "same size", 1)
    before = list(identities())
    assert list(identities()) == before
    # (what is written, what of a Hugging Face folder and of a run differs by it)
    differing = [{"files"}, {"files"}], [{"content"}, set()], [set(), {"content"}], [set(), set()]
    for file, names in zip(files, differing, strict=True):
        write(file, "SAME SIZE", 2)
        now = list(identities())
        pairs = zip(before, now, strict=True)
        assert [{name for name in old if old[name] != new[name]} for old, new in pairs] == names
        before = now


# --- Tables of one needle ----------------------------------------------------------------------


def test_a_table_is_drawn_beside_the_result(evaluated, tmp_path):
    flags = ("lengths=16,24", "depths=0,50,100", "num_samples=4")
    flags = [f"--config.eval.retrieval.{flag}" for flag in flags]
    result, shown = evaluated("--config=configs/needles.py:keys", *flags)
    assert [(each["length"], each["depth"]) for each in result["groups"]] == [
        (length, depth) for length in (16, 24) for depth in (0, 50, 100)
    ]
    assert "by_length" not in result  # that is of RULER's tasks
    assert shown.splitlines()[2].split() == ["needle_keys", "by", "depth", "16", "24"]
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {"result.needle_keys.svg", "result.needle_keys.png"}
    assert names == {"result.json", "result.samples.jsonl", *drawn}
    svg = (tmp_path / "result.needle_keys.svg").read_text()
    for text in ("accuracy", "depth of the needle", "50 %", "24"):
        assert f">{text}" in svg
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    evaluated("--config=configs/needles.py:keys", *flags)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_grid_has_depths_down_and_lengths_to_the_right():
    from hybrid.evaluation.retrieval.heat_map import grid

    groups = [
        GroupScore("needle_keys", length, depth, length + depth, 0, 100, 5)
        for length in (20, 10)
        for depth in (50.0, 0.0)
    ]
    lengths, depths, accuracy = grid(groups[:3])
    assert (lengths, depths) == ([10, 20], [0, 50])
    np.testing.assert_array_equal(accuracy, [[np.nan, 0.2], [0.6, 0.7]])


# --- Hugging Face folders ----------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def test_a_folder_is_asked_in_turns_of_its_chat_template(tmp_path, capsys):
    folder = tiny_folder.write(tmp_path / "folder")
    output = tmp_path / "result.json"
    flags = [f"--pretrained={folder}", f"--output={output}", "--config=configs/ruler.py:fwe"]
    few = ("lengths=900", "num_samples=1", "chat_template=true")
    flags += [ONE_ROW, *(f"--config.eval.retrieval.{flag}" for flag in few)]
    assert main(flags) == 2
    assert "the folder has no chat template" in capsys.readouterr().err
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert main(flags) == 0
    result = json.loads(output.read_text())
    assert (result["step"], result["chat_template"]) == (None, True)
    assert result["groups"][0]["num_samples"] == 1


def test_prompts_are_the_turns_of_a_template_with_bos_once(tmp_path):
    folder = chat_folder.write(tmp_path / "folder", TEMPLATE)
    tokenizer = tokenizers.load(str(folder))
    encoder = Encoder(tokenizer, tokenizer.bos_id, 512, chat.read(folder, "key"))
    turns = "<bos><turn>user\na<end>\n<turn>assistant\nb<end>\n<turn>user\nc<end>\n<turn>model\n"
    wanted = tokenizer.encode_parsed(turns + "so")
    assert encoder.ids_of_turns(["a", "b", "c"], "so").tolist() == wanted.tolist()
    assert wanted.tolist().count(tokenizer.bos_id) == 1
