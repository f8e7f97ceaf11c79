"""A sweep's page made of plain values, and what a sweep's folder holds."""

import json

PAGE = """
import json, pathlib

def get_config(path):
    return json.loads(pathlib.Path(path).read_text())
"""


def write(folder, name, values):
    """Writes a page that gives `values`; returns its flag."""
    (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / f"{name}.py").write_text(PAGE)
    return f"--config={folder / name}.py:{folder / name}.json"


def results(sweep):
    return json.loads((sweep / "results.json").read_text())
