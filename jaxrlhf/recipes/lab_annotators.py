"""`jaxrlhf lab annotators`: a reward model of annotators' soft labels, and of the majority's.

Simulated annotators say which answer is better by gold, each right as often as its reliability.
Their verdicts go through `jaxrlhf annotators`, whose soft labels a reward model learns; another
learns the majority's hard labels, a third the truth. Gold accuracy on held-out pairs is compared.
"""

from typing import Any

from pydantic import Field

from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import annotators, lab_reward
from jaxrlhf.recipes.annotators import AnnotatorsConfig
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Row, Words
from jaxrlhf.sandbox.protocol import generator, unit_hash


class LabAnnotatorsConfig(LabConfig):
    """Annotators who err."""

    output_dir: str = Field(
        default="runs/lab/annotators", description="a folder a seed goes in here"
    )
    pairs: int = Field(default=800, ge=1, description="of the first policy's answers")
    reliabilities: tuple[float, ...] = Field(
        default=(0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5),
        min_length=1,
        description="how often each annotator is right; below .5 is an adversary",
    )
    verdicts: tuple[int, ...] = Field(
        default=(3, 9), min_length=1, description="on each pair, at which all are compared"
    )


CONFIG = LabAnnotatorsConfig
EXAMPLE = "jaxrlhf lab annotators results=out"
SAYS = """{pairs:,} pairs of the first policy's answers, of which gold says the better one. There
are annotators of reliability {crowd};
as many as the first column says, drawn at random, judge a pair. *majority*: a reward model of the
majority's labels. *soft labels*: of `jaxrlhf annotators`, which chooses by held-out likelihood
whether to tell annotators apart. *truth*: of the right labels. Every reward model gets {updates}
updates. Gold accuracy on held-out pairs."""


def run(config: LabAnnotatorsConfig) -> dict[str, Any]:
    """Run every seed, print the table, write the page; the summary has means and differences."""
    if max(config.verdicts) > len(config.reliabilities):
        raise ConfigError(
            f"verdicts = {list(config.verdicts)}: there are {len(config.reliabilities)} annotators"
        )
    found = lab_reward.over_seeds(config, lambda lab: run_seed(config, lab))
    crowd = ", ".join(f"{x:g}" for x in config.reliabilities)
    words = Words(
        title="Soft labels of annotators against the majority",
        command="jaxrlhf lab annotators",
        axis="verdicts a pair",
        figure="gold accuracy",
        control="majority",
        says=SAYS.format(pairs=config.pairs, crowd=crowd, updates=config.updates),
        logarithmic=False,
    )
    return lab_reward.report(config, words, found)


def run_seed(config: LabAnnotatorsConfig, lab: Lab) -> dict[tuple[str, int], float]:
    """Gold accuracy by arm and verdicts a pair."""
    true = truth(lab, config.pairs)
    right = lab_reward.train(lab, "truth", true).accuracy
    figures = {}
    for count in config.verdicts:
        where = f"verdicts-{count}"
        path = lab.root / where / "verdicts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = verdicts(config, lab, true, count)
        preferences.write_rows(path, said)
        most = lab_reward.train(lab, f"{where}/majority", majority(true, said))
        soft = lab_reward.train(lab, f"{where}/soft", consensus(path, lab.seed))
        figures["majority", count] = most.accuracy
        figures["soft labels", count] = soft.accuracy
        figures["truth", count] = right
    return figures


def truth(lab: Lab, count: int) -> list[Row]:
    """Pairs of different worth, the better answer as `chosen`."""
    made = [
        lab_reward.by_gold(lab.world, row["prompt"], *row["responses"])
        for row in lab.answers(prompts=2 * count, each=2)
    ]
    return [row for row in made if row][:count]


def verdicts(config: LabAnnotatorsConfig, lab: Lab, true: list[Row], count: int) -> list[Row]:
    """What annotators say of each pair; which answer is called a is drawn."""
    rows = []
    for number, pair in enumerate(true):
        draw = generator("annotators", lab.seed, number)
        a_is_better = bool(draw.random() < 0.5)
        a, b = (pair["chosen"], pair["rejected"])[:: 1 if a_is_better else -1]
        for who in draw.permutation(len(config.reliabilities))[:count]:
            luck = unit_hash("verdict", lab.seed, number, int(who))
            is_right = luck < config.reliabilities[who]
            rows.append(
                {
                    "pair_id": str(number),
                    "annotator": f"annotator {who + 1}",
                    "verdict": "a" if is_right == a_is_better else "b",
                    "prompt": pair["prompt"],
                    "a": a,
                    "b": b,
                }
            )
    return rows


def majority(true: list[Row], said: list[Row]) -> list[Row]:
    """Pairs as most annotators have them; even votes are label 1/2."""
    votes: dict[str, list[bool]] = {}
    texts = {row["pair_id"]: row for row in said}
    for row in said:
        votes.setdefault(row["pair_id"], []).append(row["verdict"] == "a")
    rows = []
    for number in range(len(true)):
        row, share = texts[str(number)], votes[str(number)]
        for_a = sum(share) / len(share)
        chosen, rejected = (row["a"], row["b"]) if for_a >= 0.5 else (row["b"], row["a"])
        label = 0.5 if for_a == 0.5 else 1.0
        pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
        rows.append(pair | {"label": label})
    return rows


def consensus(path: Any, seed: int) -> list[Row]:
    """The soft labels of `jaxrlhf annotators`."""
    folder = path.parent / "annotators"
    annotators.run(AnnotatorsConfig(labels=str(path), output_dir=str(folder), seed=seed))
    return [dict(row) for row in sources.load_rows(str(folder / "labels.jsonl"))]
