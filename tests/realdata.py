"""Where the real public data sets are, for tests that read them; such tests skip without them.

They are not part of the repository. Set JAXRLHF_DATA to their folder, or put it beside the
checkout as `../shared/data`.
"""

import os
from pathlib import Path

import pytest


def shared_data(name: str = "") -> Path:
    """Path of a data set, or of the folder of all; skips the calling test where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("JAXRLHF_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"real data not found at {path}: set JAXRLHF_DATA to the folder of data sets")
    return path
