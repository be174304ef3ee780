"""Adapter runs know their base again, wherever it is moved, and refuse another."""

import json
import shutil

import hf_tiny
import pytest
from hf_tiny import params_of

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import folder as folders
from jaxrlhf.hf.base_model import REFERENCE, identify, remember
from jaxrlhf.models import make_lm


def base_in(path, seed=0, **options):
    lm = make_lm(hf_tiny.config_of("llama"))
    folders.save_lm(path, lm, params_of(lm.config, seed), **options)
    return path


def test_the_same_base_elsewhere_is_the_same(tmp_path):
    remember(tmp_path / "run", {"policy": identify(base_in(tmp_path / "a"))})
    shutil.move(tmp_path / "a", tmp_path / "b")
    remember(tmp_path / "run", {"policy": identify(tmp_path / "b")})
    written = json.loads((tmp_path / "run" / REFERENCE).read_text())
    assert written["policy"]["path"] == str(tmp_path / "a")


def test_other_weights_are_another_base(tmp_path):
    remember(tmp_path / "run", {"policy": identify(base_in(tmp_path / "a"))})
    with pytest.raises(CheckpointError, match=r"was begun on .*/a .*/b holds another model"):
        remember(tmp_path / "run", {"policy": identify(base_in(tmp_path / "b", seed=1))})


@pytest.mark.parametrize("shard_size", [10**9, 4_000])
def test_every_file_counts(shard_size, tmp_path):
    """One bit of any file of weights, or another config.json."""
    path = base_in(tmp_path / "a", max_shard_size=shard_size)
    before = identify(path).sha256
    files = [*sorted(path.glob("*.safetensors")), path / "config.json"]
    assert (len(files) > 2) == (shard_size < 10**6)
    for file in files:
        old = file.read_bytes()
        new = old.replace(b"10000", b"10001") if file.suffix == ".json" else flipped(old)
        assert new != old
        file.write_bytes(new)
        assert identify(path).sha256 != before, file.name
        file.write_bytes(old)
    assert identify(path).sha256 == before


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_other_files_do_not_count(tmp_path):
    path = base_in(tmp_path / "a")
    before = identify(path)
    (path / "README.md").write_text("a model")
    assert identify(path) == before


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no weights here"):
        identify(tmp_path)
