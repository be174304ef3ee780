"""Tables and pictures of a weak-to-strong experiment: `w2s.md`, `w2s/*.png`, `results.json`.

Every number is read from the files of the cells. PGR stands in a table only where the gap between
teacher and ceiling is clear (`evals.weak_to_strong`), else the table says why not. Over seeds: the
mean with Student's t interval; inside a seed: bootstrap over test rows. The column `oracle` is the
best test accuracy on the way, which nobody could have chosen without the truth.
"""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf import plots
from jaxrlhf.data import sources
from jaxrlhf.evals import statistics
from jaxrlhf.evals import weak_to_strong as evals
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.plots import Line
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import stages, w2s_ppo
from jaxrlhf.recipes.supervisors import probs
from jaxrlhf.recipes.w2s_task import TEST

PAGE, PICTURES = "w2s.md", "w2s"
AXES = ("supervisor", "student", "tuning", "learning_rate", "start", "loss")
FIGURES = {
    "weak": "weak",
    "accuracy": "student",
    "ceiling": "ceiling",
    "stopped": "stopped by weak labels",
    "oracle": "oracle stop",
    "agreement": "agreement",
    "agreement_on_errors": "agreement on weak errors",
    "accuracy_on_errors": "accuracy on weak errors",
    "auroc": "AUROC",
}
WIDE = (*list(FIGURES.values())[3:6], *list(FIGURES.values())[7:])  # not on a terminal


class Outcome(NamedTuple):
    """What one cell measured, on the test rows."""

    seed: int
    axes: dict[str, str]
    weak: float
    accuracy: float
    ceiling: float
    stopped: float | None  # accuracy where the loss on weak validation labels was least
    oracle: float | None  # the best accuracy at any evaluation
    agreement: float
    agreement_on_errors: float | None
    accuracy_on_errors: float | None
    auroc: float | None
    log_loss: float
    recovery: evals.Recovery
    seconds: float


def run(
    config: Any,
    done: Mapping[str, Sequence[Any]],
    failed: Mapping[str, str],
    *,
    spent: Mapping[str, float],
    improved: Sequence[w2s_ppo.Improved] = (),
) -> dict[str, Any]:
    """Measure, print, write; the summary has the verdict."""
    outcomes = {name: [measure(one) for one in some] for name, some in done.items()}
    folder = Path(config.results or config.output_dir)
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    cells = sum(map(len, outcomes.values()))
    parts, summary = [heading(config, spent)], dict[str, Any](cells=cells, failed=len(failed))
    for name, found in outcomes.items():
        if not found:
            continue
        parts.append(f"## {name}\n")
        if config.rule and config.rule.grid == name:
            lines, verdict = judged(config.rule, found)
            console.print(f"{name}: {verdict}")
            parts += [rule_text(config.rule, verdict), markdown(RULE_COLUMNS, lines)]
            summary["verdict"] = verdict
        columns, lines = over_seeds(found)
        narrow = [i for i, column in enumerate(columns) if column not in WIDE]
        table(name, [columns[i] for i in narrow], [[line[i] for i in narrow] for line in lines])
        parts.append(markdown(columns, lines))
        for title, figure in pictures(name, found, done[name]).items():
            (folder / PICTURES / f"{title}.png").write_bytes(plots.png(figure))
            parts.append(f"![{title}]({PICTURES}/{title}.png)\n")
    if improved:
        columns, lines = w2s_ppo.section(improved)
        table("PPO", columns, lines)
        (folder / PICTURES / "ppo.png").write_bytes(plots.png(w2s_ppo.picture(improved)))
        parts += [PPO_TEXT, markdown(columns, lines), f"![gold]({PICTURES}/ppo.png)\n"]
    if failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {k}: {why}" for k, why in failed.items()))
        for which, why in failed.items():
            console.print(f"failed: {which}: {why}", markup=False)
    (folder / PAGE).write_text("\n".join(parts) + "\n")
    records = {name: [as_record(one) for one in found] for name, found in outcomes.items()}
    records["ppo"] = [w2s_ppo.as_record(one) for one in improved]
    records |= {"failed": dict(failed), "config": config.model_dump(mode="json")}
    stages.write_json(Path(config.output_dir) / "results.json", records)
    console.print(f"results: {(folder / PAGE).absolute()}")
    return summary


def measure(done: Any) -> Outcome:
    """The figures of a cell, from its files."""
    truth = labels(done.task)
    weak, student = labels(done.root), labels(done.student / "predicted")
    ceiling = labels(done.ceiling / "predicted")
    beside = evals.compare(student, weak, truth)
    right = [evals.correct(x, truth) for x in (weak, student, ceiling)]
    stopped, oracle = stops(done.student)
    cell = done.cell
    return Outcome(
        seed=cell.seed,
        axes={name: _short(getattr(cell, name)) for name in AXES},
        weak=float(right[0].mean()),
        accuracy=float(right[1].mean()),
        ceiling=float(right[2].mean()),
        stopped=stopped,
        oracle=oracle,
        agreement=beside.agreement,
        agreement_on_errors=beside.agreement_on_errors,
        accuracy_on_errors=beside.accuracy_on_errors,
        auroc=beside.auroc,
        log_loss=beside.log_loss,
        recovery=evals.recovered(*right),
        seconds=stages.read_json(done.student / "done.json")["seconds"],
    )


def labels(folder: Path) -> np.ndarray:
    """Probabilities `[N, K]` of the test rows in a folder of label files."""
    return probs(sources.load_rows(folder / TEST))


def stops(folder: Path) -> tuple[float | None, float | None]:
    """Test accuracy where the weak validation loss was least, and the best there was."""
    found = read_metrics(folder)
    steps, accuracy = series(found, "eval/test_accuracy")
    known, loss = series(found, "eval/validation_loss")
    if not accuracy:
        return None, None
    at = dict(zip(steps, accuracy, strict=True))
    stopped = at[known[int(np.argmin(loss))]] if loss else None
    return stopped, max(accuracy)


# ------------------------------------------------------------------ tables


RULE_COLUMNS = (
    *("seed", "weak", "ceiling", "PGR, baseline [95 %]", "PGR, loss [95 %]", "gain"),
    *("agreement on weak errors, baseline", "with loss", ""),
)


def judged(rule: Any, found: Sequence[Outcome]) -> tuple[list[list[str]], str]:
    """One line a seed, and the verdict: the baseline's PGR in (0, 1), a gain, less agreement."""
    lines, passes = [], 0
    for seed in sorted({one.seed for one in found}):
        own = [one for one in found if one.seed == seed]
        base = next((o for o in own if o.axes["loss"] == rule.baseline), None)
        best = next((o for o in own if o.axes["loss"] == rule.loss), None)
        if base is None or best is None:
            lines.append([str(seed), *[""] * (len(RULE_COLUMNS) - 2), "FAIL: a cell is missing"])
            continue
        a, b = base.recovery.value, best.recovery.value
        errors = base.agreement_on_errors, best.agreement_on_errors
        passed = (
            a is not None
            and b is not None
            and 0 < a < 1
            and b - a >= rule.min_gain
            and None not in errors
            and errors[1] < errors[0]  # type: ignore[operator]
        )
        passes += passed
        gain = "" if a is None or b is None else f"{b - a:.2f}"
        lines.append(
            [
                *(str(seed), f"{base.weak:.3f}", f"{base.ceiling:.3f}"),
                *(shown(base.recovery), shown(best.recovery), gain),
                *("" if x is None else f"{x:.2f}" for x in errors),
                "PASS" if passed else "FAIL",
            ]
        )
    return lines, "PASS" if passes >= rule.min_passes else "FAIL"


def over_seeds(found: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """One line a combination of axes, means over seeds; axes that never vary are left out."""
    axes = varying(found) or ["loss"]
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for one in found:
        groups.setdefault(tuple(one.axes[name] for name in axes), []).append(one)
    lines = []
    for key, some in groups.items():
        lines.append([*key, str(len(some)), mean_pgr(some), *(mean(some, x) for x in FIGURES)])
    return [*axes, "seeds", "PGR [95 %]", *FIGURES.values()], lines


def varying(found: Sequence[Outcome]) -> list[str]:
    """The axes on which the cells of a grid differ; not rates that sizes have of their own."""
    rates = {(one.axes["student"], one.axes["learning_rate"]) for one in found}
    by_size = len(rates) == len({student for student, _ in rates})
    axes = [name for name in AXES if not (by_size and name == "learning_rate")]
    return [name for name in axes if len({one.axes[name] for one in found}) > 1]


def mean_pgr(some: Sequence[Outcome]) -> str:
    """The mean PGR of the seeds that have one, and why the others have none."""
    values = [one.recovery.value for one in some if one.recovery.value is not None]
    notes = [one.recovery.note for one in some if one.recovery.note]
    why = [f"{note} ({notes.count(note)} of {len(some)})" for note in dict.fromkeys(notes)]
    if len(some) == 1:
        return shown(some[0].recovery)
    parts = [format_interval(statistics.t_interval(values))] if values else []
    return "; ".join(parts + why)


def mean(some: Sequence[Outcome], name: str) -> str:
    values = [x for one in some if (x := getattr(one, name)) is not None]
    return f"{np.mean(values):.3f}" if values else ""


def shown(recovery: evals.Recovery) -> str:
    """PGR with its interval, or why there is none."""
    if recovery.interval is None:
        return recovery.note
    finite = Interval(*(float(np.clip(x, -99, 99)) for x in recovery.interval))
    return format_interval(finite)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = [":---" if i == 0 else "---:" for i in range(len(columns))]
    rows = [columns, rule, *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def heading(config: Any, spent: Mapping[str, float]) -> str:
    return (
        f"# Weak to strong\n\n`{shlex.join(['jaxrlhf', *sys.argv[1:]])}`, "
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; "
        f"{spent['seconds'] / 60:.0f} minutes, {spent['processor_seconds'] / 60:.0f} minutes of "
        "processor time.\n\n"
        "PGR = (student - weak) / (ceiling - weak) on test accuracy, given where the gap is above "
        ".05 and 3 standard errors. Intervals: bootstrap over test rows for one seed, Student's t "
        f"over seeds. Ceilings learn the truth of the {config.ceiling_half} half. `oracle stop` is "
        "the best test accuracy at any evaluation, which takes the truth to choose.\n"
    )


PPO_TEXT = """## PPO

The same policy, improved with each reward model: gold on held-out prompts, in standard deviations
of the policy's own answers, gained from before PPO to its end. Scores were brought to mean 0,
standard deviation 1 on the policy's answers first. Accuracy: of the reward model, on the test
pairs. Intervals: bootstrap over prompts for one seed, Student's t over seeds; other columns: means.
"""


def rule_text(rule: Any, verdict: str) -> str:
    return (
        f"Rule, written down before the run: the baseline ({rule.baseline}) recovers between 0 and "
        f"1 of the gap, {rule.loss} at least {rule.min_gain} more, and agrees less with its "
        f"teacher where that errs; in {rule.min_passes} seeds. **{verdict}.**\n"
    )


def as_record(one: Outcome) -> dict[str, Any]:
    """JSON of an outcome; infinite bounds as text."""
    interval = one.recovery.interval
    bounds = None if interval is None else [x if np.isfinite(x) else str(x) for x in interval]
    recovery = {**one.recovery._asdict(), "interval": bounds}
    record = {**one._asdict(), **one.axes, "recovery": recovery}
    return {name: x for name, x in record.items() if name != "axes"}


# ------------------------------------------------------------------ pictures


class Picture(NamedTuple):
    """What `plots.lines` draws."""

    lines: list[Line]
    xlabel: str
    ylabel: str
    title: str


def pictures(name: str, found: Sequence[Outcome], done: Sequence[Any]) -> dict[str, Any]:
    """The figures of a grid, by file name; none that would need more colours than there are."""
    made = {"errors": errors(found)}
    axes = varying(found)
    if "student" in axes:
        for what in ("accuracy", "PGR", "agreement"):
            made |= by_student_or_split(found, what)
    elif set(axes) <= {"loss"}:
        first = min(one.cell.seed for one in done)
        made["curves"] = curves([d for d in done if d.cell.seed == first], found)
    return {
        f"{name}_{kind}": plots.lines(
            picture.lines, xlabel=picture.xlabel, ylabel=picture.ylabel, title=picture.title
        )
        for kind, picture in made.items()
        if any(line.x for line in picture.lines) and len(picture.lines) <= len(plots.PALETTE)
    }


def curves(done: Sequence[Any], found: Sequence[Outcome]) -> Picture:
    """Accuracy against steps for every loss of one seed, with the three ways to stop."""
    drawn: list[Line] = []
    marks: dict[str, list[tuple[float, float]]] = {}
    for one in done:
        log = read_metrics(one.student)
        steps, accuracy = series(log, "eval/test_accuracy")
        known, loss = series(log, "eval/validation_loss")
        if not steps:
            continue
        drawn.append(Line(steps, accuracy, one.cell.loss))
        at = dict(zip(steps, accuracy, strict=True))
        stops = {"final": steps[-1], "oracle stop": max(at, key=at.__getitem__)}
        if loss:
            stops["stopped by weak labels"] = known[int(np.argmin(loss))]
        for kind, step in stops.items():
            marks.setdefault(kind, []).append((step, at[step]))
    seed = done[0].cell.seed
    level = next(one for one in found if one.seed == seed)
    last = max((step for step, _ in marks.get("final", [])), default=0)
    for label, y in (("weak teacher", level.weak), ("ceiling", level.ceiling)):
        drawn.append(Line([0, last], [y, y], label, style="dashed"))
    for kind, points in marks.items():
        drawn.append(Line([x for x, _ in points], [y for _, y in points], kind, style="points"))
    return Picture(drawn, "update", "test accuracy", f"Accuracy on the way, seed {seed}")


def by_student_or_split(found: Sequence[Outcome], what: str) -> dict[str, Picture]:
    """`by_student`; a picture a loss where one would need more colours than there are."""
    name, whole = f"{what.lower()}_by_student", by_student(found, what)
    if len(whole.lines) <= len(plots.PALETTE):
        return {name: whole}
    losses = dict.fromkeys(one.axes["loss"] for one in found)
    made = {}
    for loss in losses:
        part = by_student([one for one in found if one.axes["loss"] == loss], what)
        made[f"{name}_{loss}"] = part._replace(title=f"{part.title}, {loss}")
    return made


def by_student(found: Sequence[Outcome], what: str) -> Picture:
    """Accuracy, agreement or PGR against the student's size, a line for all else that varies."""
    axes = [name for name in varying(found) if name != "student"] or ["loss"]
    students = list(dict.fromkeys(one.axes["student"] for one in found))

    def line(label: str, some: Sequence[Outcome], figure: str, style: plots.Style) -> Line:
        points = []
        for i, student in enumerate(students):
            of_size = [one for one in some if one.axes["student"] == student]
            known = [x for one in of_size if (x := value(one, figure)) is not None]
            points += [(i, float(np.mean(known)))] if known else []
        return Line([x for x, _ in points], [y for _, y in points], label, style=style)

    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for one in found:
        groups.setdefault(tuple(one.axes[name] for name in axes), []).append(one)
    drawn = [line(", ".join(key), some, what, "solid") for key, some in groups.items()]
    if what == "accuracy" and {*axes} <= {"supervisor", "loss"}:
        drawn.append(line("ceiling", found, "ceiling", "dashed"))
    names = ", ".join(f"{i}: {student}" for i, student in enumerate(students))
    return Picture(drawn, names, what, f"{what} by student")


def value(one: Outcome, figure: str) -> float | None:
    return one.recovery.value if figure == "PGR" else getattr(one, figure)


def errors(found: Sequence[Outcome]) -> Picture:
    """PGR against agreement where the teacher errs, a colour a loss."""
    drawn = []
    for loss in dict.fromkeys(one.axes["loss"] for one in found):
        points = [
            (one.agreement_on_errors, one.recovery.value)
            for one in found
            if one.axes["loss"] == loss
            and one.recovery.value is not None
            and one.agreement_on_errors is not None
        ]
        drawn.append(Line([x for x, _ in points], [y for _, y in points], loss, style="points"))
    return Picture(drawn, "agreement with the teacher where it errs", "PGR", "Errors imitated")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
