"""Live comparisons with torch: only where torch is installed (`bash scripts/test.sh --parity`)."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """`loaded(case)` -> (torch model, our LM, its parameters), saved there and loaded here."""
    import torch
    import torch_models

    from jaxrlhf.hf import folder

    torch.set_num_threads(1)  # tiny models: threads only wait for each other
    found = {}

    def load(case):
        if case not in found:
            path: Path = torch_models.save(case, tmp_path_factory.mktemp(case))
            ours = folder.load_lm(path)
            found[case] = torch_models.torch_model(case), ours.lm, ours.params
        return found[case]

    return load
