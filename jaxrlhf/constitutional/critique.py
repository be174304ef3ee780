"""The supervised phase: a response, then rounds of critique and revision under drawn principles.

Each round sees the prompt and the last revision; earlier critiques are gone. Rows are made in
blocks of the model's batch size, in order, and a row depends on (seed, row) alone, so a run that
was killed makes the rows that are missing and gets what it would have got. A row whose model did
not follow the format stays, with the reason, and nothing is learnt from it. This file writes none.

Source: Bai et al. 2022 (arXiv 2212.08073), section 3.1; direct revision: section 3.5.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

from jaxrlhf.constitutional import texts
from jaxrlhf.constitutional.constitution import Constitution, Principle, draw
from jaxrlhf.constitutional.mixture import mixed
from jaxrlhf.constitutional.sampler import Drawn, Model
from jaxrlhf.data.columns import Content
from jaxrlhf.errors import ConfigError, DataError

Row = dict[str, Any]

# What a key is for: (row, round, part).
RESPONSE, CRITIQUE, REVISION = 0, 1, 2
PRINCIPLE = 2  # the stream of principle draws: (seed, PRINCIPLE, row, round)


def critique_revise(
    model: Model,
    prompts: Sequence[Content],
    constitution: Constitution,
    *,
    rounds: int = 4,
    direct: bool = False,
    few_shot: int | None = None,
    keep_unfinished: bool = False,
    seed: int = 0,
    done: Collection[int] = (),
) -> Iterator[Row]:
    """One row a prompt, in order: response, and `rounds` times principle, critique and revision.

    Args:
      model: answers, criticises and revises.
      prompts: texts or conversations; row i is about prompt i.
      rounds: revisions of each response.
      direct: revise without a critique.
      few_shot: examples of the constitution that stand before each query; None: all.
      keep_unfinished: whether a text that was cut by length still counts as one.
      seed: of the principles (the model has its own).
      done: rows that are there already and are not made again.
    Yields:
      `row`, `prompt`, `response`, `log_prob` (nats, of the response), `revisions`: a list of
      {`principle`, `critique`, `critique_log_prob`, `revision`, `log_prob`}, `discarded`: None, or
      what went wrong where ("critique 2: empty"), and `seed`.
    Raises:
      ConfigError: no principles, or rounds below 0.
    """
    if rounds < 0 or (rounds and not constitution.principles):
        raise ConfigError(
            f"{constitution.name}: {rounds} rounds of {len(constitution.principles)} principles"
        )
    for start in range(0, len(prompts), model.batch_size):
        block = range(start, min(start + model.batch_size, len(prompts)))
        if all(row in done for row in block):
            continue
        chains = _Chains(model, constitution, few_shot, keep_unfinished, seed)
        rows = chains.run([prompts[row] for row in block], block, rounds, direct)
        yield from (row for row in rows if row["row"] not in done)


def discards(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows were discarded, by reason; most frequent first.

    Raises:
      DataError: every row was, or there are none.
    """
    found = [row["discarded"] for row in rows]
    counts = dict(Counter(reason for reason in found if reason).most_common())
    if all(found):
        reasons = "; ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(f"no row is left of {len(found)}: {reasons or 'there were none'}")
    return counts


def sft_rows(
    chains: Iterable[Row],
    constitution: Constitution,
    *,
    which: Literal["all", "last"] = "all",
    helpful: Sequence[Row] = (),
    helpful_ratio: float | None = None,
    seed: int = 0,
) -> list[Row]:
    """Examples to fine-tune on: `prompt`, `completion`, and `source` ("revision" or "helpful").

    Args:
      chains: rows of `critique_revise`; discarded ones are left out.
      which: the revisions of all rounds, or the last alone (section 3.1 against 1.2).
      helpful: rows with `prompt` and `completion`, a helpful model's own answers.
      helpful_ratio: helpful rows for each revision, drawn without repetition; None: all there are.
    Raises:
      DataError: no revision is left, or fewer helpful rows than the ratio asks for.
    """
    made = []
    for chain in chains:
        if chain["discarded"]:
            continue
        revisions = chain["revisions"] if which == "all" else chain["revisions"][-1:]
        made += [_example(constitution, chain["prompt"], one["revision"]) for one in revisions]
    if not made:
        raise DataError("no revision is left to fine-tune on")
    return mixed(made, helpful, ratio=helpful_ratio, seed=seed, name="helpful")


def _example(constitution: Constitution, prompt: Content, revision: str) -> Row:
    return {
        "prompt": texts.as_prompt(constitution, prompt),
        "completion": texts.as_answer(prompt, revision),
        "source": "revision",
    }


class _Chains:
    """A block of rows on their way through the rounds; those that fail drop out."""

    def __init__(
        self,
        model: Model,
        constitution: Constitution,
        few_shot: int | None,
        keep_unfinished: bool,
        seed: int,
    ):
        self.model, self.constitution = model, constitution
        self.few_shot, self.keep_unfinished, self.seed = few_shot, keep_unfinished, seed

    def run(
        self, prompts: Sequence[Content], numbers: Sequence[int], rounds: int, direct: bool
    ) -> list[Row]:
        self.rows = [
            {
                "row": number,
                "prompt": prompt,
                "response": None,
                "log_prob": None,
                "revisions": [],
                "discarded": None,
                "seed": self.seed,
            }
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        self._respond()
        for turn in range(1, rounds + 1):
            self._revise_directly(turn) if direct else self._criticise_and_revise(turn)
        return self.rows

    def _respond(self) -> None:
        ask = {
            i: texts.response_query(self.constitution, row["prompt"])
            for i, row in enumerate(self.rows)
        }
        for i, drawn in self._ask(ask, 0, RESPONSE, "response").items():
            self.rows[i] |= {"response": drawn.text, "log_prob": drawn.log_prob}

    def _criticise_and_revise(self, turn: int) -> None:
        drawn = self._principles(turn)
        queries = {
            i: texts.critique_query(
                self.constitution, row["prompt"], last(row), drawn[i], few_shot=self.few_shot
            )
            for i, row in self._alive()
        }
        critiques = self._ask(queries, turn, CRITIQUE, f"critique {turn}")
        ask = {
            i: texts.revision_query(self.constitution, queries[i], critique.text, drawn[i])
            for i, critique in critiques.items()
        }
        for i, revision in self._ask(ask, turn, REVISION, f"revision {turn}").items():
            self._add(i, drawn[i], critiques[i], revision)

    def _revise_directly(self, turn: int) -> None:
        drawn = self._principles(turn)
        ask = {
            i: texts.direct_query(
                self.constitution, row["prompt"], last(row), drawn[i], few_shot=self.few_shot
            )
            for i, row in self._alive()
        }
        for i, revision in self._ask(ask, turn, REVISION, f"revision {turn}").items():
            self._add(i, drawn[i], None, revision)

    def _add(self, i: int, principle: Principle, critique: Drawn | None, revision: Drawn) -> None:
        self.rows[i]["revisions"].append(
            {
                "principle": principle.id,
                "critique": critique and critique.text,
                "critique_log_prob": critique and critique.log_prob,
                "revision": revision.text,
                "log_prob": revision.log_prob,
            }
        )

    def _principles(self, turn: int) -> list[Principle]:
        """The principle of every row for this round."""
        items = self.constitution.principles
        keys = [(self.seed, PRINCIPLE, row["row"], turn) for row in self.rows]
        return [items[draw(items, key=key)[0]] for key in keys]

    def _alive(self) -> list[tuple[int, Row]]:
        return [(i, row) for i, row in enumerate(self.rows) if row["discarded"] is None]

    def _ask(self, queries: dict[int, str], turn: int, part: int, name: str) -> dict[int, Drawn]:
        """What the model writes after each query; rows that do not follow the format drop out."""
        keys = [(self.rows[i]["row"], turn, part) for i in queries]
        stops = self.constitution.layout.stops
        answers = self.model.generate(list(queries.values()), keys, stops=stops)
        pattern = getattr(self.constitution.layout, f"{name.split()[0]}_pattern")
        kept = {}
        for i, drawn in zip(queries, answers, strict=True):
            problem = fault(drawn, pattern, keep_unfinished=self.keep_unfinished)
            if problem:
                self.rows[i]["discarded"] = f"{name}: {problem}"
            else:
                kept[i] = drawn
        return kept


def last(row: Row) -> str:
    """The newest text of a row: its last revision, or the response."""
    return row["revisions"][-1]["revision"] if row["revisions"] else row["response"]


def fault(drawn: Drawn, pattern: str | None, *, keep_unfinished: bool) -> str | None:
    """Why a text does not follow the format, or None where it does."""
    if drawn.problem:
        return drawn.problem
    if not drawn.text:
        return "empty"
    if not (drawn.finished or keep_unfinished):
        return "cut by length"
    if pattern is not None and not re.fullmatch(pattern, drawn.text, re.DOTALL):
        return "does not match the layout's pattern"
    return None
