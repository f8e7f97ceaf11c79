"""The library's side of the command: tasks by name, an evaluation of them, its tables."""

from collections.abc import Sequence
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from hybrid.config import ConfigError


class Tasks(TaskManager):
    """The tasks of some names, read once: when it is made."""

    def __init__(self, names: Sequence[str], include_path: str | None = None):
        """Reads the tasks.

        Args:
          names: of tasks, groups or tags, or paths of their YAML files.
          include_path: a folder of further YAML files.
        Raises: ConfigError for a name that is none, and for a task whose files can't be read.
        """
        self.names = list(names)
        # The library's own tasks are thousands of files: read where the folder's do not suffice.
        super().__init__(include_path=include_path, include_defaults=False)
        if not set(self.names) <= set(self.all_subtasks):
            super().__init__(include_path=include_path)
        try:
            self._loaded = super().load(self.names)
        except Exception as error:  # of the library, its data sets or a task's own code
            problem = f"can't be read ({' '.join(str(error).split())[:200]})"
            raise ConfigError("--tasks", problem, ",".join(names)) from error

    def load(self, task_list: Any) -> Any:
        """What was read, for whoever asks by the same names."""
        assert task_list == self.names, task_list
        return self._loaded


def evaluate(
    tasks: Tasks, model: LM, num_fewshot: int | None, limit: float | None
) -> dict[str, Any]:
    """The library's results, without its samples.

    Args:
      num_fewshot: examples before each question; None: as each task says.
      limit: questions of each task, or the part of them where it is below 1; None: all.
    """
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks.names,
        task_manager=tasks,
        num_fewshot=num_fewshot,
        batch_size=getattr(model, "batch_size", None),
        limit=limit,
        log_samples=False,
    )
    assert results is not None, "there is one process"
    return results


def tables(results: dict[str, Any]) -> str:
    """The library's tables: of tasks, and of groups where there are any."""
    found = [make_table(results)]
    if results.get("groups"):
        found.append(make_table(results, "groups"))
    return "\n".join(table.rstrip("\n") for table in found)
