"""`hybrid.prepare` killed at any time, twice at once, and at ten times the size."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import small_run

pytestmark = pytest.mark.slow

MEASURE = """
import sys
from hybrid.data import pipeline
from hybrid.data.config import DataConfig
config = DataConfig(source="prepared", paths=(sys.argv[1],))
held_out = pipeline.open_held_out(config, vocab_size=259)
rows = pipeline.open_rows(config, context_length=1024, seed=0, vocab_size=259)
for place in range(64):
    rows.row(place)
about = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
print(*(int(about[name].split()[0]) // 1024 for name in ("RssAnon", "VmHWM")))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Nine megabytes of JSON lines in three files."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for number in range(3):
        with open(folder / f"{number}.jsonl", "w") as file:
            for _ in range(3000):
                text = "".join(chr(draw.randrange(97, 123)) for _ in range(1000))
                file.write(json.dumps({"text": text}) + "\n")
    return folder


def start(source, output, *words):
    command = [sys.executable, "-m", "hybrid.prepare", "--config=configs/tiny.py"]
    command += ["--config.data.source=jsonl", f"--config.data.paths={source}"]
    command += [f"--output={output}", *words]
    environment = os.environ | {"PYTHONPATH": str(small_run.ROOT)}
    return subprocess.Popen(
        command, cwd=small_run.ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def prepared(source, output, *words):
    process = start(source, output, *words)
    assert process.wait(300) == 0, process.stderr.read()
    return {path.name: path.read_bytes() for path in output.iterdir()}


def lines(folder):
    journal = folder / "journal.jsonl"
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


def test_killed_ten_times_the_store_has_the_same_bits(corpus, tmp_path):
    small = "--shard_tokens=100000"  # more shards than ten rounds can finish
    expected = prepared(corpus, tmp_path / "whole", small)
    draw, killed, rounds = random.Random(1), tmp_path / "killed", [0]
    for number in range(10):
        process = start(corpus, killed, small, f"--workers={number % 3}")
        goal = rounds[-1] + draw.randrange(1, 4)  # the settings' line counts as one
        while process.poll() is None and lines(killed) < goal:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was not done
        rounds.append(lines(killed))
    assert rounds == sorted(rounds)  # what is done stays done
    assert rounds[-1] > 10
    assert prepared(corpus, killed, small) == expected


def test_of_two_at_once_one_is_refused_and_the_store_is_whole(corpus, tmp_path):
    expected = prepared(corpus, tmp_path / "whole")
    pair = [start(corpus, tmp_path / "both", "--workers=0") for _ in range(2)]
    codes = sorted(process.wait(300) for process in pair)
    errors = "".join(process.stderr.read() for process in pair)
    assert codes in ([0, 0], [0, 2]), errors  # the second may find it finished
    assert "Traceback" not in errors
    assert {p.name: p.read_bytes() for p in (tmp_path / "both").iterdir()} == expected


def test_a_start_takes_the_same_memory_at_ten_times_the_text(corpus, tmp_path):
    peaks = []
    for times in (1, 10):
        source = tmp_path / f"x{times}"
        source.mkdir()
        for number in range(times):
            for path in corpus.iterdir():
                text = path.read_text().replace('": "', f'": "{number} ')
                (source / f"{number}-{path.name}").write_text(text)
        prepared(source, tmp_path / f"s{times}")
        command = [sys.executable, "-c", MEASURE, str(tmp_path / f"s{times}")]
        environment = os.environ | {"PYTHONPATH": str(small_run.ROOT)}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append([int(number) for number in found.stdout.split()])
    (own, peak), (own_ten, peak_ten) = peaks
    assert own_ten < own + 8, peaks  # MB that are the process's own
    assert peak_ten < peak + 8, peaks
