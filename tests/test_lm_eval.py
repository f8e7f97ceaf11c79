"""`hybrid.lm_eval` without the library: likelihoods against the model's own, the command's door."""

import contextlib
import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from pretrained import tiny_folder

import hybrid
from hybrid.inference.config import InferenceConfig
from hybrid.lm_eval import scoring
from hybrid.lm_eval.__main__ import main
from hybrid.lm_eval.scoring import Request, Scorer, shared_contexts

LONGEST = 256
INFERENCE = InferenceConfig(prefill_chunk=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hybrid.from_pretrained(tiny_folder.write(tmp_path_factory.mktemp("lm_eval")))


@pytest.fixture(scope="module")
def log_p(model):
    """Log-probabilities [t, v] of what follows each of some ids, from the model's own logits."""

    def of(ids):
        row = np.zeros((1, LONGEST), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(jax.nn.log_softmax(model(row)[0]), np.float64)[: len(ids)]

    return of


@pytest.fixture(scope="module")
def requests(log_p):
    """Ragged: two contexts with three and two answers, one of them greedy, and four lone ones."""
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 256, n).astype(np.int32)  # noqa: E731
    first, second = ids(40), ids(70)
    likeliest = np.argmax(log_p(first)[-1])
    made = [(first, ids(5)), (second, ids(1)), (first, ids(2)), (first, [likeliest])]
    made += [(second, ids(9)), (ids(1), ids(1)), (ids(1), ids(30)), (ids(45), ids(3))]
    made += [(ids(200), ids(4))]
    return [Request(np.concatenate(pair).astype(np.int32), len(pair[1])) for pair in made]


@pytest.mark.parametrize("batch_size", [0, 2])
def test_every_way_gives_the_models_own_likelihoods(
    model, log_p, requests, batch_size, monkeypatch
):
    """Packed rows, kept caches of shared contexts, and long rows, which go through the cache."""
    monkeypatch.setattr(scoring, "LONG", 128)
    groups, alone = shared_contexts(requests, INFERENCE.prefill_chunk)
    assert groups == [[0, 2, 3], [1, 4]]
    assert alone == [5, 6, 7, 8]
    scored = []
    found = Scorer(model, INFERENCE, 256, batch_size, scored.append)(requests)
    assert sum(scored) == len(requests) == len(found)
    for (ids, num), answer in zip(requests, found, strict=True):
        rows, targets = log_p(ids[:-1])[-num:], ids[-num:]
        wanted = np.take_along_axis(rows, targets[:, None], axis=1).sum()
        assert abs(answer.log_likelihood - wanted) < 1e-4
        assert answer.is_greedy == bool(np.all(rows.argmax(axis=1) == targets))
    assert [answer.is_greedy for answer in found].index(True) == 3


def test_continuations_longer_than_a_chunk_are_read_alone():
    ids = np.arange(140, dtype=np.int32)
    assert shared_contexts([Request(ids, 100)] * 2, 64) == ([], [0, 1])


def test_other_commands_and_the_package_import_no_lm_eval():
    code = (
        "import sys, hybrid.generate.command, hybrid.evaluation.command, hybrid.training.command;"
        "hybrid.load; print('lm_eval' in sys.modules, 'hybrid.lm_eval' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def run(*words):
    """Exit status, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def test_help_names_flags_and_keys():
    status, out, _ = run("--help")
    assert status == 0
    assert all(word in out for word in ("--tasks", "--include_path", "data.bos", "cache_dtype"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "--tasks: is required"),
        (["--tasks=x", "--limit=0"], "--limit: must be above 0, got 0.0"),
        (["--tasks=x", "--num_fewshot=-1"], "--num_fewshot: must be at least 0, got -1"),
        (["--tasks=x", "--include_path=/nowhere"], "--include_path: no such folder"),
        (["--tasks=x", "--output=/nowhere/at/all.json"], "--output: its folder doesn't exist"),
        (["--tasks=x", "--pretrained=/nowhere"], "--workdir: must be given, or --pretrained, got"),
        (["--tasks=x", "--shots=1"], "--shots: unknown flag"),
        (["--tasks=x", "--config.data.bos=twice"], "data.bos:"),
        (["--tasks=x", "--config.model.pattern=L"], "model.pattern:"),
    ],
)
def test_wrong_flags_are_one_line(words, error):
    status, out, err = run("--workdir=/nowhere", *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


HIDDEN = """
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
"""


def test_without_the_library_the_command_names_the_extra():
    code = HIDDEN + "from hybrid.lm_eval.__main__ import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "--workdir=/nowhere", "--tasks=x"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: lm_eval: the library is not installed; pip install 'hybrid-attention[lm_eval]'\n"
    )
