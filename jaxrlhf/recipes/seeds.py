"""`jaxrlhf seeds`: the `rlhf` recipe for several seeds, one table, one picture, one verdict.

The pass rule stands in the config, before anything is run. Intervals: a bootstrap over held-out
prompts inside a seed, Student's t over seeds. A seed that fails is shown as failed, and does not
lose the others; finished seeds are not run again.
"""

import platform
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxrlhf import plots
from jaxrlhf.config import Config
from jaxrlhf.errors import UserError
from jaxrlhf.evals import statistics
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.plots import Line
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import rlhf, stages
from jaxrlhf.sandbox.frontier import frontier


class SeedsConfig(Config):
    """Several seeds of one pipeline."""

    output_dir: str = Field(default="runs/seeds", description="a folder a seed goes in here")
    config: str = Field(default="configs/tiny/rlhf.yaml", description="config of the rlhf recipe")
    overrides: tuple[str, ...] = Field(default=(), description="a.b=c for that config")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="which seeds")
    results: str | None = Field(
        default=None, description="folder for the table (results.md) and the picture; null: none"
    )
    min_gain: float = Field(default=1.2, description="pass rule: gold gained, in base SDs")
    max_kl: float = Field(default=15.0, ge=0, description="pass rule: KL, nats a sequence")
    min_legal: float = Field(default=0.97, ge=0, le=1, description="pass rule: legal continuations")
    min_passes: int = Field(default=4, ge=0, description="seeds that must pass")


CONFIG = SeedsConfig
COLUMNS = ("seed", "gold gain, SD [95 %]", "KL, nats", "legal", "reward accuracy", "minutes", "")


def run(config: SeedsConfig) -> dict[str, Any]:
    """Run every seed, print and write the table; the summary says how many passed."""
    summaries: dict[int, dict[str, Any]] = {}
    lines: list[list[str]] = []
    for seed in config.seeds:
        console.rule(f"seed {seed}")
        try:
            summary = rlhf.run(pipeline(config, seed))
            lines.append(row(config, seed, summary))
            summaries[seed] = summary
        except UserError as error:
            console.print(f"seed {seed} failed: {error}", markup=False)
            lines.append([str(seed), "failed", "", "", "", "", "FAIL"])
    passes = sum(line[-1] == "PASS" for line in lines)
    verdict = "PASS" if passes >= config.min_passes else "FAIL"
    lines.append(average(list(summaries.values()), verdict))
    table(f"{config.config}: {verdict}", COLUMNS, lines)
    if config.results and summaries:
        write_results(config, lines, list(summaries), passes, verdict)
    return {"seeds": len(config.seeds), "passes": passes, "verdict": verdict}


def pipeline(config: SeedsConfig, seed: int) -> rlhf.RLHFConfig:
    """The config of one seed."""
    own = [f"seed={seed}", f"output_dir={Path(config.output_dir) / f'seed-{seed}'}"]
    return rlhf.RLHFConfig.load(config.config, [*config.overrides, *own])


def row(config: SeedsConfig, seed: int, summary: dict[str, Any]) -> list[str]:
    """One line of the table; the last cell is the verdict."""
    missing = [name for name in ("gold_gain_sd", "legal_share") if name not in summary]
    if missing:
        raise UserError(
            f"{config.config}: no {' and '.join(missing)}; the pass rule needs a sandbox"
        )
    passed = (
        summary["gold_gain_sd"] >= config.min_gain
        and summary["kl"] <= config.max_kl
        and summary["legal_share"] >= config.min_legal
    )
    gain = Interval(summary["gold_gain_sd"], *summary["gold_gain_sd_interval"])
    return [
        str(seed),
        format_interval(gain),
        f"{summary['kl']:.2f}",
        f"{summary['legal_share']:.3f}",
        f"{summary['reward_accuracy']:.3f}",
        f"{summary['training_seconds'] / 60:.1f}",
        "PASS" if passed else "FAIL",
    ]


def average(summaries: list[dict[str, Any]], verdict: str) -> list[str]:
    """Mean over seeds with t intervals."""
    if not summaries:
        return ["mean", "", "", "", "", "", verdict]

    def over_seeds(name: str, digits: int) -> str:
        return format_interval(statistics.t_interval([s[name] for s in summaries]), digits=digits)

    minutes = sum(s["training_seconds"] for s in summaries) / len(summaries) / 60
    return [
        "mean [95 %, t]",
        over_seeds("gold_gain_sd", 2),
        over_seeds("kl", 2),
        over_seeds("legal_share", 3),
        over_seeds("reward_accuracy", 3),
        f"{minutes:.1f}",
        verdict,
    ]


def write_results(
    config: SeedsConfig, lines: list[list[str]], seeds: list[int], passes: int, verdict: str
) -> None:
    """`results.md` and `gold_by_kl.png`."""
    folder = Path(config.results or ".")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gold_by_kl.png").write_bytes(plots.png(picture(config, seeds)))
    markdown = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    markdown += ["| " + " | ".join(line) + " |" for line in lines]
    command = f"jaxrlhf seeds config={config.config} results={config.results}"
    text = f"""# PPO in the sandbox, {len(config.seeds)} seeds

`{command}`, {date.today().isoformat()}, {platform.machine()}, {stages.device_line()}.

Rule, written down before the run: gold on held-out prompts rises by {config.min_gain} standard
deviations of the base model's own samples, at an exact KL of at most {config.max_kl:g} nats a
sequence, with a share of legal continuations of at least {config.min_legal}; in
{config.min_passes} of {len(config.seeds)} seeds. **{verdict}: {passes} of {len(config.seeds)}.**

{chr(10).join(markdown)}

Intervals: bootstrap over held-out prompts inside a seed; Student's t over seeds. Minutes: training
stages of one seed, compilation included.

![gold against KL](gold_by_kl.png)
"""
    (folder / "results.md").write_text(text)


def picture(config: SeedsConfig, seeds: list[int]) -> Any:
    """Gold gained against KL, a path a seed, below the best that any policy could do."""
    drawn, reach = [], 1.0
    for seed in seeds:
        root = Path(pipeline(config, seed).output_dir)
        found = read_metrics(root / "ppo")
        _, gold = series(found, "eval/gold")
        _, kl = series(found, "eval/kl")
        spread = stages.read_json(root / "summary.json")["gold_sd_before"]
        gain = [(x - gold[0]) / spread for x in gold]
        drawn.append(Line(kl, gain, f"seed {seed}", style="connected"))
        reach = max(reach, *kl)
    world = pipeline(config, seeds[0]).task.sandbox.world.build()
    best = frontier(world, [0.02 * 1.35**i for i in range(24)])
    spread = stages.read_json(Path(pipeline(config, seeds[0]).output_dir) / "summary.json")[
        "gold_sd_before"
    ]
    base = frontier(world, [0.0]).gold[0]
    inside = [i for i, kl in enumerate(best.kl) if kl <= 1.5 * reach]
    drawn.append(
        Line(
            [best.kl[i] for i in inside],
            [(best.gold[i] - base) / spread for i in inside],
            "best possible (exact)",
            style="dashed",
        )
    )
    return plots.lines(
        drawn,
        xlabel="KL to the reference, nats a sequence",
        ylabel="gold gained, base SDs",
        title="Gold against KL during PPO",
    )
