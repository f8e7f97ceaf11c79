"""`HybridLM` against the library's own `hf` on tiny folders: equal requests, equal results.

`hf` reads BOS twice in `loglikelihood_rolling` (the tokenizer's, and its own prefix), so there it
is asked for none of the tokenizer's.
"""

import contextlib
import io
import json

import numpy as np
import pytest
from pretrained.parity import ours
from slow import lm_eval_tasks
from training import tiny_run

from hybrid.config import ConfigError
from hybrid.data.tokenizers import BYTE_BOS, BYTE_EOS
from hybrid.training import loop

lm_eval = pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")
peer = pytest.importorskip("pretrained.parity.peer")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import hybrid.lm_eval  # noqa: E402
from hybrid.lm_eval.__main__ import main  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the library's own
]
LONGEST, BOS, EOS = 64, 2, 1
STOP = "b"


@pytest.fixture(scope="module", autouse=True)
def local_data(tmp_path_factory):
    """What the library makes of local files lies in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return lm_eval_tasks.write(tmp_path_factory.mktemp("tasks"), longest=LONGEST, stop=STOP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a variant, whose tokenizer adds BOS as Gemma's does."""
    root = tmp_path_factory.mktemp("folders")

    def of(name):
        if not (root / name).exists():
            peer.save(name, 1, root / name)
            ours.write_tokenizer(root / name)
            _add_bos(root / name)
        return root / name

    return of


def _add_bos(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    ids = {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    parts = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, text]
    template = {"type": "TemplateProcessing", "single": parts, "pair": [*parts, text]}
    path.write_text(json.dumps(values | {"post_processor": template | {"special_tokens": ids}}))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def evaluated(model, name, tasks, **keys):
    """The library's results with samples, and {(context ids, continuation ids): answer}."""
    asked, inner = {}, model._loglikelihood_tokens

    def spy(requests, *args, **others):
        answers = inner(requests, *args, **others)
        ids = [(tuple(context), tuple(rest)) for _, context, rest in requests]
        asked.update(zip(ids, answers, strict=True))
        return answers

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_loglikelihood_tokens", spy)
        results = lm_eval.simple_evaluate(
            model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **keys
        )
    return results, asked


def replies(results):
    return [sample["resps"] for sample in results["samples"]["local_reply"]]


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "kv_sharing"])
@pytest.mark.parametrize("name", lm_eval_tasks.NAMES)
def test_a_folder_gets_the_requests_and_results_of_hf(variant, name, folder, tasks):
    pytest.importorskip("accelerate")  # which `hf` imports
    from lm_eval.models.huggingface import HFLM

    adds_bos = False if name == "local_rolling" else None
    there = HFLM(
        str(folder(variant)), device="cpu", dtype="float32", batch_size=4, add_bos_token=adds_bos
    )
    here = hybrid.lm_eval.HybridLM(folder(variant))
    assert here.max_length == there.max_length == LONGEST
    wanted, wanted_ids = evaluated(there, name, tasks)
    found, found_ids = evaluated(here, name, tasks)
    assert found_ids.keys() == wanted_ids.keys()
    for ids, (value, is_greedy) in wanted_ids.items():
        assert abs(found_ids[ids][0] - value) < 1e-4
        assert found_ids[ids][1] == is_greedy
    if name == "local_reply":
        assert replies(found) == replies(wanted)
        assert len(set(map(str, replies(found)))) > 2  # some end early, some don't
    results, wanted_results = found["results"][name], wanted["results"][name]
    for metric, value in wanted_results.items():
        if isinstance(value, float):
            assert results[metric] == pytest.approx(value, rel=1e-4), metric
    assert found["config"]["bos"] == "window"


def test_batch_sizes_do_not_matter_and_draws_are_by_seed(folder, tasks):
    """The model reads fewer tokens than it could; it is asked for by the library's own name."""
    found = []
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    for batch_size, seed in (("auto", 3), (2, 3), (2, 4)):
        results = lm_eval.simple_evaluate(
            model="hybrid",
            model_args=f"pretrained={folder('gemma3')},max_length=48,seed={seed}",
            batch_size=batch_size,
            tasks=["local_choice", "local_reply"],
            task_manager=manager,
            gen_kwargs="do_sample=True,temperature=0.7,top_k=20,top_p=0.9",
            bootstrap_iters=0,
        )
        assert results["config"]["max_length"] == 48
        values = [sample["resps"] for sample in results["samples"]["local_choice"]]
        found.append((np.array(values)[..., 0].astype(float), replies(results)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-4)
    assert found[0][1] == found[1][1] != found[2][1]


def instances(kind, *arguments):
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.mark.parametrize(
    ("bos", "first", "cut_first"),
    [("auto", BOS, None), ("document", BOS, None), ("window", BOS, BOS), ("never", None, None)],
)
def test_bos_stands_first_once_by_the_policy(bos, first, cut_first, folder):
    """Also where the text spells it, and behind a cut only where each window has one."""
    model = hybrid.lm_eval.HybridLM(folder("gemma3"), bos=bos, max_length=8)
    asked = []
    score = model._loglikelihood_tokens

    def spy(requests, *args, **keys):
        asked.extend((model._request(*each[1:]).ids.tolist(), len(each[2])) for each in requests)
        return score(requests, *args, **keys)

    model._loglikelihood_tokens = spy
    model.loglikelihood(instances("loglikelihood", ("cd", "e"), ("abcdefghijk", "l")), True)
    plain = [5, 6, 7]
    assert asked[0] == ([first, *plain] if first else plain, 1)
    cut = [*range(7, 15)]
    assert asked[1] == ([cut_first or 6, *cut], 1)
    if bos == "never":
        return
    asked.clear()
    model.loglikelihood(instances("loglikelihood", ("<bos>cd", "e"), ("", "e")), True)
    assert asked == [([BOS, *plain], 1), ([BOS, 7], 1)]
    asked.clear()
    model.loglikelihood_rolling(instances("loglikelihood_rolling", ("abcdefghijklmnopq",)), True)
    assert [ids[0] == BOS for ids, _ in asked] == [True, *[cut_first == BOS] * 2]
    assert all(BOS not in ids[1:] for ids, _ in asked)
    assert sum(num for _, num in asked) == 17
    assert all(len(ids) <= 9 for ids, _ in asked)


def test_without_bos_an_empty_context_is_eos(folder):
    model = hybrid.lm_eval.HybridLM(folder("gemma3"), bos="never")
    assert model.prefix_token_id == EOS


def test_what_generation_does_not_serve_is_refused_by_name(folder):
    model = hybrid.lm_eval.HybridLM(folder("gemma3"))

    def refused(**keys):
        with pytest.raises(ConfigError) as error:
            model.generate_until(instances("generate_until", ("ab", keys)), True)
        return error.value.key

    assert refused(num_beams=4) == "generation_kwargs.num_beams"
    assert refused(do_sample=True, top_p=2.0) == "generation_kwargs.top_p"
    assert refused(max_gen_toks=64) == "generation_kwargs.max_gen_toks"
    assert refused(max_gen_toks=0) == "generation_kwargs.max_gen_toks"
    with pytest.raises(ConfigError, match="max_length: is less than a continuation has"):
        model.loglikelihood(instances("loglikelihood", ("a", "b" * 65)))


# --- Runs and the command --------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    loop.run(tiny_run.experiment_of(root, training__num_steps=2), root / "w")
    return root / "w"


def run(*words):
    """Exit status, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def test_the_command_runs_three_tasks_on_a_run(workdir, tmp_path):
    tasks = lm_eval_tasks.write(tmp_path / "tasks", longest=32, stop="q")
    output = tmp_path / "out.json"
    status, out, err = run(
        f"--workdir={workdir}",
        f"--tasks={','.join(lm_eval_tasks.NAMES)}",
        f"--include_path={tasks}",
        "--limit=4",
        "--checkpoint=2",
        f"--output={output}",
    )
    assert status == 0, err
    assert all(name in out for name in lm_eval_tasks.NAMES)
    assert out.startswith("|")
    values = json.loads(output.read_text())
    assert values["n-samples"]["local_choice"]["effective"] == 4
    assert values["config"]["max_length"] == 32
    assert values["config"]["bos"] == "document"
    assert values["results"]["local_rolling"]["bits_per_byte,none"] > 0


def test_a_runs_own_bytes_and_bos(workdir):
    model = hybrid.lm_eval.HybridLM(workdir=workdir)
    assert model.tok_encode("é") == [BYTE_BOS, 0xC3, 0xA9]
    assert model.eot_token_id == BYTE_EOS
    ((value, _),) = model.loglikelihood(instances("loglikelihood", ("ab", "c")), True)
    logits = np.asarray(hybrid.load(workdir)(np.array([[BYTE_BOS, 97, 98]]))[0, -1], np.float64)
    assert value == pytest.approx(logits[99] - np.log(np.exp(logits).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tasks=no_such_task", "--workdir={}"], "--tasks: can't be read"),
        (["--tasks=local_broken", "--workdir={}"], "--tasks: can't be read"),
        (["--tasks=local_choice", "--workdir=/nowhere"], "--workdir: no such folder"),
        (["--tasks=local_choice", "--workdir={}", "--max_length=1"], "--max_length: must be a"),
        (["--tasks=local_choice", "--workdir={}", "--batch_size=-1"], "--batch_size: must be a"),
        (["--tasks=local_reply", "--workdir={}", "--max_length=8"], "generation_kwargs.max_gen"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(words, error, workdir, tasks, tmp_path):
    (tasks / "broken.yaml").write_text(
        (tasks / "choice.yaml").read_text().replace("choice", "broken")
    )
    output = tmp_path / "out.json"
    words = [word.format(workdir) for word in words]
    status, out, err = run(f"--include_path={tasks}", f"--output={output}", *words)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {error}")
    assert not output.exists()
