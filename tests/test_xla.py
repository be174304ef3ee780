"""XLA's flags: what the command line sets, and when it leaves them alone."""

import os
import subprocess
import sys

import pytest

from jaxrlhf import xla

FLAG = f"--{xla.ORDER}=false"


@pytest.fixture
def flags(monkeypatch):
    """What `set_flags` makes of flags, as if jax were not there yet and jaxlib were a version."""

    def found(given: str, *, version: str = "0.10.2", imported: bool = False) -> str:
        monkeypatch.setenv("XLA_FLAGS", given)
        monkeypatch.setattr(xla.metadata, "version", lambda name: {"jaxlib": version}[name])
        if not imported:
            monkeypatch.delitem(sys.modules, "jax")
        xla.set_flags()
        return os.environ["XLA_FLAGS"]

    return found


@pytest.mark.parametrize(("given", "after"), [("", FLAG), ("--other=1", f"--other=1 {FLAG}")])
def test_the_flag_joins_what_is_given(flags, given, after):
    assert flags(given) == after


def test_a_given_one_is_kept(flags):
    assert flags(f"--{xla.ORDER}=true") == f"--{xla.ORDER}=true"


def test_too_late_or_untried_is_left_alone(flags):
    assert flags("", imported=True) == ""
    assert flags("", version="0.11.0") == ""


def test_this_xla_knows_it():
    """A process with it starts; XLA ends one that has a flag it does not know."""
    script = "from jaxrlhf import xla; xla.set_flags(); import jax; jax.devices(); print('alive')"
    environment = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
    unknown = environment | {"XLA_FLAGS": "--xla_no_such_flag=1"}
    broken = subprocess.run([sys.executable, "-c", script], env=unknown, capture_output=True)
    assert broken.returncode != 0
