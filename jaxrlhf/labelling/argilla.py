"""Argilla's records, as `dataset.records.to_json` writes them and `rg.Record.from_dict` takes them.

A record is a pair: `fields` holds `prompt`, `a` and `b` (or what `columns` says), and the responses
of one user are a verdict. Questions, by name, of a dataset that says all that we keep:

    verdict     a LabelQuestion with 4, 3, 2, 1, -1, -2, -3, -4, tie, both_bad (positive: a)
    confidence  a LabelQuestion with 1, 2, 3
    flag        a LabelQuestion with yes
    comment, annotator, shown_first, seconds, time    TextQuestions

Of other datasets `columns` names the question that is `verdict`; its value may also be the name of
the better answer's field, or a ranking of both, and then it has strength 3. A user is named by the
question `annotator`, else by Argilla's user id.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import PLAIN, Choice, Labelled, Verdict

FIELDS = ("prompt", "a", "b")
METADATA = ("model_a", "model_b", "round")


def entries(row: Row, annotator: str) -> Iterator[records.Entry]:
    """The pair of a record, and a verdict for each user who gave one."""
    metadata = {name: _object(row, "metadata").get(name) for name in METADATA}
    fields = {**metadata, **_object(row, "fields"), "pair_id": row.get("id")}
    pair = records.to_pair(Row(fields, row.theirs))
    yield pair, None
    for user, answers in _by_user(row).items():
        if row.called("verdict") not in answers:
            continue
        said = {name: answers.get(name) for name in ("comment", "time")}
        said |= {
            "verdict": _choice(answers[row.called("verdict")], row),
            "confidence": _number(answers.get("confidence"), int),
            "flag": answers.get("flag") == "yes",
            "annotator": answers.get("annotator") or user,
            "shown_first": answers.get("shown_first"),
            "seconds": _number(answers.get("seconds"), float),
        }
        yield pair, records.to_verdict(said, pair, annotator=annotator)


def _by_user(row: Row) -> dict[str, dict[str, Any]]:
    """User id -> question -> value."""
    found: dict[str, dict[str, Any]] = {}
    for question, responses in _object(row, "responses").items():
        if not isinstance(responses, list):
            raise BadRow("wrong type", f"'responses' of {question!r}: {shorten(responses)}")
        for response in responses:
            if not isinstance(response, dict) or "value" not in response:
                raise BadRow("wrong type", f"'responses': {shorten(response)}")
            user = str(response.get("user_id"))
            found.setdefault(user, {})[question] = response["value"]
    return found


def _choice(value: Any, row: Row) -> Choice:
    if isinstance(value, list) and value:  # a ranking; newer versions give texts, older objects
        value = value[0].get("value") if isinstance(value[0], dict) else value[0]
    sides = {row.called("a"): PLAIN, row.called("b"): -PLAIN}
    return sides[value] if isinstance(value, str) and value in sides else records.choice(value)


def _number(value: Any, kind: type) -> Any:
    try:
        return None if value is None else kind(value)
    except (TypeError, ValueError):
        raise BadRow("wrong type", f"must be a number: {shorten(value)}") from None


def _object(row: Row, name: str) -> dict[str, Any]:
    return records.as_object(row.get(name) or {}, name)


# Out.


def write(labelled: Labelled) -> Iterator[dict[str, Any]]:
    """A record a pair, with its verdicts as responses."""
    for pair, verdicts in records.by_pair(labelled):
        row = records.to_row(pair)
        responses: dict[str, list[dict[str, Any]]] = {}
        for verdict in verdicts:
            # Argilla knows users by UUID; made from the name, it is the same in every file.
            user = str(uuid.uuid5(uuid.NAMESPACE_URL, f"jaxrlhf:{verdict.annotator}"))
            for question, value in _answers(verdict).items():
                responses.setdefault(question, []).append({"value": value, "user_id": user})
        yield {
            "id": pair.pair_id,
            "fields": {name: row[name] for name in FIELDS},
            "metadata": {name: row[name] for name in METADATA if row[name] is not None},
            "suggestions": {},
            "responses": responses,
            "vectors": {},
        }


def _answers(verdict: Verdict) -> dict[str, str]:
    values = {name: getattr(verdict, name) for name in ("verdict", "confidence", "seconds", "time")}
    values |= {"flag": "yes" if verdict.flag else None, "comment": verdict.comment or None}
    values |= {"annotator": verdict.annotator, "shown_first": verdict.shown_first}
    return {name: str(value) for name, value in values.items() if value is not None}
