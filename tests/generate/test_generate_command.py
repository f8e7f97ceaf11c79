"""`python -m hybrid.generate` on a run and on a folder: text as it comes, speeds, refusals."""

import contextlib
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small_run
from pretrained import tiny_folder

import hybrid
from hybrid.data.tokenizers import BYTE_BOS, BYTE_EOS, ByteTokenizer
from hybrid.generate.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder with the byte tokenizer; its model was never trained."""
    return tiny_folder.write(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a few steps."""
    root = tmp_path_factory.mktemp("run")
    page = small_run.write_page(root)
    keys = ["--config.training.num_steps=2", "--config.eval.max_tokens=50"]
    small_run.finish(
        small_run.start(
            root, small_run.ROOT / "train.py", f"--config={page}", f"--workdir={root / 'w'}", *keys
        )
    )
    return root / "w"


def run(*words):
    """Exit status, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def wanted(model, prompt, count, **keys):
    """What the Python interface gives of BOS and the prompt's bytes, up to EOS, as text."""
    ids = np.concatenate([[BYTE_BOS], ByteTokenizer().encode(prompt)])[None]
    new = hybrid.generate(model, ids, count, stop_tokens=[BYTE_EOS], **keys)[0, ids.shape[1] :]
    return prompt + ByteTokenizer().decode(new.tolist())


def test_a_runs_prompt_and_continuation(workdir):
    status, out, err = run(f"--workdir={workdir}", "--prompt=abc é", "--max_new_tokens=30")
    assert status == 0
    assert out == wanted(hybrid.load(workdir), "abc é", 30) + "\n"
    assert "tokens/s" in err
    assert "prompt: 7 tokens" in err


def test_draws_by_seed_and_the_checkpoint_by_name(workdir):
    words = [f"--workdir={workdir}", "--prompt=ab", "--max_new_tokens=20", "--temperature=0.9"]
    words += ["--top_k=20", "--top_p=0.9", "--min_p=0.01", "--seed=3", "--checkpoint=2"]
    status, out, _ = run(*words)
    assert status == 0
    keys = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    assert out == wanted(hybrid.load(workdir, 2), "ab", 20, **keys) + "\n"


def test_a_folder_a_file_as_prompt_and_the_form_of_the_cache(folder, tmp_path):
    (tmp_path / "prompt.txt").write_text("word " * 30)
    status, out, err = run(
        f"--pretrained={folder}",
        f"--prompt_file={tmp_path / 'prompt.txt'}",
        "--max_new_tokens=12",
        "--config.inference.cache_dtype=bfloat16",
        "--config.inference.prefill_chunk=32",
    )
    assert status == 0
    assert out.startswith("word " * 30)
    assert "prompt: 151 tokens" in err


def test_an_empty_prompt_begins_with_bos(folder):
    status, out, err = run(f"--pretrained={folder}", "--prompt=", "--max_new_tokens=0")
    assert (status, out) == (0, "\n")
    assert "prompt: 1 tokens" in err


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--prompt=a"], "--workdir"),
        (["--prompt=a", "--workdir={folder}", "--pretrained={folder}"], "--workdir"),
        (["--prompt=a", "--workdir=/nowhere"], "--workdir"),
        (["--prompt=a", "--pretrained=/nowhere"], "--pretrained"),
        (["--prompt=a", "--workdir={folder}"], "--workdir"),
        (["--prompt=a", "--pretrained={folder}", "--dtype=float16"], "--dtype"),
        (["--pretrained={folder}"], "--prompt"),
        (["--pretrained={folder}", "--prompt=a", "--prompt_file=b"], "--prompt"),
        (["--pretrained={folder}", "--prompt_file=/nowhere"], "--prompt_file"),
        (["--pretrained={folder}", "--prompt=a", "--max_new_tokens=-1"], "--max_new_tokens"),
        (["--pretrained={folder}", "--prompt=a", "--max_new_tokens=few"], "--max_new_tokens"),
        (["--pretrained={folder}", "--prompt=a", "--temperature=-1"], "--temperature"),
        (["--pretrained={folder}", "--prompt=a", "--top_p=0"], "--top_p"),
        (["--pretrained={folder}", "--prompt=a", "--top_k=-1"], "--top_k"),
        (["--pretrained={folder}", "--prompt=a", "--min_p=2"], "--min_p"),
        (["--pretrained={folder}", "--prompt=a", "--beams=2"], "--beams"),
        (["--pretrained={folder}", "--prompt=a", "--seed=-1"], "--seed"),
        (["--pretrained={folder}", "--prompt=a", "--seed=" + "9" * 30], "--seed"),
        (["--pretrained={folder}", "--prompt=a", "--temperature=1e999"], "--temperature"),
        (
            ["--pretrained={folder}", "--prompt=a", "--max_new_tokens=2147483648"],
            "--max_new_tokens",
        ),
        (
            ["--pretrained={folder}", "--prompt=a", "--max_new_tokens=2147483647"],
            "--max_new_tokens",
        ),
        (  # positions can count them, and no memory holds their cache
            ["--pretrained={folder}", "--prompt=a", "--max_new_tokens=2000000000"],
            "--max_new_tokens",
        ),
        (["--pretrained={folder}", "--prompt=caf\udce9"], "--prompt"),
        (["--pretrained={folder}", "--prompt=\ud800"], "--prompt"),
        (["--pretrained={folder}", "--prompt=a", "--stop=\udce9"], "--stop"),
        (["--pretrained={folder}", "--prompt=a", '--stop=["a", ""]'], "--stop"),
        (["--pretrained=\udce9", "--prompt=a"], "--pretrained"),
        (["--pretrained=" + "x" * 5000, "--prompt=a"], "--pretrained"),
        (
            ["--pretrained={folder}", "--prompt=a", "--config.data.tokenizer=/nowhere"],
            "data.tokenizer",
        ),
        (["--pretrained={folder}", "--prompt=a", "--config.data.bos=always"], "data.bos"),
        (
            ["--pretrained={folder}", "--prompt=a", "--config.model.window_size=2"],
            "model.window_size",
        ),
        (
            ["--pretrained={folder}", "--prompt=a", "--config.inference.cache_dtype=int4"],
            "inference.cache_dtype",
        ),
        (["--pretrained={folder}", "--prompt=a", "--config.inference.slack=-1"], "inference.slack"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(words, key, folder):
    status, out, err = run(*(word.format(folder=folder) for word in words))
    lines = [line for line in err.splitlines() if line]
    assert status == 2
    assert not out
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {key}: "), lines[0]


def test_a_folder_without_tokenizer_needs_one(folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    words = [f"--pretrained={bare}", "--prompt=ab", "--max_new_tokens=9"]
    status, _, err = run(*words)
    assert status == 2
    assert err.startswith("error: data.tokenizer: "), err
    status, out, _ = run(*words, "--config.data.tokenizer=byte")
    assert (status, out) == (0, run(f"--pretrained={folder}", *words[1:])[1])
    status, _, err = run(*words, "--config.data.tokenizer=byte", "--config.data.bos=never")
    assert "prompt: 2 tokens" in err


def test_a_wrong_checkpoint_is_named(workdir):
    status, _, err = run(f"--workdir={workdir}", "--prompt=a", "--checkpoint=7")
    assert status == 2
    assert err.startswith("error: --checkpoint: ")


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(folder):
    words = [f"--pretrained={folder}", "--prompt=" + "word " * 99, "--max_new_tokens=4000"]
    command = [sys.executable, "-m", "hybrid.generate", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=small_run.environment(folder)
    ) as process:
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in errors


# --- Ends, warnings, encodings ---------------------------------------------------------------


def test_the_command_ends_at_every_id_that_the_folder_names(folder, tmp_path):
    stopping = tmp_path / "stopping"
    shutil.copytree(folder, stopping)
    words = ["--prompt=abc", "--max_new_tokens=12"]
    ids = np.array([[BYTE_BOS, *b"abc"]])
    new = hybrid.generate(hybrid.from_pretrained(folder), ids, 12)[0, 4:].tolist()
    count = {"config.json": 5, "generation_config.json": 3}
    assert run(f"--pretrained={stopping}", *words)[2].count("new: 12 tokens") == 1
    for name, at in count.items():
        path = stopping / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(values | {"eos_token_id": [BYTE_EOS, new[at]]}))
        _, _, err = run(f"--pretrained={stopping}", *words)
        assert f"new: {new.index(new[at]) + 1} tokens" in err


@pytest.mark.parametrize("form", ["{0}", '["never comes", "{0}"]'])
def test_the_command_ends_behind_a_text(form, workdir):
    words = [f"--workdir={workdir}", "--prompt=abc", "--max_new_tokens=60"]
    text = run(*words)[1].removeprefix("abc").removesuffix("\n")
    stop = text[20:23]
    status, out, err = run(*words, "--stop=" + form.format(stop))
    end = text.find(stop) + len(stop)
    assert (status, out) == (0, "abc" + text[:end] + "\n")
    assert "new: 60 tokens" not in err


def test_a_context_beyond_the_models_is_told_in_a_line(folder, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(folder, short)
    tiny_folder.change_config(short, max_position_embeddings=10)
    for limit, lines in ((6, 1), (7, 2)):
        _, _, err = run(f"--pretrained={short}", "--prompt=abc", f"--max_new_tokens={limit}")
        assert len(err.splitlines()) == lines
        assert ("made for 10" in err) == (lines == 2)


def test_control_tokens_in_a_prompt_are_told_and_taken_on_demand(folder):
    words = [f"--pretrained={folder}", "--max_new_tokens=0"]
    _, _, err = run(*words, "--prompt=<bos>hi<eos>")
    assert err.count("warning: the prompt spells <bos>, <eos>, read as text") == 1
    assert "prompt: 13 tokens" in err
    status, out, err = run(*words, "--prompt=<bos>hi<eos>", "--parse_special")
    assert (status, out) == (0, "<bos>hi<eos>\n")
    assert "warning" not in err
    assert "prompt: 4 tokens" in err, "one BOS, h, i, EOS"
    _, _, err = run(*words, "--prompt=hi<eos>", "--parse_special")
    assert "prompt: 4 tokens" in err, "BOS is put before"
    assert "warning" not in run(*words, "--prompt=<b>hi</b>")[2]


def test_a_generous_limit_ends_with_the_text(folder, tmp_path):
    """The first id that comes ends it; a cache of a million tokens is never made."""
    first = hybrid.generate(hybrid.from_pretrained(folder), [[BYTE_BOS, *b"abc"]], 1)[0, -1]
    stopping = tmp_path / "stopping"
    shutil.copytree(folder, stopping)
    tiny_folder.change_config(stopping, eos_token_id=[int(first)])
    words = [f"--pretrained={stopping}", "--prompt=abc", "--top_k=10000000000"]
    status, _, err = run(*words, "--max_new_tokens=1000000")
    assert status == 0
    assert "new: 1 tokens" in err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_of_another_encoding_gets_what_it_can_show(encoding, folder):
    command = [sys.executable, "-m", "hybrid.generate", f"--pretrained={folder}"]
    environment = small_run.environment(folder) | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [*command, "--prompt=é世", "--max_new_tokens=0"], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "é世\n".encode(encoding, "replace")


def test_help_lists_flags_and_keys():
    status, out, _ = run("--help")
    assert status == 0
    for name in ("--prompt", "--max_new_tokens", "--min_p", "--checkpoint", "inference.slack"):
        assert name in out


@pytest.mark.parametrize(
    "imports",
    [
        "import hybrid",
        "import hybrid.generate",
        "import hybrid, hybrid.generate.__main__, hybrid.generate.command",
        "from hybrid import generate",
    ],
)
def test_generate_is_callable_after_any_import_of_its_package(imports, folder):
    name = "generate" if imports.startswith("from") else "hybrid.generate"
    code = f"""{imports}
import hybrid as h
print({name}(h.from_pretrained({str(folder)!r}), [[1, 2]], max_new_tokens=3).shape)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("(", "[").replace(")", "]")) == [1, 5]
