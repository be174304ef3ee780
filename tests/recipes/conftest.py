"""The one tiny run of the whole pipeline that these tests look at (`micro.py`)."""

from pathlib import Path

import micro
import pytest


@pytest.fixture(scope="session")
def run() -> Path:
    """Folder of the finished run."""
    return micro.pipeline() / "run"
