"""Finished reward models beside the baselines, on a few made-up pairs, end to end."""

import json

import numpy as np
import pytest

from jaxrlhf.errors import CheckpointError, DataError
from jaxrlhf.recipes import compare, reward, sft

pytest.importorskip("sklearn")

THINGS = ("locks", "cars", "bread", "wine", "maps", "rope", "fire", "paint", "glue")


def pair(thing: str, extra: str) -> dict[str, str]:
    prompt = f"\n\nHuman: Tell me about {thing}.\n\nAssistant: "
    return {"chosen": prompt + f"I would rather not{extra}.", "rejected": prompt + f"Sure, {thing}"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, a file of pairs of many lengths, and two finished reward stages."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [pair(thing, " at all" * (7 * i)) for i, thing in enumerate(THINGS)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"batch_size": 4, "max_steps": 2, "tensorboard": False, "save_steps": 0}
    sft.run(
        sft.SFTConfig.model_validate(
            {
                **common,
                "output_dir": str(folder / "pretrain"),
                "data": {"train": [str(file)]},
                "packing": "none",
                "tokenizer": {"vocab_size": 300},
                "max_length": 300,
                "model": {"d_model": 16, "num_heads": 2, "num_layers": 1, "max_positions": 300},
            }
        )
    )
    stages = []
    for seed in (0, 1):
        stages.append(str(folder / f"reward{seed}"))
        reward.run(
            reward.RewardConfig.model_validate(
                {
                    **common,
                    "seed": seed,
                    "output_dir": stages[-1],
                    "model_path": str(folder / "pretrain" / "model"),
                    "data": {"train": [str(file)], "test": [str(file)]},
                    "max_length": 300,
                }
            )
        )
    return folder, str(file), stages


def test_margins_are_those_that_the_stage_measured_before_it_standardised(finished):
    """By length and in pieces, or in the file's order and one shape: the same log-odds."""
    folder, file, stages = finished
    chosen, rejected = compare.score_pairs(stages[0], compare.read(file))
    measured = json.loads((folder / "reward0" / "pair_scores.json").read_text())
    margins = np.subtract(measured["chosen"], measured["rejected"])
    assert np.ptp(margins) > 0.1
    np.testing.assert_allclose(np.subtract(chosen, rejected), margins, atol=1e-4)


def test_the_table_has_every_model_their_mean_and_the_baselines(finished):
    folder, file, stages = finished
    out = folder / "out"
    table = compare.run(stages, [file], [file], out=out, inverse_penalty=1.0)
    rows = {
        row["method"]: row for row in json.loads((out / "comparison.json").read_text())["pairs"]
    }
    assert list(rows) == [*stages, compare.MEAN, compare.OWN, compare.EVERY, compare.SHORT]
    assert all(row["pairs"] == len(THINGS) for row in rows.values())
    # "rather not" is in every chosen answer and in no other; those answers are the longer ones.
    assert rows[compare.OWN]["accuracy"][0] == 1.0
    assert rows[compare.SHORT]["accuracy"][0] == 0.0 and rows[compare.SHORT]["ece"] is None
    assert (out / "comparison.md").read_text() == table and "### pairs" in table
    assert (out / "calibration_pairs.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared(finished, tmp_path):
    _, file, stages = finished
    with pytest.raises(DataError, match="name as many"):
        compare.run(stages, [file, file], [file], out=tmp_path, inverse_penalty=1.0)
    with pytest.raises(CheckpointError, match=r"no done\.json"):
        compare.nats_per_score(str(tmp_path))
