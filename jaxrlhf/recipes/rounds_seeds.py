"""`jaxrlhf rounds seeds`: one budget of labels in one round or split over several, some seeds.

Every arm gets the same number of labels, the same first policy and the same PPO; what differs is
how many rounds the labels are spread over. Arms are compared where the last round's PPO first
reaches the same KL to the first policy. The rule stands in the config, before anything is run: the
most rounds beat the fewest in gold. What is finished is not run again; a seed that fails is shown
as failed and does not lose the others. `rounds_page.py` writes the page.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.evals.revisions import at_kl
from jaxrlhf.evals.statistics import t_interval
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import rounds, rounds_data, rounds_page, stages
from jaxrlhf.recipes.rounds import RoundsConfig


class RoundsSeedsConfig(Config):
    """Arms of `jaxrlhf rounds`, for several seeds."""

    output_dir: str = Field(default="runs/rounds-seeds", description="a folder a seed goes in here")
    config: str = Field(default="configs/rounds.yaml", description="config of the rounds recipe")
    overrides: tuple[str, ...] = Field(default=(), description="a.b=c for that config")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="which seeds")
    arms: tuple[int, ...] = Field(
        default=(1, 2, 4), min_length=2, description="over how many rounds the labels are split"
    )
    labels: int = Field(default=3000, ge=1, description="pairs labelled in all, in every arm")
    kl: float = Field(default=25.0, gt=0, description="nats a sequence, where arms are compared")
    split_kl: bool = Field(
        default=True,
        description="a round's PPO may go its share of those nats further than the one before; "
        "false: all of them every time",
    )
    min_gain: float = Field(
        default=0.2, description="pass rule: gold by which most rounds beat fewest, in base SDs"
    )
    min_passes: int = Field(default=4, ge=0, description="seeds that must pass")
    results: str | None = Field(
        default=None,
        description="the page is written to this name .md, its pictures to this folder; null: none",
    )

    @pydantic.model_validator(mode="after")
    def _arms_can_be_compared(self) -> Self:
        if list(self.arms) != sorted(set(self.arms)) or self.arms[0] < 1:
            raise ValueError(f"arms = {list(self.arms)}: must be numbers from 1 on, rising")
        for arm in self.arms:
            if self.labels % arm:
                raise ValueError(f"labels = {self.labels}: do not split over {arm} rounds")
        return self


CONFIG = RoundsSeedsConfig
EXAMPLE = "jaxrlhf rounds seeds results=runs/rounds-seeds/results"


class Arm(NamedTuple):
    """What came of one arm of a seed."""

    seed: int
    rounds: int
    config: RoundsConfig
    by_round: list[dict[str, Any]]
    gain_at_kl: float | None
    """Gold gained in base SDs where the last PPO reaches the KL of the comparison; None: never."""


class Seed(NamedTuple):
    """A finished seed. `difference`: most rounds against fewest, in base SDs."""

    seed: int
    arms: list[Arm]
    difference: float | None
    passed: bool


def run(config: RoundsSeedsConfig) -> dict[str, Any]:
    """Run every arm of every seed, print and write the table; the summary has the verdict."""
    found: list[Seed] = []
    for seed in config.seeds:
        console.rule(f"seed {seed}")
        try:
            found.append(run_seed(config, seed))
        except UserError as error:
            console.print(f"seed {seed} failed: {error}", markup=False)
    passes = sum(seed.passed for seed in found)
    verdict = "PASS" if passes >= config.min_passes else "FAIL"
    table(f"{config.config}: {verdict}", *rounds_page.by_seed(config, found))
    if config.results and found:
        rounds_page.write(config, found, passes, verdict)
    differences = [seed.difference for seed in found if seed.difference is not None]
    return {
        "seeds": len(found),
        "passes": passes,
        "difference": t_interval(differences).estimate if differences else None,
        "verdict": verdict,
    }


def run_seed(config: RoundsSeedsConfig, seed: int) -> Seed:
    """The first policy once, then the arms."""
    first = pipeline(config, seed, "base", "rounds=0")
    if first.task.kind != "sandbox":
        raise ConfigError(f"{config.config}: task.kind is {first.task.kind}; gold needs a sandbox")
    rounds.run(first)
    own = ("pretrain=null", "sft=null", f"model_path={rounds.reference(first)}")
    arms = []
    for number in config.arms:
        console.rule(f"seed {seed}: {number} rounds" if number > 1 else f"seed {seed}: 1 round")
        split = [f"rounds={number}", f"pairs={config.labels // number}"]
        if config.split_kl:
            split.append(f"kl_step={config.kl / number}")
        else:
            split += ["kl_step=null", f"ppo.stop_kl={config.kl}"]
        one = pipeline(config, seed, f"rounds-{number}", *own, *split)
        by_round = rounds.run(one)["by_round"]
        arms.append(Arm(seed, number, one, by_round, gain_at_kl(config, one)))
    fewest, *_, most = (arm.gain_at_kl for arm in arms)
    difference = None if fewest is None or most is None else most - fewest
    return Seed(seed, arms, difference, difference is not None and difference >= config.min_gain)


def pipeline(config: RoundsSeedsConfig, seed: int, name: str, *own: str) -> RoundsConfig:
    """The config of a run of a seed."""
    folder = Path(config.output_dir) / f"seed-{seed}" / name
    own = (f"seed={seed}", f"output_dir={folder}", *own)
    return RoundsConfig.load(config.config, [*config.overrides, *own])


def gain_at_kl(config: RoundsSeedsConfig, arm: RoundsConfig) -> float | None:
    """Gold gained where the PPO of the last round first reaches the KL of the comparison."""
    root = Path(arm.output_dir)
    start = stages.read_json(root / "start" / "done.json")
    found = read_metrics(root / rounds_data.name(arm.rounds) / "ppo")
    _, kl = series(found, "eval/kl")
    _, gold = series(found, "eval/gold")
    reached = at_kl(kl, gold, config.kl)
    return None if reached is None else (reached - start["gold"]) / start["gold_sd"]
