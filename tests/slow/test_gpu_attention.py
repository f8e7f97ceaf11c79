"""cuDNN's attention on a GPU that is here: as close to float64 as the oracle is.

`tests/simulated.py: report_for_gpus` runs this file as a script.
"""

import json
import shutil

import pytest
import simulated
from cases import Case

CASES = [
    Case("local", 2, 1024, 8, 2, 128, window_size=128),
    Case("local, window 1", 1, 200, 4, 4, 64, window_size=1),
    Case("local, ragged", 1, 333, 6, 3, 64, window_size=33, scale=0.125),
    Case("local, beyond the row", 1, 40, 2, 1, 8, window_size=100),
    Case("global", 2, 1024, 8, 1, 128, scale=0.1),
    Case("global, ragged", 1, 777, 4, 1, 72, scale=0.1),
    Case("local, wide heads", 1, 2048, 8, 4, 256, window_size=1024, scale=0.0625),
    Case("global, wide heads", 1, 2048, 4, 2, 192, scale=0.0625),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs an NVIDIA GPU"),
]


def test_values_and_gradients_are_as_close_as_the_oracles():
    report = simulated.report_for_gpus(__file__)
    assert set(report) == {case.name for case in CASES}
    for name, outcome in report.items():
        assert outcome == "close" or (outcome.startswith("refused") and "wide" in name), report


# --- The process ------------------------------------------------------------------------------


def main():
    print(json.dumps({case.name: _outcome(case) for case in CASES}))


def _outcome(case):
    import attention_contract as contract

    from hybrid.ops.dispatch import Unsupported

    try:
        contract.assert_as_close_in_bfloat16(case, "cudnn", 4)
    except Unsupported as refusal:
        return f"refused: {refusal}"
    except AssertionError as error:
        return f"off: {error}"
    return "close"


if __name__ == "__main__":
    main()
