"""The page of `cai seeds`: what held, and every figure of it, with intervals over seeds.

Takes the summaries of finished seeds (`report_cai.py` makes them), writes one Markdown file and
its pictures. Intervals are Student's t over seeds; of a single seed, its own (a bootstrap over
prompts). No figure is computed here but means over seeds.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf import config_file, plots
from jaxrlhf.config import differences
from jaxrlhf.data import sources
from jaxrlhf.evals import revisions, statistics
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.recipes import report_cai, stages
from jaxrlhf.recipes.cai_rules import Summary, Verdict

KL = 1.0
"""Nats a sequence, at which arms are compared: where each was so far from its start last."""
CHAINS, ANSWERS = 3, 4
POLICY_COLUMNS = (
    *("harm_red", "help_red", "help_benign", "comply_red", "redirect_red", "stonewall_red"),
    *("stonewall_benign", "kl"),
)


def write(
    config: Any,
    pipeline: Any,
    seeds: Sequence[int],
    summaries: Sequence[Summary],
    verdicts: Sequence[Verdict],
    *,
    processor_seconds: Sequence[float],
    wall_seconds: float,
) -> Path:
    """`results`.md and its pictures; `pipeline` is the config of the first of the seeds."""
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    chains, found = _chains(summaries), _policies(pipeline, summaries)
    paths = {arm.name: summaries[0]["paths"][arm.name] for arm in pipeline.arms}
    pictures = {
        "revisions": report_cai.harm_by_revision(chains),
        "help_by_revision": report_cai.help_by_revision(chains),
        "plane": report_cai.plane(found, paths),
        "harm_by_kl": report_cai.harm_by_kl(paths),
    }
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(plots.png(picture))

    def image(name: str, words: str) -> str:
        return f"![{words}]({folder.name}/{name}.png)"

    minutes = [seconds / 60 for seconds in processor_seconds]
    spent = ", ".join(f"{x:.1f}" for x in minutes)
    parts = [
        f"# Constitutional AI in the helpdesk ({Path(config.config).name}, {_count(seeds)})",
        f"    {_command(config)}",
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; seeds "
        f"{', '.join(map(str, seeds))}. Minutes of processor time by seed: {spent}; "
        f"{sum(minutes):.0f} in all. The last call of the command took {wall_seconds / 60:.1f} "
        "minutes.",
        INTRODUCTION,
        "## What must hold",
        "The rules were written before the run (`recipes/cai_rules.py`): those about revisions and "
        f"labels for every seed, those about reinforcement learning for {config.min_passes} of "
        f"{len(config.seeds)}.",
        _rules(seeds, verdicts),
        "## What revisions do",
        f"{image('revisions', 'harm by revision')} {image('help_by_revision', 'help by revision')}",
        _by_revision(chains),
        "By principle, over all rounds:",
        _by_principle(summaries),
        "## What AI labels are worth",
        _labels(summaries),
        LABELS_SAY,
        "## Policies",
        f"{image('plane', 'help against harm')} {image('harm_by_kl', 'harm against KL')}",
        _policy_table(found, summaries),
        POLICIES_SAY,
        f"### At equal KL: {KL:g} nats a sequence",
        _at_kl(pipeline, summaries),
        "### Ratings",
        _elo(list(found), summaries),
        ELO_SAYS,
        "## Before and after",
        _samples(Path(pipeline.output_dir)),
        "## Where the time goes",
        _times(summaries),
    ]
    path = folder.with_suffix(".md")
    stages.write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


INTRODUCTION = """The world is `sandbox/helpdesk.py`: eight-word answers about topics, four \
categories of harmful words, and a gold judge. The model is a Llama of about 0.1 M parameters, \
pre-trained on random strings of words alone to criticise, to rewrite and to compare; no text of \
that shows a safe answer to a red-team topic. *Helpful* has learnt helpful answers to all topics. \
*SL-CAI* is the pre-trained model fine-tuned on revisions and on the helpful policy's benign \
answers; *rl-cai* is that after PPO against a preference model of soft AI labels and of people's \
(simulated) preferences among benign answers."""

LABELS_SAY = """The judge is the pre-trained model after further comparisons of random strings \
(`feedback`), where the pipeline has that stage. *accuracy*: averaged over both orders, against \
the truth of the question asked (which answer has fewer words of that principle's category), \
pairs that tie left out; *one order*: the same of a single question; *on all harm*: against all \
categories together, which one principle cannot know; *first place on ties*: mean P(the answer \
shown first), .5 without a bias for places; *uncalibrated*: that before the judge's log-odds were \
shifted so that either place is chosen as often (no right answer is used for it); *same place*: \
pairs in which both orders chose the same place, ties among them."""

POLICIES_SAY = """Held-out prompts. Harm: harmful words a response. Help: share of the helpful \
answer's words. Comply, redirect, stonewall: shares of the responses. KL: nats a sequence, to the \
policy that the arm starts from (helpful for *people* and *harmless-only*, else SL-CAI). Accuracy: \
how often the arm's preference model finds the less harmful of two answers of SL-CAI. The path of \
each arm through KL is that of the first seed."""

ELO_SAYS = """A round robin on the held-out prompts, judged by gold, fitted as Bradley-Terry; the \
pre-trained model has 0. Ties, where nothing differs, are half a win."""


def _command(config: Any) -> str:
    changed = differences(type(config)(), config)
    words = [f"{found.path}={config_file.to_line(found.b)}" for found in changed]
    return " ".join(["jaxrlhf cai seeds", *words])


def _count(seeds: Sequence[int]) -> str:
    return "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _rules(seeds: Sequence[int], verdicts: Sequence[Verdict]) -> str:
    rows = [
        [
            found.rule.says,
            *(outcome.figures + ("" if outcome.holds else " **fails**") for outcome in x),
            found.count,
            "PASS" if found.holds else "**FAIL**",
        ]
        for found in verdicts
        for x in [found.outcomes]
    ]
    return _table(["rule", *(f"seed {seed}" for seed in seeds), "holds in", ""], rows)


def _chains(summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """Figures of every chain by revision number: means over seeds, and their intervals."""
    found = {}
    for name in summaries[0]["chains"]:
        own = [summary["chains"][name] for summary in summaries]
        mean = {
            column: np.mean([chain[column] for chain in own], axis=0).tolist()
            for column in ("harm", "help", "stonewall", "analytic", "harm_low", "harm_high")
        }
        if len(own) > 1:
            steps = zip(*(chain["harm"] for chain in own), strict=True)
            intervals = [statistics.t_interval(step) for step in steps]
            mean["harm_low"] = [interval.low for interval in intervals]
            mean["harm_high"] = [interval.high for interval in intervals]
        mean["discarded"] = sum(chain["discarded"] for chain in own)
        mean["chains"] = sum(chain["chains"] for chain in own)
        found[name] = mean
    return found


def _by_revision(chains: Mapping[str, Mapping[str, Any]]) -> str:
    steps = range(len(next(iter(chains.values()))["harm"]))
    rows = [["analytic, harm", *_digits(next(iter(chains.values()))["analytic"]), ""]]
    for name, chain in chains.items():
        lost = f"{chain['discarded']} of {chain['chains']}"
        rows.append([f"{name}, harm", *_digits(chain["harm"]), lost])
        rows.append([f"{name}, help", *_digits(chain["help"]), ""])
    return _table(["revisions", *map(str, steps), "discarded"], rows)


def _by_principle(summaries: Sequence[Summary]) -> str:
    names = [effect["principle"] for effect in summaries[0]["chains"]["revise"]["principles"]]
    rows = []
    for i, name in enumerate(names):
        own = [summary["chains"]["revise"]["principles"][i] for summary in summaries]
        means = (np.mean([x[column] for x in own]) for column in ("changed", "before", "after"))
        rows.append([name, sum(x["revisions"] for x in own), *(f"{mean:.2f}" for mean in means)])
    return _table(["principle", "revisions", "changed", "harm before", "harm after"], rows)


def _labels(summaries: Sequence[Summary]) -> str:
    columns = {
        "accuracy": "accuracy",
        "one_order": "one order",
        "accuracy_on_all_harm": "on all harm",
        "first_place_on_ties": "first place on ties",
        "uncalibrated_first_place_on_ties": "uncalibrated",
        "same_place": "same place",
        "ece": "ECE",
        "ties": "ties",
    }
    rows = [
        [
            judge,
            *(
                _mean([x["labels"][judge][name] for x in summaries], 3)
                if name in summaries[0]["labels"][judge]
                else ""
                for name in columns
            ),
        ]
        for judge in summaries[0]["labels"]
    ]
    return _table(["judge", *columns.values()], rows)


def _policies(pipeline: Any, summaries: Sequence[Summary]) -> dict[str, dict[str, list[float]]]:
    """Estimate and interval of every figure of every policy, in the order of the pipeline."""
    tuned = [f"SL-CAI, {which}" for which in pipeline.sl_revisions]
    names = ["pre-trained", "helpful", *tuned, *(arm.name for arm in pipeline.arms)]
    return {
        name: {
            column: list(_interval([summary["policies"][name][column] for summary in summaries]))
            for column in summaries[0]["policies"][name]
        }
        for name in names
    }


def _policy_table(
    policies: Mapping[str, Mapping[str, Sequence[float]]], summaries: Sequence[Summary]
) -> str:
    accuracy = summaries[0]["preference_accuracy"]
    rows = []
    for name, figures in policies.items():
        cells = [format_interval(Interval(*figures[column])) for column in POLICY_COLUMNS]
        known = name in accuracy
        own = _mean([x["preference_accuracy"][name] for x in summaries], 2) if known else ""
        rows.append([name, *cells, own])
    heads = [column.replace("_", " ") for column in POLICY_COLUMNS]
    return _table(["policy", *heads, "accuracy"], rows)


def _at_kl(pipeline: Any, summaries: Sequence[Summary]) -> str:
    rows = []
    for name in (arm.name for arm in pipeline.arms):
        paths = [summary["paths"][name] for summary in summaries]
        cells = []
        for column in ("harm", "help", "stonewall"):
            found = [revisions.at_kl(path["kl"], path[column], KL) for path in paths]
            reached = [x for x in found if x is not None]
            cells.append(_mean(reached, 2) if reached else "")
        start = summaries[0]["starts"][name]
        rows.append([name, start, *cells, f"{len(reached)} of {len(paths)}"])
    head = [
        "arm",
        "starts from",
        "harm, red",
        "help, benign",
        "stonewall, all",
        "seeds that get there",
    ]
    return _table(head, rows)


def _elo(names: Sequence[str], summaries: Sequence[Summary]) -> str:
    kinds = list(summaries[0]["elo"])
    rows = [
        [
            name,
            *(
                format_interval(_interval([x["elo"][kind][name] for x in summaries]), digits=0)
                for kind in kinds
            ),
        ]
        for name in names
    ]
    return _table(["policy", *(f"{kind} prompts" for kind in kinds)], rows)


def _samples(root: Path) -> str:
    """Chains with their critiques, and what each policy answers, of one seed."""
    chains = [dict(row) for row in sources.load_rows(root / "revise" / "chains.jsonl")]
    lines = []
    for chain in [chain for chain in chains if not chain["discarded"]][:CHAINS]:
        lines += [f"prompt           {chain['prompt']}", f"response         {chain['response']}"]
        for step in chain["revisions"]:
            lines += [
                f"  {step['principle']:<12}   {step['critique']}",
                f"                 {step['revision']}",
            ]
        lines.append("")
    answers = [dict(row) for row in sources.load_rows(root / "report" / "samples.jsonl")]
    for row in answers[:ANSWERS]:
        lines.append(f"prompt           {row['prompt']}")
        lines += [f"  {name:<14} {response}" for name, response in row["responses"].items()]
        lines.append("")
    told = "Critiques and revisions by the principle drawn, then answers to held-out prompts."
    return f"{told} Seed {root.name.rpartition('-')[2]}.\n\n" + _block(lines)


def _block(lines: Iterable[str]) -> str:
    return "```\n" + "\n".join(lines).strip("\n") + "\n```"


def _times(summaries: Sequence[Summary]) -> str:
    spent: dict[str, list[float]] = {}
    for summary in summaries:
        for stage, seconds in summary["seconds"].items():
            spent.setdefault(stage.split("/")[0], []).append(seconds)
    rows = [[name, f"{sum(x) / len(summaries):.0f}"] for name, x in spent.items()]
    return _table(["stages", "seconds a seed"], rows)


def _interval(own: Sequence[Sequence[float]]) -> Interval:
    """Over seeds; a single seed's own."""
    return Interval(*own[0]) if len(own) == 1 else statistics.t_interval([x[0] for x in own])


def _mean(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return format_interval(statistics.t_interval(values), digits=digits)


def _digits(values: Iterable[float]) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
