"""What users import stays what it is."""

import subprocess
import sys

import pytest

import hybrid

NAMES = ["Band", "LayerPlan", "LayerSpec", "Model", "ModelConfig", "attend", "from_pretrained"]
NAMES += ["generate", "load", "plan", "plan_layers", "save_pretrained"]


def test_the_public_names_are_these():
    assert sorted(hybrid.__all__) == NAMES
    assert all(hasattr(hybrid, name) for name in NAMES)


@pytest.mark.parametrize(
    "imports",
    [
        "import hybrid",
        "import hybrid.plan",
        "import hybrid, hybrid.plan.__main__",
        "from hybrid import plan",
    ],
)
def test_plan_is_callable_after_any_import_of_its_package(imports):
    call = "plan" if imports.startswith("from") else "hybrid.plan"
    code = f"{imports}; print({call}('configs/tiny.py').num_params)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1_000_000
