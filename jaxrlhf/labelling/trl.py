"""Verdicts as TRL's preference rows: `prompt`, `chosen`, `rejected`, strings or messages.

Read from any file that `jaxrlhf reward` reads: `chosen` is `a`. Where only a `label` in [0, 1] is
known, 1/2 is a tie, and anything else a choice of strength 3. Written, the better answer is
`chosen`, and what TRL has no name for stands in further columns, which it ignores and which bring
the verdict back when the file is read again: `strength` (text: "1" to "4", "tie", "both_bad"),
`annotator`, `confidence`, `flag`, `comment`, `seconds`, `time`, `round`, `pair_id`; and
`model_chosen`, `model_rejected` and `shown_first` in those terms.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxrlhf.data import formats
from jaxrlhf.data.formats import Preference
from jaxrlhf.data.rows import Rows
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import PLAIN, Labelled, Pair, Verdict

SIDES = {"chosen": "a", "rejected": "b"}
Ties = Literal["drop", "half"]


def read(rows: Rows, columns: Mapping[str, str], annotator: str) -> Iterator[records.Entry]:
    """The pairs and verdicts of preference rows."""
    found = formats.preferences(rows, columns=columns)
    for i, preference in enumerate(found):
        with records.at(found.where(i)):
            entry = _entry(preference, rows[found.index[i]], annotator)
        yield entry


def _entry(preference: Preference, row: Mapping[str, Any], annotator: str) -> records.Entry:
    models = {f"model_{ours}": row.get(f"model_{theirs}") for theirs, ours in SIDES.items()}
    pair = records.make_pair(
        {**row, **models}, preference.prompt, preference.chosen, preference.rejected
    )
    said = row.get("strength")
    if said is None:  # not ours: `confidence`, say, may mean anything there
        row = {"annotator": row.get("annotator"), "verdict": _choice(preference.label)}
        return pair, records.to_verdict(row, pair, annotator=annotator)
    first = row.get("shown_first")
    ours = {"verdict": records.choice(said), "shown_first": SIDES.get(str(first), first)}
    return pair, records.to_verdict({**row, **ours}, pair, annotator=annotator)


def _choice(label: float) -> records.Choice:
    if label == 0.5:
        return "tie"
    return PLAIN if label > 0.5 else -PLAIN


def write(
    labelled: Labelled,
    *,
    labels: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    ties: Ties = "drop",
) -> Iterator[dict[str, Any]]:
    """A row a verdict.

    Args:
      labels: P(chosen is better) for the strengths 1 to 4; None: no column `label`, which is 1.
      margins: margin in nats for the strengths 1 to 4; None: no column.
      ties: "half": a tie, and "both bad", are rows of label 1/2; "drop": they are left out.
    """
    pairs = {pair.pair_id: pair for pair in labelled.pairs}
    for verdict in labelled.verdicts:
        pair = pairs[verdict.pair_id]
        if isinstance(verdict.verdict, int):
            strength = abs(verdict.verdict)
            extra = {"label": labels[strength - 1]} if labels else {}
            extra |= {"margin": margins[strength - 1]} if margins else {}
            if verdict.verdict < 0:
                pair, verdict = pair.swapped(), verdict.swapped()
        elif ties == "half":
            extra = {"label": 0.5} | ({"margin": 0.0} if margins else {})
        else:
            continue
        yield _row(pair, verdict, extra)


def _row(pair: Pair, verdict: Verdict, extra: dict[str, float]) -> dict[str, Any]:
    row = records.to_row(pair, verdict)
    answers = {theirs: row.pop(ours) for theirs, ours in SIDES.items()}
    models = {f"model_{theirs}": row.pop(f"model_{ours}") for theirs, ours in SIDES.items()}
    first = {ours: theirs for theirs, ours in SIDES.items()}.get(str(verdict.shown_first))
    # Always text: readers that guess one type a column (pyarrow) refuse a mixed one.
    said = {"strength": str(row.pop("verdict")), "shown_first": first}
    return {"prompt": row.pop("prompt"), **answers, **extra, **row, **models, **said}
