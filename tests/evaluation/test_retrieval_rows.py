"""Benchmarks as rows to train on: prompts with their answers, which the data reads as they are."""

import json

import pytest

from hybrid.data import pipeline
from hybrid.data.config import DataConfig
from hybrid.evaluation.retrieval.__main__ import main


def words(output, *more):
    keys = {"tasks": "needle_noise,vt,mrcr", "lengths": "4096", "num_samples": "4", "seed": "7"}
    keys |= {"depths": "0,100", "num_needles": "2"}
    given = [f"--config.eval.retrieval.{name}={value}" for name, value in keys.items()]
    return ["--config=configs/micro.py", f"--output={output}", *given, *more]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert main(words(path)) == 0
    return path


def test_rows_hold_prompts_and_answers_of_all_groups_in_turn(written):
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 4 * 4
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    assert all(row["completion"].split()[-1].strip(" .") in row["prompt"] for row in rows)
    starts = [row["prompt"][:20] for row in rows]
    assert starts[0] == starts[1] == starts[4] != starts[2]  # two depths, vt, mrcr; again


def test_they_are_trained_on_whole_and_answers_alone_are_predicted(written, tmp_path):
    config = DataConfig(
        source="jsonl",
        paths=(str(written),),
        prompt_field="prompt",
        packing="document",
        cache_dir=str(tmp_path),
    )
    rows = pipeline.open_rows(config, context_length=4096, seed=0, vocab_size=264)
    assert "of the text left out" not in rows.description
    answers = {json.loads(line)["completion"] for line in written.read_text().splitlines()}
    row = rows.row(0)
    predicted = row["targets"][row["loss_mask"]]
    assert bytes(predicted[:-1].astype("uint8")).decode() in answers
    assert predicted[-1] == 258  # EOS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--config.eval.retrieval.tasks=", "error: eval.retrieval.tasks: is empty"),
        (
            "--config.eval.retrieval.tasks=needle_keys",
            "error: eval.retrieval.tasks: has no text: data.source=needle trains on it",
        ),
        ("--config.eval.retrieval.chat_template=true", "error: eval.retrieval.chat_template: is"),
        ("--config.eval.retrieval.lengths=100", "error: eval.retrieval.lengths: is too short"),
    ],
)
def test_what_gives_no_rows_is_refused_and_nothing_written(tmp_path, capsys, more, message):
    assert main(words(tmp_path / "rows.jsonl", more)) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())
