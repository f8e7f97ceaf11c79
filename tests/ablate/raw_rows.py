"""A run of a sweep as its own files tell it, without anything of `hybrid`.

metrics.jsonl, config.json and scores.npz are read, and held against what results.json says of the
run. A run that was evaluated but not trained has no metrics.jsonl and no config.json: it stands
with the metrics in `cells` and the context lengths of its evaluation.json.
"""

import json
import math

import numpy as np

TOLERANCE = 1e-9  # relative, of every number


class Raw:
    """A finished run as its folder tells it; `problems` holds where folder and cell disagree."""

    def __init__(self, folder, cell):
        self.cell, self.problems = cell, []
        self.folder = folder / cell["workdir"]
        self.seed, self.rate = cell["seed"], cell["learning_rate"]
        self.config = self._config()
        if self.config is not None:
            self._check("seed", self.config["training"]["seed"], self.seed)
            if self.rate is not None:
                self._check("learning_rate", self.config["optimizer"]["learning_rate"], self.rate)
            self._check_overrides()
        self.lengths = self._lengths()
        self.first, self.longest = self.lengths[0], max(self.lengths)
        self.metrics, self.curve = self._metrics()
        self.loss = self.metrics.get("eval/loss")
        self.scores = self._scores()
        if self.scores and self.loss is not None:
            nll = self.scores[self.first]["nll"].tolist()
            mean = math.fsum(nll) / len(nll)
            self._check("loss of the scores", mean, self.loss, 1e-5)

    def _check(self, what, found, told, tolerance=TOLERANCE):
        if not same(found, told, tolerance):
            self.problems.append(f"{self.folder}: {what} is {found!r}, results.json says {told!r}")

    def _config(self):
        path = self.folder / "config.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _check_overrides(self):
        for key, value in self.cell["overrides"].items():
            found = self.config
            for part in key.split("."):
                found = found[part]
            if key not in self.cell["changed"]:
                self._check(key, found, value)

    def _metrics(self):
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return self.cell["metrics"], []
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row for row in rows if "eval/loss" in row]
        for name, value in rows[-1].items():
            self._check(f"metrics {name}", value, self.cell["metrics"].get(name))
        flops = {step: compute for step, compute, _ in self.cell["curve"]}
        self._check("steps of the curve", [row["step"] for row in rows], list(flops))
        for row, point in zip(rows, self.cell["curve"], strict=False):
            self._check(f"curve at step {row['step']}", row["eval/loss"], point[2])
        return rows[-1], [(row["step"], flops[row["step"]], row["eval/loss"]) for row in rows]

    def _lengths(self):
        """The evaluated context lengths in the order asked for."""
        if self.config is None:
            found = json.loads((self.folder / "evaluation.json").read_text())
            asked, trained = [one["context_length"] for one in found.get("by_context", [found])], 0
        else:
            asked = self.config["eval"]["context_length"]
            trained = self.config["training"]["context_length"]
        return list(dict.fromkeys(length or trained for length in asked))

    def _scores(self):
        path = self.folder / "scores.npz"
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
        scores = {length: {} for length in self.lengths}
        for name, values in columns.items():
            length, column = name.split("/")
            scores[int(length)][column] = values
        return scores


def same(left, right, tolerance=TOLERANCE):
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right or left == right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    return left == right
