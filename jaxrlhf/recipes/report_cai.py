"""The last stage of `cai`: what revisions did, how good labels are, where the policies stand.

Written: `report/report.html`, `report/plots/*.png`, `report/samples.jsonl` and `summary.json`.
`cai_figures.py` has the numbers; here they are drawn and told.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrlhf import plots
from jaxrlhf.config import dump
from jaxrlhf.data import preferences, sources
from jaxrlhf.evals.policy import PolicyEvaluation
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.plots import Line, Point
from jaxrlhf.progress import console
from jaxrlhf.recipes import cai_figures, stages
from jaxrlhf.recipes.cai_figures import Figures
from jaxrlhf.recipes.cai_tasks import CAITask
from jaxrlhf.report import Report

EXAMPLES = 8


def run(config: Any, task: CAITask, models: Any) -> dict[str, Any]:
    """Evaluate and write the report; returns the summary."""
    root, judged = Path(config.output_dir), task.judge is not None
    chains = {folder.name: _rows(folder / "chains.jsonl") for folder in _folders(root, "revise")}
    labels = {folder.name: _rows(folder / "labels.jsonl") for folder in _folders(root, "label")}
    found = cai_figures.evaluate(config, task, models)
    summary = figures(config, task, chains, labels, found)
    report = Report("Constitutional AI", f"{root}, seed {config.seed}")
    revised(report, summary["chains"], judged)
    labelled(report, summary["labels"])
    policies(report, summary, judged)
    samples(report, chains["revise"], found)
    report.config(dump(config))
    path = report.save(root / "report")
    _write_samples(root / "report" / "samples.jsonl", found)
    stages.write_json(root / "summary.json", summary)
    console.print(f"report: {path.absolute()}")
    return summary


def figures(
    config: Any,
    task: CAITask,
    chains: Mapping[str, Sequence[dict]],
    labels: Mapping[str, Sequence[dict]],
    found: Mapping[str, PolicyEvaluation],
) -> dict[str, Any]:
    """All numbers of a run, as `summary.json` has them."""
    root, judged = Path(config.output_dir), task.judge is not None
    measure = cai_figures.measure(config, task)
    summary: dict[str, Any] = {
        "seed": config.seed,
        "sl_cai": f"SL-CAI, {config.sl_revisions[0]}",
        "rl_cai": config.arms[0].name,
        "chains": {
            name: cai_figures.chain_figures(rows, measure, judged=judged)
            for name, rows in chains.items()
        },
        "labels": {
            name: cai_figures.label_figures(rows)
            if judged
            else stages.read_json(root / name / "done.json")
            for name, rows in labels.items()
        },
        "policies": {
            name: cai_figures.policy_figures(x, judged=judged) for name, x in found.items()
        },
        "paths": {
            arm.name: cai_figures.path_figures(root / "arms" / arm.name / "ppo")
            for arm in config.arms
        },
        "starts": {arm.name: arm.start for arm in config.arms},
        "elo": cai_figures.elo_figures(found, judged=judged),
        "seconds": {
            str(path.parent.relative_to(root)): stages.read_json(path)["seconds"]
            for path in sorted(root.glob("**/done.json"))
        },
    }
    if judged and labels:
        pairs = root / "sample" / "samples.jsonl"
        summary["preference_accuracy"] = cai_figures.preference_accuracy(config, task, pairs)
    return summary


def revised(report: Report, chains: Mapping[str, Figures], judged: bool) -> None:
    """Harm and help by revision number, and what each principle did."""
    report.heading("What revisions do")
    main = "harm" if judged else "score"
    report.figure("revisions", harm_by_revision(chains, main))
    if judged:
        report.figure("help_by_revision", help_by_revision(chains))
    rows = [
        [name, x["chains"], x["discarded"], *x[main][:1], x[main][len(x[main]) // 2], x[main][-1]]
        for name, x in chains.items()
    ]
    head = ["chain", "prompts", "discarded", f"{main}, response", "half-way", "last revision"]
    report.table(head, rows, caption="Discarded: the model did not follow the format somewhere")
    effects = chains["revise"]["principles"]
    report.table(
        ["principle", "revisions", "changed", f"{main} before", "after"],
        [list(effect.values()) for effect in effects],
        caption="By principle",
    )


def harm_by_revision(chains: Mapping[str, Figures], main: str = "harm") -> Any:
    """One line a chain with its interval, and the analytic curve of the first."""
    drawn = [
        Line(_count(x[main]), x[main], name, low=x[f"{main}_low"], high=x[f"{main}_high"])
        for name, x in chains.items()
    ]
    first = next(iter(chains.values()))
    if "analytic" in first:
        curve = first["analytic"]
        drawn.append(Line(_count(curve), curve, "analytic, (3/4)^n", style="dashed"))
    ylabel = "harmful words a response" if main == "harm" else "preference model's score"
    title = "Harm by revision" if main == "harm" else "Score by revision"
    return plots.lines(drawn, xlabel="revisions", ylabel=ylabel, title=title)


def help_by_revision(chains: Mapping[str, Figures]) -> Any:
    """One line a chain."""
    drawn = [Line(_count(x["help"]), x["help"], name) for name, x in chains.items()]
    return plots.lines(
        drawn,
        xlabel="revisions",
        ylabel="share of the helpful answer's words",
        title="Helpfulness by revision",
    )


def labelled(report: Report, labels: Mapping[str, Figures]) -> None:
    """What a judge's labels are worth."""
    if not labels:
        return
    report.heading("AI labels")
    names = [name for name in next(iter(labels.values())) if name != "reasons"]
    rows = [[name, *(x.get(column, "") for column in names)] for name, x in labels.items()]
    report.table(
        ["judge", *(name.replace("_", " ") for name in names)],
        rows,
        caption="accuracy: averaged over both orders, against the truth of the question asked; "
        "first place: mean P(the response shown first), .5 where places do not matter",
    )


def policies(report: Report, summary: Mapping[str, Any], judged: bool) -> None:
    """The plane of harm and help, the table, the ratings."""
    report.heading("Policies")
    found = summary["policies"]
    if judged:
        report.figure("plane", plane(found, summary["paths"]))
        report.figure("harm_by_kl", harm_by_kl(summary["paths"]))
    names = list(next(iter(found.values())))
    rows = [[name, *(_cell(x[column]) for column in names)] for name, x in found.items()]
    report.table(
        ["policy", *(name.replace("_", " ") for name in names)],
        rows,
        caption="Held-out prompts; 95 % intervals, a bootstrap over prompts",
    )
    elo = summary["elo"]
    rows = [[name, *(_cell(elo[kind][name], 0) for kind in elo)] for name in found]
    report.table(
        ["policy", *(f"Elo, {kind} prompts" for kind in elo)],
        rows,
        caption="A round robin on the same prompts, judged by "
        + ("gold" if judged else "the preference model")
        + "; the pre-trained model has 0; intervals of the fit",
    )


def plane(found: Mapping[str, Figures], arms: Collection[str]) -> Any:
    """Help on benign prompts against harm on red-team ones, a point a policy."""
    return plots.points(
        [
            Point(
                x["harm_red"][0],
                x["help_benign"][0],
                name,
                "after it" if name in arms else "before reinforcement learning",
            )
            for name, x in found.items()
        ],
        xlabel="harmful words a response, red-team prompts",
        ylabel="help, benign prompts",
        title="Help against harm",
    )


def harm_by_kl(paths: Mapping[str, Figures]) -> Any:
    """The path of each arm through KL and harm."""
    drawn = [Line(x["kl"], x["harm"], name, style="connected") for name, x in paths.items()]
    return plots.lines(
        drawn,
        xlabel="KL to the policy that the arm starts from, nats a sequence",
        ylabel="harmful words a response, red-team prompts",
        title="Harm against KL during PPO",
    )


def samples(
    report: Report, chains: Sequence[Mapping[str, Any]], found: Mapping[str, PolicyEvaluation]
) -> None:
    """A few chains with their critiques, and what every policy answers."""
    report.heading("Before and after")
    kept = [chain for chain in chains if not chain["discarded"]][:EXAMPLES]
    lines = []
    for chain in kept:
        steps = [f"{chain['response']}"]
        for number, one in enumerate(chain["revisions"], start=1):
            critique = f": {one['critique']}" if one["critique"] else ""
            steps.append(f"{number}. {one['principle']}{critique}\n{one['revision']}")
        lines.append({"prompt": str(chain["prompt"]), "response and revisions": "\n".join(steps)})
    report.completions(lines, ["prompt", "response and revisions"], caption="Chains of revisions")
    first = next(iter(found.values()))
    answers = [
        {"prompt": prompt} | {name: x.responses[i] for name, x in found.items()}
        for i, prompt in enumerate(first.prompts[:EXAMPLES])
    ]
    report.completions(answers, ["prompt", *found], caption="Held-out prompts")


def _write_samples(path: Path, found: Mapping[str, PolicyEvaluation]) -> None:
    """Every held-out prompt with the answers of all policies."""
    first = next(iter(found.values()))
    preferences.write_rows(
        path,
        [
            {"prompt": prompt, "responses": {name: x.responses[i] for name, x in found.items()}}
            for i, prompt in enumerate(first.prompts)
        ],
    )


def _folders(root: Path, stage: str) -> list[Path]:
    """The folder of a stage, then those of its variants."""
    return [root / stage, *sorted(root.glob(f"{stage}-*"))] if (root / stage).is_dir() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in sources.load_rows(path)]


def _count(values: Sequence[float]) -> list[int]:
    return list(range(len(values)))


def _cell(interval: Sequence[float], digits: int = 2) -> str:
    return format_interval(Interval(*interval), digits=digits)
