"""Three local tasks for lm-evaluation-harness over the letters that the tiny tokenizers know.

Answers are letters, since the models were never trained: what is compared is arithmetic.
"""

import json
import pathlib
import random

LETTERS = "abcdefghijklmnopqrstuvw"
_CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {folder}/choice.jsonl}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
_ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {folder}/rolling.jsonl}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: byte_perplexity}}
  - {{metric: bits_per_byte}}
"""
_REPLY = """
task: local_reply
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {folder}/reply.jsonl}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 12}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
NAMES = ["local_choice", "local_rolling", "local_reply"]


def write(folder: pathlib.Path, *, longest: int, stop: str = "a", answer: str = "") -> pathlib.Path:
    """Writes the YAML files and their questions, ragged, some texts longer than `longest` tokens.

    Args:
      stop: of replies.  answer: to every question that wants a reply.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    text = lambda least, most: "".join(rng.choices(LETTERS, k=rng.randint(least, most)))  # noqa: E731
    choices = [text(1, 1), text(1, 4), text(2, 6)]
    lengths = [(1, 8), (30, 45), (longest - 6, longest + 20)]
    rows = {
        "choice": [
            {"question": text(*lengths[i % 3]), "choices": choices, "answer": i % 3}
            for i in range(9)
        ],
        "rolling": [{"text": text(*each)} for each in [*lengths, (3 * longest, 4 * longest)]],
        "reply": [{"question": text(*lengths[i % 3]), "answer": answer} for i in range(6)],
    }
    for name, template in {"choice": _CHOICE, "rolling": _ROLLING, "reply": _REPLY}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows[name])
        (folder / f"{name}.jsonl").write_text(lines)
        (folder / f"{name}.yaml").write_text(template.format(folder=folder, stop=stop))
    return folder
