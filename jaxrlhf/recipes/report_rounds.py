"""The last stage of `rounds`: every round's policy and reward model in one table and its plots.

Read from what the stages left; nothing is computed again. Written: `report/report.html`, its plots,
and `rounds.json`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf import plots
from jaxrlhf.config import dump
from jaxrlhf.evals import statistics
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.plots import Line
from jaxrlhf.progress import console
from jaxrlhf.recipes import rounds_data, stages
from jaxrlhf.report import Report

ACCURACIES = {
    "first": "the first policy",
    "before": "the policy whose answers were just labelled",
    "after": "the new policy, which nobody has labelled",
}


def run(config: Any, *, judged: bool) -> dict[str, Any]:
    """Write the report; returns the figures of the last round, and of all under `by_round`."""
    root = Path(config.output_dir)
    start = stages.read_json(root / "start" / "done.json")
    rounds = [of_round(root, number, start, judged) for number in range(1, config.rounds + 1)]
    report = Report("Rounds of feedback", f"{root}, seed {config.seed}")
    if rounds:
        names = [name for name in HEADLINES if name in rounds[-1]]
        report.facts({HEADLINES[name]: f"{rounds[-1][name]:.3f}" for name in names})
        report.heading("By round")
        report.table(*table(rounds, judged), caption=CAPTION if judged else "")
        for name, figure in pictures(root, rounds, judged).items():
            report.figure(name, figure)
        report.heading("PPO")
        for row in rounds:
            here = rounds_data.name(row["round"])
            grid = plots.grid(read_metrics(root / here / "ppo"), title=here)
            report.figure(f"ppo_{here}", grid, wide=True)
    report.config(dump(config))
    path = report.save(root / "report")
    summary = {"rounds": len(rounds), "by_round": rounds}
    stages.write_json(root / "rounds.json", summary)
    console.print(f"report: {path.absolute()}")
    last = {name: x for name, x in (rounds[-1] if rounds else {}).items() if name != "round"}
    return summary | last


HEADLINES = {
    "gold_gain_sd": "gold gained, base SDs",
    "kl": "KL, nats a sequence",
    "labels": "pairs labelled",
    "accuracy_after": "reward accuracy, own pairs",
}
POLICIES = ("first", "labelled", "new")
CAPTION = (
    "Held-out prompts. Gold gained in standard deviations of the first policy's answers [95 %, "
    "bootstrap over prompts]. Accuracy against gold, on pairs of the first policy, of that whose "
    "answers were labelled, and of the one that was then trained [95 %, Wilson]; on test labels: "
    "on held-out labelled pairs of the round."
)


def of_round(root: Path, number: int, start: dict[str, Any], judged: bool) -> dict[str, Any]:
    """The figures of a round."""
    folder = root / rounds_data.name(number)
    found = stages.read_json(folder / "measure" / "done.json")
    learnt = stages.read_json(folder / "reward" / "done.json")
    kept = ("kl", "score", "length", "legal_share")
    row: dict[str, Any] = {"round": number} | {k: found[k] for k in kept if k in found}
    row["labels"] = sum(
        stages.read_json(root / rounds_data.name(i) / "label" / "done.json")["pairs"]
        for i in range(1, number + 1)
    )
    row["learnt_pairs"] = learnt["pairs"]
    if "eval/accuracy" in learnt:
        row["accuracy_test"] = learnt["eval/accuracy"]
    if judged:
        gain = statistics.paired_bootstrap(found["gold_of_each"], start["gold_of_each"]).difference
        row["gold"] = found["gold"]
        row["gold_gain_sd"], *row["gold_gain_sd_interval"] = (
            x / max(start["gold_sd"], 1e-9) for x in gain
        )
        for when in ACCURACIES:
            row[f"accuracy_{when}"], *row[f"accuracy_{when}_interval"] = found[f"accuracy_{when}"]
    return row


def table(rounds: list[dict[str, Any]], judged: bool) -> tuple[list[str], list[list[Any]]]:
    """Header and a line a round."""
    headers = ["round", "labels so far", "KL, nats", "learned reward"]
    lines = [[x["round"], x["labels"], x["kl"], x["score"]] for x in rounds]
    if any("accuracy_test" in x for x in rounds):
        headers.append("accuracy, test labels")
        for x, line in zip(rounds, lines, strict=True):
            line.append(x.get("accuracy_test", "no test pair"))
    if judged:
        headers += ["gold gained, SD", *(f"accuracy, {name} policy" for name in POLICIES)]
        names = ("gold_gain_sd", *(f"accuracy_{when}" for when in ACCURACIES))
        for x, line in zip(rounds, lines, strict=True):
            line += [format_interval(interval(x, name)) for name in names]
    return headers, lines


def interval(row: dict[str, Any], name: str) -> Interval:
    """A figure of a round with its interval."""
    return Interval(row[name], *row[f"{name}_interval"])


def pictures(root: Path, rounds: list[dict[str, Any]], judged: bool) -> dict[str, Any]:
    """Gold and KL by round, accuracy by round, and the path of every round's PPO."""
    numbers = [x["round"] for x in rounds]
    kl = Line(numbers, [x["kl"] for x in rounds], "KL", style="connected")
    if not judged:
        score = Line(numbers, [x["score"] for x in rounds], "learned reward", style="connected")
        return {"reward_and_kl": _two(score, kl, "learned reward")}
    gold = Line(numbers, [x["gold_gain_sd"] for x in rounds], "gold gained", style="connected")
    accuracies = [
        Line(
            numbers,
            [x[f"accuracy_{when}"] for x in rounds],
            label,
            low=[x[f"accuracy_{when}_interval"][0] for x in rounds],
            high=[x[f"accuracy_{when}_interval"][1] for x in rounds],
        )
        for when, label in ACCURACIES.items()
    ]
    return {
        "gold_and_kl": _two(gold, kl, "gold gained, SD"),
        "accuracy": plots.lines(
            accuracies,
            xlabel="round",
            ylabel="accuracy against gold",
            title="The reward model on pairs of ...",
        ),
        "gold_by_kl": plots.lines(
            [path(root, number) for number in numbers],
            xlabel="√KL to the reference, √nats",
            ylabel="gold, held out",
            title="Gold against √KL, round by round",
        ),
    }


def path(root: Path, number: int, label: str = "") -> Line:
    """Gold against √KL during the PPO of a round."""
    found = read_metrics(root / rounds_data.name(number) / "ppo")
    _, gold = series(found, "eval/gold")
    _, kl = series(found, "eval/kl")
    distance = np.sqrt(np.maximum(kl, 0)).tolist()
    return Line(distance, gold, label or f"round {number}", style="connected")


def _two(left: Line, kl: Line, label: str) -> Any:
    return plots.two_axes(
        left, kl, xlabel="round", left_label=label, right_label="KL, nats", title="By round"
    )
