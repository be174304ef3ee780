"""The last stage of `rlhf`: base and trained policy on the same held-out prompts, as a report.

Both answer with the same random numbers, so rows compare in pairs. Intervals are bootstraps over
prompts. Written: `report/report.html`, `report/plots/*.png`, `report/samples.jsonl` and
`summary.json`. Without a judge there is no gold: the learned reward, KL and samples remain.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrlhf import plots, rewards
from jaxrlhf.config import dump
from jaxrlhf.data import preferences
from jaxrlhf.evals import calibration, statistics
from jaxrlhf.evals.policy import Judge, PolicyEvaluation, evaluate_policy
from jaxrlhf.guards import panel
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.plots import Line, Panel
from jaxrlhf.progress import console
from jaxrlhf.recipes import rows, saved, stages
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.report import Report

BATCH = 256
EXAMPLES = 12
LM_PANELS = (Panel("Loss", "nats per token", {"loss": "training", "eval/loss": "held out"}),)


def run(config: Any, ppo: PPOConfig, *, judge: Judge | None = None) -> dict[str, Any]:
    """Evaluate and write the report; returns the summary."""
    root = Path(config.output_dir)
    before, after = evaluate(root, ppo, judge)
    summary = figures(before, after)
    report = Report("RLHF run", f"{root}, seed {config.seed}")
    shown = {label: f"{summary[name]:.2f}" for name, label in HEADLINES.items() if name in summary}
    report.facts(shown)
    learning(report, root, "gold" in before.columns)
    comparison(report, before, after)
    pairs = reward_model(report, root)
    training(report, root, config)
    guards(report, root)
    report.config(dump(config))
    path = report.save(root / "report")
    write_samples(root / "report" / "samples.jsonl", before, after)
    summary |= pairs | {"training_seconds": training_seconds(root)}
    stages.write_json(root / "summary.json", summary)
    console.print(f"report: {path.absolute()}")
    return summary


HEADLINES = {
    "gold_gain_sd": "gold gained, base SDs",
    "gold_before": "gold before",
    "gold_after": "gold after",
    "score_gain": "learned reward gained",
    "kl": "KL, nats a sequence",
    "legal_share": "legal continuations",
}


def evaluate(
    root: Path, ppo: PPOConfig, judge: Judge | None
) -> tuple[PolicyEvaluation, PolicyEvaluation]:
    """Reference and trained policy on the held-out prompts."""
    mesh = ppo.mesh.build()
    lm, reference, tokenizer, _ = saved.load_lm(str(ppo.policy), mesh, dtype=ppo.dtype)
    policy = saved.load_lm(str(root / "ppo" / "model"), mesh, dtype=ppo.dtype).params
    model, reward_params, _, _ = saved.load_scalar(str(ppo.reward_model), mesh, dtype=ppo.dtype)
    prompts, _ = rows.prompts(tokenizer, ppo.eval_prompts, field="eval_prompts")
    parts = np.array_split(np.arange(len(prompts)), -(-len(prompts) // BATCH))
    batches = [prompts.take(part) for part in parts]

    def look(params: Any) -> PolicyEvaluation:
        return evaluate_policy(
            lm,
            params,
            reference,
            batches,
            sampling=ppo.sampling.build(tokenizer),
            key=jax.random.key(ppo.seed + 1),
            decode=rows.decoder(tokenizer),
            reward_fn=rewards.from_model(model, reward_params),
            judge=judge,
        )

    return look(reference), look(policy)


def figures(before: PolicyEvaluation, after: PolicyEvaluation) -> dict[str, Any]:
    """Means of every column before and after, and the gains in standard deviations of the base."""
    summary: dict[str, Any] = {"prompts": len(before.prompts)}
    for name, x in before.columns.items():
        summary[f"{name}_before"] = float(np.mean(x))
        summary[f"{name}_after"] = float(np.mean(after.columns[name]))
    summary["kl"] = summary["kl_after"]
    if "legal_share" in after.columns:
        summary["legal_share"] = summary["legal_share_after"]
    for name in ("gold", "score"):
        if name not in before.columns:
            continue
        spread = float(np.std(before.columns[name]))
        gain = statistics.paired_bootstrap(after.columns[name], before.columns[name]).difference
        unit = f"{name}_gain_sd" if name == "gold" else f"{name}_gain"
        scale = max(spread, 1e-9) if name == "gold" else 1.0
        summary[f"{name}_sd_before"] = spread
        summary[unit] = gain.estimate / scale
        summary[f"{unit}_interval"] = [gain.low / scale, gain.high / scale]
    return summary


def learning(report: Report, root: Path, judged: bool) -> None:
    """Gold and learned reward against steps and KL."""
    found = read_metrics(root / "ppo")
    steps, score = series(found, "eval/score")
    _, kl = series(found, "eval/kl")
    report.heading("Did the reward rise, and the truth with it?")
    label = "reward model's score, held out"
    if not judged:
        for name, x, xlabel in (("steps", steps, "PPO step"), ("KL", kl, "KL, nats a sequence")):
            line = Line(x, score, label, style="solid" if name == "steps" else "connected")
            figure = plots.lines([line], xlabel=xlabel, ylabel="score", title=f"Reward by {name}")
            report.figure(f"reward_by_{name.lower()}", figure)
        return
    _, gold = series(found, "eval/gold")
    for name, x, xlabel in (("steps", steps, "PPO step"), ("KL", kl, "KL, nats a sequence")):
        style = "solid" if name == "steps" else "connected"
        figure = plots.two_axes(
            Line(x, gold, "gold, held out", style=style),
            Line(x, score, label, style=style),
            xlabel=xlabel,
            left_label="gold",
            right_label="learned reward",
            title=f"Gold and learned reward by {name}",
        )
        report.figure(f"gold_by_{name.lower()}", figure)


def comparison(report: Report, before: PolicyEvaluation, after: PolicyEvaluation) -> None:
    """Columns before and after with intervals, distributions, and completions side by side."""
    report.heading("Before and after")
    table = []
    for name, x in before.columns.items():
        y = after.columns[name]
        change = statistics.paired_bootstrap(y, x).difference
        table.append(
            [name, float(np.mean(x)), float(np.mean(y)), statistics.format_interval(change)]
        )
    report.table(
        ["figure", "before", "after", "change [95 % interval]"],
        table,
        caption=f"{len(before.prompts)} held-out prompts, one sample each, same random numbers",
    )
    main = "gold" if "gold" in before.columns else "score"
    samples = {"before": before.columns[main].tolist(), "after": after.columns[main].tolist()}
    report.figure("distribution", plots.histogram(samples, xlabel=main, title=f"{main} of samples"))
    lengths = {
        "before": before.columns["length"].tolist(),
        "after": after.columns["length"].tolist(),
    }
    report.figure("lengths", plots.histogram(lengths, xlabel="tokens", title="Response length"))
    order = np.argsort(after.columns["score"], kind="stable")
    chosen = {
        "Random held-out prompts": list(range(min(EXAMPLES, len(order)))),
        "Lowest-scored after training": order[:EXAMPLES].tolist(),
    }
    for caption, indices in chosen.items():
        lines = [
            {
                "prompt": before.prompts[i],
                "before": before.responses[i],
                "after": after.responses[i],
                "score before": float(before.columns["score"][i]),
                "score after": float(after.columns["score"][i]),
            }
            for i in indices
        ]
        report.completions(lines, list(lines[0]), caption=caption)


def reward_model(report: Report, root: Path) -> dict[str, Any]:
    """Accuracy and calibration on the test pairs; returns the figures."""
    path = root / "reward" / "pair_scores.json"
    if not path.is_file():
        return {}
    scores = stages.read_json(path)
    found = calibration.evaluate_pairs(scores["chosen"], scores["rejected"], labels=scores["label"])
    report.heading("Is the reward model right, and does it know when?")
    report.table(
        ["|margin| at least", "pairs", "accuracy"],
        [[t.threshold, t.pairs, t.accuracy] for t in found.by_margin],
        caption=f"Test pairs: accuracy {statistics.format_interval(found.accuracy, digits=3)}, "
        f"log-loss {found.log_loss:.3f}, ECE {found.ece:.3f}",
    )
    curve = found.reliability
    report.figure(
        "calibration",
        plots.reliability(
            curve.confidence.tolist(), curve.accuracy.tolist(), curve.pairs.tolist(), found.ece
        ),
    )
    margins = np.subtract(scores["chosen"], scores["rejected"]).tolist()
    report.figure(
        "margins",
        plots.histogram({"chosen - rejected": margins}, xlabel="margin, nats", title="Margins"),
    )
    return {f"reward_{name}": x for name, x in found.scalars().items()}


def training(report: Report, root: Path, config: Any) -> None:
    """How each stage went."""
    report.heading("Training")
    for name in ("pretrain", "sft"):
        if (root / name / "metrics.jsonl").is_file():
            grid = plots.grid(read_metrics(root / name), LM_PANELS, title=name, columns=1)
            report.figure(f"{name}_loss", grid)
    report.figure("ppo", plots.grid(read_metrics(root / "ppo"), title="PPO"), wide=True)


def guards(report: Report, root: Path) -> None:
    """Who watched, and what they found."""
    path = root / "ppo" / panel.RECORD
    if path.is_file():
        report.heading("What the guards saw")
        status = stages.read_json(path)["guards"]
        report.table(["guard", "what it did"], [list(row) for row in status.items()])


def training_seconds(root: Path) -> float:
    """Wall-clock seconds of all stages, compilation included."""
    return sum(stages.read_json(path)["seconds"] for path in sorted(root.glob("*/done.json")))


def write_samples(path: Path, before: PolicyEvaluation, after: PolicyEvaluation) -> None:
    """Every held-out prompt with both answers."""
    every = range(len(before.prompts))
    old, new = before.rows(every), after.rows(every)
    preferences.write_rows(
        path,
        [{"prompt": a["prompt"], "before": a, "after": b} for a, b in zip(old, new, strict=True)],
    )
