"""The label stage of a round, where people compare: their pairs go to the page's store.

The verdicts are in the store of `jaxrlhf label` the moment they are given, and stay there. This
stage adds the round's pairs, and while verdicts are missing it says so and ends; once they are
there it writes them as preference pairs. It serves no page itself.
"""

from collections import Counter
from typing import Any

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences
from jaxrlhf.errors import UserError, WaitingError
from jaxrlhf.labelling import formats, trl
from jaxrlhf.labelling.records import Labelled
from jaxrlhf.labelling.store import Store
from jaxrlhf.recipes import blocks, stages
from jaxrlhf.recipes.convert_labels import Margin, Probability


class PeopleConfig(Config):
    """People who compare answers on the page of `jaxrlhf label`."""

    overlap: int = Field(default=1, ge=1, description="people who judge each pair")
    labels: tuple[Probability, Probability, Probability, Probability] | None = Field(
        default=None,
        description="P(chosen is better) for barely, somewhat, clearly, much; null: 1",
    )
    margins: tuple[Margin, Margin, Margin, Margin] | None = Field(
        default=None, description="margin in nats for the four strengths; null: no margin"
    )
    ties: trl.Ties = Field(
        default="drop", description='leave out ties and "both bad", or train on label 1/2'
    )


def run(folder: str, config: PeopleConfig, *, samples: str, store: str) -> dict[str, Any]:
    """Ask for verdicts on the pairs of `samples`; write `preferences.jsonl` when all are there.

    Raises:
      WaitingError: they are not.
    """
    stage = stages.Stage(blocks.FolderConfig(output_dir=folder))
    if summary := stage.summary():
        return summary
    asked = formats.read([samples]).pairs
    with Store(store) as opened:
        opened.add(asked)
        said = of_pairs(opened.labelled(), {pair.pair_id for pair in asked})
    given = Counter(verdict.pair_id for verdict in said.verdicts)
    done = sum(given[pair.pair_id] >= config.overlap for pair in asked)
    if done < len(asked):
        raise WaitingError(
            f"{done} of the {len(asked)} pairs in {samples} have verdicts of {config.overlap} "
            f"{'person' if config.overlap == 1 else 'people'}; people give them with `jaxrlhf "
            f"label {store} overlap={config.overlap}`; then run this command again, it goes on here"
        )
    rows = list(trl.write(said, labels=config.labels, margins=config.margins, ties=config.ties))
    if not rows:
        raise UserError(f"{store}: every pair of this round is a tie, or both bad; none is left")
    stage.begin()
    preferences.write_rows(stage.folder / "preferences.jsonl", rows)
    return stage.finish({"pairs": len(rows), "verdicts": len(said.verdicts)})


def of_pairs(labelled: Labelled, wanted: set[str]) -> Labelled:
    """What is said of some pairs."""
    return Labelled(
        [pair for pair in labelled.pairs if pair.pair_id in wanted],
        [verdict for verdict in labelled.verdicts if verdict.pair_id in wanted],
    )
