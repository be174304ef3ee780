"""Label Studio's tasks, as its JSON export has them and its JSON import takes them.

A task is a pair: `data` holds `prompt`, `a` and `b` (or what `columns` says), and each annotation
is a verdict. `a` is what stands on the left. The controls, by name, of a project that says all that
we keep, to be pasted into its labelling configuration:

    <View>
      <Text name="prompt" value="$prompt"/>
      <Pairwise name="better" toName="a,b"/>
      <Text name="a" value="$a"/> <Text name="b" value="$b"/>
      <Rating name="strength" toName="prompt" maxRating="4"/>
      <Choices name="neither" toName="prompt">
        <Choice value="tie"/><Choice value="both_bad"/>
      </Choices>
      <Rating name="confidence" toName="prompt" maxRating="3"/>
      <Choices name="flag" toName="prompt"><Choice value="flag"/></Choices>
      <TextArea name="comment" toName="prompt"/>
      <TextArea name="annotator" toName="prompt"/> <TextArea name="shown_first" toName="prompt"/>
    </View>

The last two are for verdicts that were given here, and may be hidden. Of other projects any
Pairwise control is read; a choice without `strength` has strength 3. A conversation needs
`<Paragraphs nameKey="role" textKey="content">` instead of `<Text>`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import PLAIN, Labelled, Pair, Verdict

SIDES = {"left": 1, "right": -1}
DATA = ("prompt", "a", "b", "pair_id", "model_a", "model_b", "round")


def entries(row: Row, annotator: str) -> Iterator[records.Entry]:
    """The pair of a task, and a verdict for each annotation that was not cancelled."""
    data = records.as_object(row.get("data"), "data")
    pair = records.to_pair(Row(data, row.theirs))
    yield pair, None
    for annotation in _objects(row.data, "annotations"):
        if not annotation.get("was_cancelled"):
            verdict = _verdict(annotation, pair, annotator)
            if verdict:
                yield pair, verdict


def _verdict(annotation: dict[str, Any], pair: Pair, annotator: str) -> Verdict | None:
    said: dict[str, Any] = {}
    for result in _objects(annotation, "result"):
        name, value = _value(result)
        said[name] = value
    neither, better = said.get("neither"), said.get("better")
    if better is None and neither is None:
        return None
    if neither is None and str(better) not in SIDES:
        raise BadRow("unknown value", f"'selected' must be left or right: {shorten(better)}")
    fields = {
        "verdict": neither or SIDES[str(better)] * (said.get("strength") or PLAIN),
        "confidence": said.get("confidence"),
        "flag": said.get("flag") is not None,
        "comment": said.get("comment"),
        "annotator": said.get("annotator") or _person(annotation.get("completed_by")),
        "shown_first": said.get("shown_first") or "a",
        "seconds": annotation.get("lead_time"),
        "time": annotation.get("created_at"),
    }
    return records.to_verdict(fields, pair, annotator=annotator)


def _value(result: dict[str, Any]) -> tuple[str, Any]:
    """Name and value of a control; a Pairwise control is `better`, whatever it is called."""
    kind, value = result.get("type"), records.as_object(result.get("value"), "value")
    if kind == "pairwise":
        return "better", value.get("selected")
    found = value.get({"textarea": "text"}.get(str(kind), str(kind)))
    if kind == "textarea" and isinstance(found, list):
        found = "\n".join(map(str, found))
    elif isinstance(found, list):
        found = found[0] if found else None
    return str(result.get("from_name")), found


def _person(completed_by: Any) -> str | None:
    """Who annotated: an address, or the number that Label Studio gives."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


def _objects(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = holder.get(name) or []
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{name!r} must be a list: {shorten(value)}")
    return [records.as_object(one, name) for one in value]


# Out.


def write(labelled: Labelled) -> Iterator[dict[str, Any]]:
    """A task a pair, with its verdicts as annotations."""
    for pair, verdicts in records.by_pair(labelled):
        row = records.to_row(pair)
        task = {"data": {name: row[name] for name in DATA}}
        yield task | {"annotations": [_annotation(one) for one in verdicts]}


def _annotation(verdict: Verdict) -> dict[str, Any]:
    chosen = verdict.verdict
    results = []
    if isinstance(chosen, int):
        side = "left" if chosen > 0 else "right"
        # As Label Studio has it, this control's object is the control.
        results += [_result("better", "pairwise", "selected", side, to="better")]
        results += [_result("strength", "rating", "rating", abs(chosen))]
    else:
        results += [_result("neither", "choices", "choices", [chosen])]
    if verdict.confidence is not None:
        results += [_result("confidence", "rating", "rating", verdict.confidence)]
    if verdict.flag:
        results += [_result("flag", "choices", "choices", ["flag"])]
    for name in ("comment", "annotator", "shown_first"):
        if text := getattr(verdict, name):
            results += [_result(name, "textarea", "text", [text])]
    return {"result": results, "lead_time": verdict.seconds, "created_at": verdict.time}


def _result(name: str, kind: str, key: str, value: Any, to: str = "prompt") -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": {key: value}}
