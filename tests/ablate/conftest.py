"""What tests of whole sweeps share; each module has a `folder` and a `page` of its own."""

import pytest

from hybrid.ablate.__main__ import main


@pytest.fixture(scope="module")
def whole(folder, page):
    """The folder of a sweep that ran undisturbed."""
    assert main([page(), f"--workdir={folder / 'whole'}"]) == 0
    return folder / "whole"
