"""Random command lines: each is done, or refused in one line with nothing created.

Lines are made from the flags and keys that a command declares, with values that are mostly wrong
in some way (type, size, spelling, Unicode, brackets, repetition). The same number gives the same
line. None trains: text is missing, workdirs hold no checkpoint, and where all is right a run is
stopped as it begins.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import random
import traceback
import typing
import warnings

import pytest

from hybrid import config as config_lib
from hybrid import experiment, export, prepare, show_batch
from hybrid.ablate import command as ablate
from hybrid.evaluation import command as evaluation
from hybrid.evaluation.retrieval import __main__ as retrieval
from hybrid.generate import command as generate
from hybrid.lm_eval import command as lm_eval
from hybrid.plan import __main__ as plan
from hybrid.process import cli
from hybrid.training import command as training
from hybrid.training import loop

MODULES = (training, evaluation, ablate, generate, lm_eval, plan, export, prepare, show_batch)
COMMANDS = {module.__name__.split(".")[1]: module.COMMAND for module in MODULES}
COMMANDS["retrieval"] = retrieval.COMMAND
FAST, SLOW = 25, 334  # lines of each command
GLUE = ["="] * 19 + [""]
FILLED = {"prompt": "one", "output": "out"}  # flags that other ones are read behind

NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "8",
    "64",
    "-1",
    "0.5",
    "1e-3",
    "1e3",
    "1.",
    "+7",
    " 7 ",
    "0x10",
    "1_0",
]
NUMBERS += ["nan", "inf", "-inf", "1e999", "1" * 400, "0x" + "f" * 5000, "²", "٣", "1 2", "1+1"]
NUMBERS += [str(2**power + add) for power in (31, 32, 53, 63, 64) for add in (-1, 0)]
LISTS = [
    "()",
    "[]",
    "(1,)",
    "1,2",
    "[8, 16]",
    "(8,8",
    "8,",
    ",",
    "((0.5, 8), (0.5, 64))",
    "[[1], 2]",
]
LISTS += ["[ab]", "'a,b','c'", '"', "'", "['x'", "a,,b", "((1, 2),)", "(" * 300, "{[]: 1}", "1is 2"]
TEXTS = ["", " ", "none", "None", "True", "false", "auto", "L", "LG", "LLLLLG", "byte", "float32"]
TEXTS += [
    "é日\U0001f600",
    "a\nb",
    "\t\r",
    "\x1b[31m",
    "\udcff",
    "x" * 300,
    "=",
    "--",
    "-h ",
    "%s{}",
]
PATHS = ["here.txt", "*.txt", "**/*", "no/*", "~", "~nobody_of_this_name/x", "/dev/null", ".", "/"]
PATHS += ["..", "x/" * 2500, "run", "run/config.json", "folder", "a:b", "[a-", "here.txt/x", "-"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages outside, and a folder `here` with a little of everything that a line may name."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "page.py").write_text(
        "import json\n\n\n"
        "def get_config(path):\n"
        "    with open(path) as file:\n"
        "        return eval(file.read(), {'nan': float('nan'), 'inf': float('inf')})\n"
    )
    small = {
        "model": {"d_model": 16, "num_heads": 2, "head_dim": 8, "ffn_dim": 16, "vocab_size": 259},
        "data": {"source": "text", "paths": ("missing.txt",)},
        "training": {"num_steps": 2, "batch_size": 2, "context_length": 16},
    }
    small["model"] |= {"pattern": "LG", "num_layers": 2, "window_size": 8}
    sweep = {"base": small, "axes": [("model.window_size", (4, 8))], "seeds": (0,)}
    (folder / "run.txt").write_text(repr(small))
    (folder / "sweep.txt").write_text(repr(sweep))
    here = folder / "here"
    (here / "run").mkdir(parents=True)
    (here / "folder").mkdir()
    (here / "here.txt").write_text("one\ntwo\n")
    values = experiment.to_dict(experiment.from_config(small))
    (here / "run/config.json").write_text(json.dumps(values))
    return folder


class Begun(BaseException):
    """A run was about to be trained: the line was right."""


@pytest.fixture(autouse=True)
def no_run(folder, monkeypatch):
    """Lines run in `here`, which is the home folder too, and no run begins."""

    def begin(*_):
        raise Begun

    monkeypatch.setattr(loop.Run, "__init__", begin)
    monkeypatch.chdir(folder / "here")
    monkeypatch.setenv("HOME", str(folder / "here"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


# --- Lines -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line, and the values of its page where it has one of its own."""

    words: tuple[str, ...]
    page: str | None = None


def line_of(name: str, number: int, folder: pathlib.Path) -> Line:
    """Line `number` of a command."""
    rng = random.Random(f"{name} {number}")
    command, words, page = COMMANDS[name], [], None
    if "config" in command.flags and rng.random() < 0.9:
        kind, page_file = ("sweep", "sweep.txt") if name == "ablate" else ("run", "run.txt")
        if rng.random() < 0.3:
            page_file, page = "values.txt", repr(_page_values(rng, folder / f"{kind}.txt"))
        words.append(f"--config={folder}/page.py:{folder / page_file}")
    if "workdir" in command.flags and rng.random() < 0.8:
        words.append(f"--workdir={rng.choice(['new', 'run', 'folder'])}")
    keys = list(config_lib.walk(command.config_class))
    words += [f"--{flag}={value}" for flag, value in FILLED.items() if flag in command.flags]
    for _ in range(rng.choice([0, 1, 1, 2, 3, 4])):
        key = rng.choice(keys)
        name = key.name
        wrong = [name[:-1], name.upper(), "", "é\n", name.rpartition(".")[0]]
        text = _text(rng) if rng.random() < 0.4 else _text_of(key, rng)
        words.append(f"--config.{rng.choice([name] * 20 + wrong)}{rng.choice(GLUE)}{text}")
    for flag in rng.sample(sorted(command.flags), rng.choice([0, 0, 1, 2])):
        words.append(f"--{flag}{rng.choice(GLUE)}{_text(rng)}")
    extra = ["--help", "stray", "--", "-", "--no_such_flag=1", "--dry_run", "--json", "--noconfig"]
    words += rng.sample(extra, rng.choice([0] * 6 + [1]))
    if words and rng.random() < 0.1:
        words.append(rng.choice(words))
    if rng.random() < 0.2:
        rng.shuffle(words)
    return Line(tuple(words), page)


def _text_of(key: config_lib.KeyInfo, rng: random.Random) -> str:
    """A value that may well be right, of the key's type."""
    if key.choices:
        return rng.choice([choice for choice in key.choices if choice != "stdlib"])
    if key.type is bool:
        return rng.choice(["true", "false"])
    if key.type in (int, float):
        return rng.choice(NUMBERS)
    texts = LISTS if typing.get_origin(key.type) is tuple else [*TEXTS, *PATHS]
    return rng.choice([*texts, str(key.default)])


def _text(rng: random.Random) -> str:
    return rng.choice(rng.choice([NUMBERS, LISTS, TEXTS, PATHS]))


def _page_values(rng: random.Random, file: pathlib.Path) -> dict:
    """The values of a right page with one or two of them made wrong."""
    values = eval(file.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        section = values["base"] if "base" in values and rng.random() < 0.6 else values
        name = rng.choice([*section, "extra", 3])
        inner = section.get(name)
        if isinstance(inner, dict) and rng.random() < 0.8:
            section, name = inner, rng.choice([*inner, "extra"])
        section[name] = _value(rng)
    return values


def _value(rng: random.Random, depth: int = 0) -> object:
    plain = [None, True, False, 0, 1, -1, 2**32, 2**64, 10**400, 0.5, 1e-3, float("nan")]
    plain += [
        float("inf"),
        "",
        "L",
        "é",
        "a\nb",
        "\0",
        "\ud800",
        "x" * 300,
        "~/x",
        b"bytes",
        1j,
        {1},
    ]
    if depth > 2 or rng.random() < 0.7:
        return rng.choice(plain)
    items = [_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2]))]
    return rng.choice([items, tuple(items), dict(enumerate(items)), {"name": items}])


# --- What comes of them ------------------------------------------------------------------------


def snapshot(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def wrong_with(name: str, line: Line, folder: pathlib.Path) -> str:
    """What a command did that it must not; empty for a line that was done or well refused."""
    if line.page is not None:
        (folder / "values.txt").write_text(line.page, errors="surrogatepass")
    before = snapshot(folder / "here")
    out, err = io.StringIO(), io.StringIO()
    redirects = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with redirects[0], redirects[1], warnings.catch_warnings(record=True) as warned:
        try:
            status = cli.main(COMMANDS[name], list(line.words))
        except Begun:
            return ""
        except BaseException as error:
            return "".join(traceback.format_exception(error)[-6:])
    said = err.getvalue()
    if status == 0:
        return said if "error" in said or "Traceback" in said else ""
    if status != 2 or warned:
        return f"status {status}, warnings {list(map(str, warned))}: {said}"
    if out.getvalue() or not said.startswith("error: ") or len(said.splitlines()) != 1:
        return f"said {out.getvalue()[:200]!r} and {said!r}"
    return "" if snapshot(folder / "here") == before else "created or changed something"


def check(name: str, numbers: range, folder: pathlib.Path) -> None:
    faults = []
    for number in numbers:
        line = line_of(name, number, folder)
        if fault := wrong_with(name, line, folder):
            shown = [word[:200] for word in line.words]
            faults.append(f"{name} {number}: {shown}\n  page: {line.page}\n{fault}")
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_random_line_is_done_or_refused_in_one_line(folder, name):
    check(name, range(FAST), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_thousands_of_random_lines_are_done_or_refused_in_one_line(folder, name):
    check(name, range(FAST, FAST + SLOW), folder)
