"""The smallest run of the whole `cai` pipeline, made once a session, as `micro.py` has that of
`rlhf`. Its model is too small to keep a format, so its constitution lets every text count."""

import functools
import shutil
from pathlib import Path
from typing import Any

import micro

from jaxrlhf import config_file

CONSTITUTIONS = micro.ROOT / "configs" / "constitutions"
TRAINING: dict[str, Any] = {
    "batch_size": 8,
    "format": "examples",
    "packing": "none",
    "tensorboard": False,
    "max_steps": 4,
    "save_steps": 2,
    "optimizer": {"learning_rate": 1e-2},
}
PROMPTS = {"max_length": 3}
SAMPLING = {"response_length": 9}
ASKED: dict[str, Any] = {"batch_size": 8, "prompts": PROMPTS, "sampling": SAMPLING}
JUDGED: dict[str, Any] = {"batch_size": 8, "sampling": SAMPLING, "keep_unfinished": True}

CONFIG: dict[str, Any] = {
    "output_dir": "run",
    "constitution": "loose.yaml",
    "task": {
        "helpdesk": {
            "documents": 80,
            "demonstrations": 40,
            "lessons": 8,
            "red_prompts": 16,
            "helpful_prompts": 16,
            "test_prompts": 24,
        }
    },
    "pretrain": {
        **TRAINING,
        "max_length": 28,
        "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_positions": 40},
    },
    "helpful": {**TRAINING, "max_length": 28},
    "revise": {**JUDGED, "prompts": PROMPTS, "rounds": 2},
    "chains": [{"name": "direct", "direct": True}],
    "helpful_answers": {**ASKED, "samples_per_prompt": 1},
    "sl": {**TRAINING, "max_length": 28},
    "sl_rounds": 2,
    "helpful_people": {"sample": ASKED},
    "harm_people": {"sample": ASKED},
    "sample": ASKED,
    "label": {"batch_size": 8},
    "reward": {
        "batch_size": 8,
        "max_length": 13,
        "max_steps": 4,
        "save_steps": 2,
        "tensorboard": False,
        "normalize": "reference",
        "normalize_before": False,
        "prompts": PROMPTS,
        "sampling": SAMPLING,
    },
    "ppo": {
        "batch_size": 8,
        "max_steps": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "tensorboard": False,
        "prompts": PROMPTS,
        "eval_prompts": PROMPTS,
        "sampling": SAMPLING,
    },
    "arms": [{"name": "rl-cai"}],
}
LOOSE = {
    "base": str(CONSTITUTIONS / "sandbox.yaml"),
    "name": "loose",
    "layout": {"response_pattern": None, "critique_pattern": None, "revision_pattern": None},
}


@functools.cache
def pipeline() -> Path:
    """The folder with `cai.yaml`, `loose.yaml` and `run/`: every stage of `CONFIG`."""
    return micro.shared("cai-pipeline", _pipeline)


def _pipeline(folder: Path) -> None:
    (folder / "cai.yaml").write_text(config_file.to_text(CONFIG))
    (folder / "loose.yaml").write_text(config_file.to_text(LOOSE))
    assert micro.command(folder, "cai", "--config", "cai.yaml") == 0


def copy(folder: Path, *without: str) -> Path:
    """A copy of the pipeline in `folder`, without some stages' folders."""
    shutil.copytree(pipeline(), folder, dirs_exist_ok=True)
    for stage in without:
        shutil.rmtree(folder / "run" / stage)
    return folder
