"""RULER: thirteen tasks of retrieval, tracking and counting at lengths of 4K to 128K.

python eval.py --config=configs/ruler.py --pretrained=FOLDER --output=ruler.json
python eval.py --config=configs/ruler.py:niah_single_1 --workdir=runs/NAME

Without an argument all tasks but the two of questions, whose documents are not here: name a file in
eval.retrieval.squad_path or hotpotqa_path and ask for qa_1 or qa_2. docs/retrieval.md tells more.
"""

from hybrid import experiment
from hybrid.evaluation.config import RULER

LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
WITHOUT_FILES = tuple(task for task in RULER if not task.startswith("qa"))


def get_config(task: str = ""):
    config = experiment.defaults()
    if task and task not in RULER:
        raise KeyError(task)
    config.eval.retrieval.tasks = (task,) if task else WITHOUT_FILES
    config.eval.retrieval.lengths = LENGTHS
    config.eval.retrieval.num_samples = 500
    config.eval.retrieval.seed = 42
    return config
