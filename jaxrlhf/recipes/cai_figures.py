"""The numbers of a finished `cai` run: chains by revision, labels against gold, policies, ratings.

With a world, gold measures: harm, help, evasiveness. Without one the first arm's preference model
does (`score`), and what needs the truth is left out. Nothing is drawn here (`report_cai.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf import inference, rewards
from jaxrlhf.constitutional.judge import probabilities
from jaxrlhf.data import arrays, chat, sources
from jaxrlhf.data.formats import Example
from jaxrlhf.evals import revisions, statistics
from jaxrlhf.evals.agreement import agreement
from jaxrlhf.evals.policy import PolicyEvaluation, evaluate_policy
from jaxrlhf.evals.revisions import Measure
from jaxrlhf.losses import ratings
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.recipes import rows, saved
from jaxrlhf.recipes.cai_tasks import CAITask
from jaxrlhf.sandbox.helpdesk import HARMFUL, Helpdesk, category_of, expected_harm

BATCH = 256
PRIOR = 0.01
"""Precision of the ratings' prior, 1/nats^2: a policy that never loses still gets a finite one."""
PATHS = ("eval/kl", "eval/red_harm", "eval/benign_help", "eval/stonewall", "eval/score")

Figures = dict[str, Any]


class Policy(NamedTuple):
    """A policy of a run, and the one that its KL is measured from."""

    path: str
    reference: str


def policies(config: Any, models: Any) -> dict[str, Policy]:
    """Every policy that a run has, by the name it has in the report."""
    found = {"pre-trained": models.pretrained, "helpful": models.helpful}
    found |= {f"SL-CAI, {which}": path for which, path in models.sl.items()}
    made = {name: Policy(path, path) for name, path in found.items()}
    return made | {
        arm.name: Policy(models.arms[arm.name], models.start(arm)) for arm in config.arms
    }


def evaluate(config: Any, task: CAITask, models: Any) -> dict[str, PolicyEvaluation]:
    """Every policy on the held-out prompts, with the same random numbers."""
    mesh, settings = config.mesh.build(), config.ppo
    reward_fn = rewards.from_model(*_preference_model(config, mesh)[:2])
    found = {}
    for name, policy in policies(config, models).items():
        lm, params, tokenizer, _ = saved.load_lm(policy.path, mesh, dtype=config.dtype)
        reference = params
        if policy.reference != policy.path:
            reference = saved.load_lm(policy.reference, mesh, dtype=config.dtype).params
        asked = settings.eval_prompts.model_copy(
            update={"files": settings.eval_prompts.files or task.test_prompts or task.all_prompts}
        )
        prompts, _ = rows.prompts(tokenizer, asked, field="ppo.eval_prompts")
        parts = np.array_split(np.arange(len(prompts)), -(-len(prompts) // BATCH))
        found[name] = evaluate_policy(
            lm,
            params,
            reference,
            [prompts.take(part) for part in parts],
            sampling=settings.sampling.build(tokenizer),
            key=jax.random.key(config.seed + 1),
            decode=rows.decoder(tokenizer),
            reward_fn=reward_fn,
            judge=task.judge,
        )
    return found


def measure(config: Any, task: CAITask) -> Measure:
    """What a text is worth: gold, or the preference model's score."""
    judge = task.judge
    if judge is None:
        scorer = _preference_model(config, config.mesh.build())
        return lambda prompts, responses: {"score": scores(scorer, prompts, responses)}

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, np.ndarray]:
        judged = judge(prompts, responses)
        return {name: np.array([row[name] for row in judged]) for name in judged[0]}

    return gold


def scores(scorer: Any, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """A preference model's score `[N]` of every response."""
    model, params, tokenizer, _ = scorer
    tokens = [
        chat.encode_example(tokenizer, Example(prompt, f" {response}")).tokens
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    length, found = max(map(len, tokens)), []
    for start in range(0, len(tokens), BATCH):
        some = tokens[start : start + BATCH]
        some = [*some, *[some[-1]] * (BATCH - len(some))]
        batch, mask = arrays.pad(some, length=length, pad_id=tokenizer.pad_token_id, side="right")
        found.append(np.asarray(inference.reward_scores(model, params, batch, mask)))
    return np.concatenate(found)[: len(tokens)]


def chain_figures(
    chains: Sequence[Mapping[str, Any]], measure: Measure, *, judged: bool
) -> Figures:
    """Means by revision number with intervals, and by principle."""
    columns = revisions.by_round(chains, measure)
    kept = [chain for chain in chains if not chain["discarded"]]
    prompts = np.unique([str(chain["prompt"]) for chain in kept], return_inverse=True)[1]
    main = "harm" if judged else "score"
    shown = ("harm", "help", "stonewall") if judged else ("score",)
    found: Figures = {"chains": len(chains), "discarded": len(chains) - len(kept)}
    for name in shown:
        found[name] = [float(np.mean(column)) for column in columns[name]]
    intervals = [statistics.bootstrap_mean(x, clusters=prompts) for x in columns[main]]
    found[f"{main}_low"] = [interval.low for interval in intervals]
    found[f"{main}_high"] = [interval.high for interval in intervals]
    if judged:
        found["analytic"] = [expected_harm(found["harm"][0], n) for n in range(len(found["harm"]))]
    effects = revisions.by_principle(chains, columns, main)
    found["principles"] = [effect._asdict() for effect in effects]
    return found


def label_figures(labels: Sequence[Mapping[str, Any]]) -> Figures:
    """A judge's labels against the truth: of its own questions, and of all harm together.

    Of calibrated labels also what the judge's liking for places was before (`uncalibrated_...`).
    """
    asked = [row for row in labels if not row["discarded"]]
    own = [
        _better(row, [category_of(one["question"]) for one in row["judgements"]]) for row in asked
    ]
    whole = agreement(
        [row["probability"] for row in asked],
        [np.nan] * len(asked),
        [_better(row, HARMFUL) for row in asked],
    )
    found: Figures = agreement(*_by_order(asked), own).scalars()
    found["ties"] = float(np.mean(np.array(own) == 0.5))
    if whole.accuracy:
        found["accuracy_on_all_harm"] = whole.accuracy.estimate
    if any("offset" in row for row in asked):
        raw = agreement(*_by_order([{**row, "offset": 0.0} for row in asked]), own).scalars()
        shown = ("first_place_on_ties", "ece")
        found |= {f"uncalibrated_{name}": raw[name] for name in shown if name in raw}
        found["offset"] = asked[0]["offset"]
    return found


def _by_order(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """P(the first response is better) by row: asked with it in front, and with the other."""
    told = [probabilities(row) for row in rows]
    ab, ba = ([float(np.mean(p.get(order, np.nan))) for p in told] for order in ("ab", "ba"))
    return ab, ba


def _better(row: Mapping[str, Any], categories: Iterable[str]) -> float:
    """1 where the first response has fewer words of these categories, 0 where more, 1/2 on ties."""
    a, b = (Helpdesk.category_counts(response) for response in row["responses"])
    ahead = sum(b[name] - a[name] for name in set(categories))
    return 0.5 + 0.5 * ((ahead > 0) - (ahead < 0))


def policy_figures(found: PolicyEvaluation, *, judged: bool) -> Figures:
    """Means on held-out prompts with intervals (a bootstrap over prompts)."""
    prompts = np.unique(found.prompts, return_inverse=True)[1]

    def figure(name: str, where: np.ndarray) -> list[float]:
        return list(statistics.bootstrap_mean(found.columns[name][where], clusters=prompts[where]))

    everywhere = np.ones(len(prompts), bool)
    made: Figures = {"kl": figure("kl", everywhere), "score": figure("score", everywhere)}
    if judged:
        red = found.columns["red"] > 0
        for kind, where in (("red", red), ("benign", ~red)):
            for name in ("harm", "help", "stonewall", "comply", "redirect", "gold"):
                made[f"{name}_{kind}"] = figure(name, where)
    return made


def path_figures(folder: Path) -> Figures:
    """What the evaluations of a PPO run said, by KL."""
    found = read_metrics(folder)
    path = {name.removeprefix("eval/"): series(found, name)[1] for name in PATHS}
    _, red = series(found, "eval/red")
    if red:  # means over all prompts -> over red-team prompts, and over the others
        path["harm"] = [x / share for x, share in zip(path.pop("red_harm"), red, strict=True)]
        path["help"] = [
            x / (1 - share) for x, share in zip(path.pop("benign_help"), red, strict=True)
        ]
    return {name: values for name, values in path.items() if values}


def elo_figures(found: Mapping[str, PolicyEvaluation], *, judged: bool) -> Figures:
    """Ratings from a round robin on the same prompts, in Elo points above the pre-trained model."""
    column = "gold" if judged else "score"
    first = next(iter(found.values())).columns
    kinds = {"all": np.ones(len(first[column]), bool)}
    if judged:
        kinds |= {"red": first["red"] > 0, "benign": first["red"] == 0}
    made: Figures = {}
    for kind, where in kinds.items():
        wins = revisions.round_robin({n: x.columns[column][where] for n, x in found.items()})
        table = np.asarray(ratings.elo(ratings.fit(wins, prior=PRIOR), anchor=0, z=1.96))
        made[kind] = {name: row.tolist() for name, row in zip(found, table, strict=True)}
    return made


def preference_accuracy(config: Any, task: CAITask, samples: Path) -> dict[str, float]:
    """How often each arm's preference model finds the less harmful of two of SL-CAI's answers."""
    pairs = [row for row in map(dict, sources.load_rows(samples)) if len(row["responses"]) > 1]
    judge = measure(config, task)
    sides = [[row["responses"][i] for row in pairs] for i in (0, 1)]
    prompts = [row["prompt"] for row in pairs]
    harm = [judge(prompts, side)["harm"] for side in sides]
    differ, found = harm[0] != harm[1], {}
    for arm in config.arms:
        scorer = _preference_model(config, config.mesh.build(), arm.name)
        a, b = (scores(scorer, prompts, side) for side in sides)
        found[arm.name] = float(np.mean(((a > b) == (harm[0] < harm[1]))[differ]))
    return found


def _preference_model(config: Any, mesh: Any, arm: str | None = None) -> saved.SavedScalar:
    """That of an arm; of the first one unless it is named."""
    name = arm or config.arms[0].name
    path = Path(config.output_dir) / "arms" / name / "reward" / "model"
    return saved.load_scalar(str(path), mesh, dtype=config.dtype)
