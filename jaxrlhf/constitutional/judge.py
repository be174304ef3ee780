"""The RL phase's labels: a model chooses between two responses by a question of the constitution.

The label is the normalised probability of the option tokens, p(A) = e^l_A / (e^l_A + e^l_B), asked
with the responses in both orders and averaged, over one or more drawn questions. Rows come in
blocks of the model's batch size and depend on (seed, row) alone, as in `critique.py`.

What a label becomes (soft, hard, clamped; its weight against human pairs) is a second step,
`preference_rows`: labelling is what costs, and one set of labels serves every arm.

Source: Bai et al. 2022 (arXiv 2212.08073), sections 4.1 and 4.3 (clamping); both orders: Lee et al.
2023 (arXiv 2309.00267), section 2.2.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxrlhf.constitutional import texts
from jaxrlhf.constitutional.constitution import Comparison, Constitution, draw
from jaxrlhf.constitutional.critique import fault
from jaxrlhf.constitutional.sampler import Model
from jaxrlhf.data.columns import Content
from jaxrlhf.errors import ConfigError, DataError

Row = dict[str, Any]
QUESTIONS, ORDER, SHOTS = 3, 4, 5  # streams of draws, beside critique.PRINCIPLE
THOUGHTS = 3  # a part of the model's keys, beside critique.RESPONSE and the others
UNREADABLE = "no option could be read"
DIGITS = 12  # of a probability: what cancels out over the orders is 1/2, exactly


class Pair(NamedTuple):
    """Two responses to one prompt."""

    prompt: Content
    a: str
    b: str


def label_pairs(
    model: Model,
    pairs: Sequence[Pair],
    constitution: Constitution,
    *,
    both_orders: bool = True,
    questions_per_pair: int = 1,
    few_shot: int | None = None,
    think: bool = False,
    keep_unfinished: bool = False,
    seed: int = 0,
    done: Collection[int] = (),
) -> Iterator[Row]:
    """One row a pair, in order: how probable the model finds it that `a` is the better response.

    Args:
      model: judges. pairs: row i is about pair i.
      both_orders: ask with `a` first and with `b` first, and average; False: in one order, drawn.
      questions_per_pair: how many questions are drawn for a pair; their answers are averaged.
      few_shot: examples of the constitution that stand before each query; None: all.
      think: let the model reason before it chooses (chain of thought).
      keep_unfinished: whether reasoning that was cut by length counts.
      seed: of questions, orders and examples (the model has its own).
      done: rows that are there already and are not made again.
    Yields:
      `row`, `prompt`, `responses` [a, b], `probability` (a is better), `entropy` (nats, of that),
      `judgements`: a list of {`question`, `order` ("ab" or "ba"), `log_probs` of options (A) and
      (B), `reasoning`}, `discarded`: None or the reason, and `seed`.
    Raises:
      ConfigError: fewer questions than `questions_per_pair`, or options that collide.
    """
    if not constitution.comparisons:
        raise ConfigError(f"{constitution.name}: has no comparisons")
    for start in range(0, len(pairs), model.batch_size):
        block = range(start, min(start + model.batch_size, len(pairs)))
        if all(row in done for row in block):
            continue
        asked = [
            query
            for row in block
            for query in _queries(
                row, pairs[row], constitution, both_orders, questions_per_pair, seed
            )
        ]
        read = _reasoned if think else _compared
        judgements = read(model, constitution, asked, few_shot, keep_unfinished, seed)
        for row in block:
            if row not in done:
                mine = [
                    one for query, one in zip(asked, judgements, strict=True) if query.row == row
                ]
                yield _row(row, pairs[row], mine, seed)


def probabilities(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """P(a is better) of a row by order: {"ab": [Q], "ba": [Q]}, a number a question."""
    found: dict[str, list[float]] = {}
    for one in row["judgements"]:
        first = special.expit(one["log_probs"][0] - one["log_probs"][1] - row.get("offset", 0.0))
        found.setdefault(one["order"], []).append(first if one["order"] == "ab" else 1 - first)
    return {order: np.array(values) for order, values in found.items()}


def decided(row: Mapping[str, Any]) -> Row:
    """A row with the `probability` and `entropy` that its judgements come to."""
    p = round(float(np.mean(np.concatenate(list(probabilities(row).values())))), DIGITS)
    return {**row, "probability": p, "entropy": entropy(p)}


def preference_rows(
    labels: Iterable[Row],
    *,
    hard: bool = False,
    clamp: tuple[float, float] | None = None,
    weight: float = 1.0,
) -> list[Row]:
    """Preference pairs in TRL's columns, with `label` = P(chosen is better) and `weight`.

    The response with the higher probability is `chosen`. Discarded rows are left out.

    Args:
      hard: the label is 1 (and stays 1/2 where the model cannot decide).
      clamp: (low, high), what P(a is better) is cut to; the paper has (.4, .6) after reasoning.
      weight: of each pair in the loss, against pairs of other files.
    Raises:
      DataError: no pair is left. ConfigError: a clamp that does not hold 1/2 in its middle.
    """
    low, high = clamp or (0.0, 1.0)
    if not (0 <= low <= 0.5 and np.isclose(low + high, 1)):
        raise ConfigError(f"clamp = [{low}, {high}]: must be [x, 1 - x] with x from 0 to 0.5")
    made = []
    for row in labels:
        if row["discarded"]:
            continue
        p, (a, b) = row["probability"], row["responses"]
        chosen, rejected, sure = (a, b, p) if p >= 0.5 else (b, a, 1 - p)
        sure = float(sure > 0.5) + 0.5 * float(sure == 0.5) if hard else sure
        made.append(
            {
                "prompt": row["prompt"],
                "chosen": texts.as_answer(row["prompt"], chosen),
                "rejected": texts.as_answer(row["prompt"], rejected),
                "label": float(np.clip(sure, low, high)),
                "weight": weight,
                "source": "ai",
                "probability": max(p, 1 - p),
                "entropy": row["entropy"],
                "questions": sorted({one["question"] for one in row["judgements"]}),
            }
        )
    if not made:
        raise DataError("no labelled pair is left")
    return made


class _Query(NamedTuple):
    row: int
    number: int  # which of the row's questions
    order: str
    prompt: Content
    shown: tuple[str, str]  # the responses as (A) and (B)
    question: Comparison

    def text(
        self,
        write: Callable[..., str],
        constitution: Constitution,
        *,
        few_shot: int | None,
        seed: int,
    ) -> str:
        """What the model is shown, as one of the functions of `texts` writes it."""
        # The same examples in both orders, which are to differ in the order alone.
        key = (seed, SHOTS, self.row, self.number)
        return write(
            constitution, self.prompt, self.shown, self.question, few_shot=few_shot, key=key
        )


def _queries(
    row: int, pair: Pair, constitution: Constitution, both: bool, count: int, seed: int
) -> Iterator[_Query]:
    items = constitution.comparisons
    for number, i in enumerate(draw(items, count, key=(seed, QUESTIONS, row))):
        turned = np.random.default_rng((seed, ORDER, row, number)).random() < 0.5
        for order in ("ab", "ba") if both else ("ba",) if turned else ("ab",):
            shown = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
            yield _Query(row, number, order, pair.prompt, shown, items[i])


def _compared(
    model: Model,
    constitution: Constitution,
    asked: Sequence[_Query],
    few_shot: int | None,
    keep_unfinished: bool,
    seed: int,
) -> list[Row]:
    """The model's choice for every query."""
    queries = [
        q.text(texts.comparison_query, constitution, few_shot=few_shot, seed=seed) for q in asked
    ]
    log_probs = model.option_log_probs(queries, constitution.layout.options)
    return [_judgement(q, row) for q, row in zip(asked, log_probs, strict=True)]


def _reasoned(
    model: Model,
    constitution: Constitution,
    asked: Sequence[_Query],
    few_shot: int | None,
    keep_unfinished: bool,
    seed: int,
) -> list[Row]:
    """The model's choice for every query after one chain of thought."""
    queries = [
        q.text(texts.thought_query, constitution, few_shot=few_shot, seed=seed) for q in asked
    ]
    keys = [(q.row, q.number, THOUGHTS + int(q.order == "ba")) for q in asked]
    drawn = model.generate(queries, keys, stops=constitution.layout.stops)
    faults = [fault(one, None, keep_unfinished=keep_unfinished) for one in drawn]
    good = [i for i, problem in enumerate(faults) if problem is None]
    concluding = [texts.conclusion_query(constitution, queries[i], drawn[i].text) for i in good]
    log_probs = np.full((len(asked), 2), np.nan)
    if good:
        log_probs[good] = model.option_log_probs(concluding, constitution.layout.options)
    return [
        _judgement(q, row, reasoning=one.text, problem=problem and f"reasoning: {problem}")
        for q, row, one, problem in zip(asked, log_probs, drawn, faults, strict=True)
    ]


def _judgement(
    query: _Query,
    log_probs: np.ndarray,
    *,
    reasoning: str | None = None,
    problem: str | None = None,
) -> Row:
    readable = bool(np.isfinite(log_probs).all())
    return {
        "question": query.question.id,
        "order": query.order,
        "log_probs": log_probs.tolist() if readable else None,
        "reasoning": reasoning,
        "problem": problem or (None if readable else UNREADABLE),
    }


def _row(number: int, pair: Pair, judgements: Sequence[Row], seed: int) -> Row:
    problems = [one["problem"] for one in judgements if one["problem"]]
    kept = [{k: x for k, x in one.items() if k != "problem"} for one in judgements]
    row: Row = {
        "row": number,
        "prompt": pair.prompt,
        "responses": [pair.a, pair.b],
        "probability": None,
        "entropy": None,
        "judgements": kept,
        "discarded": problems[0] if problems else None,
        "seed": seed,
    }
    return row if problems else decided(row)


def entropy(p: float) -> float:
    """-p log p - (1 - p) log(1 - p), in nats.

    >>> round(entropy(0.5), 4), entropy(1.0)
    (0.6931, 0.0)
    """
    return float(special.entr(p) + special.entr(1 - p))
