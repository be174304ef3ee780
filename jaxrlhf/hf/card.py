"""The model card: README.md of a model's folder, in the hub's form (front matter, then Markdown).

What it does not do: measure anything; it lays out what it is told.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

_LOAD = {
    "lm": ("AutoModelForCausalLM", "text-generation"),
    "scalar": ("AutoModelForSequenceClassification", "text-classification"),
}


class Card(NamedTuple):
    """What a card says. `base` is a path or hub name; `hub_base` whether it is the latter."""

    kind: Literal["lm", "scalar"]
    recipe: str
    config: str  # the resolved config, YAML
    base: str | None = None
    hub_base: bool = False
    data: Sequence[str] = ()
    metrics: Mapping[str, Any] = {}
    guards: Mapping[str, str] = {}  # name of a guard -> what it found
    others_can_load: bool = True
    note: str = ""  # what else is to be known first


def text(card: Card) -> str:
    """README.md."""
    parts = [_front_matter(card), _heading(card), _use(card)]
    parts.append("## Data\n\n" + ("\n".join(f"- `{name}`" for name in card.data) or "Not named."))
    if card.metrics:
        parts.append("## Metrics\n\n" + _table("metric", card.metrics))
    if card.guards:
        parts.append("## Guards\n\n" + _table("guard", card.guards))
    parts.append(f"## Config\n\n```yaml\n{card.config.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def with_section(card: str, title: str, body: str) -> str:
    """A card with a section of that title: in place of the one it has, or before the config.

    >>> print(with_section("# A model\\n\\n## Config\\n\\nx: 1\\n", "Safety", "None measured."))
    # A model
    <BLANKLINE>
    ## Safety
    <BLANKLINE>
    None measured.
    <BLANKLINE>
    ## Config
    <BLANKLINE>
    x: 1
    <BLANKLINE>
    """
    parts = re.split(r"(?m)^(?=## )", card)
    kept = [part for part in parts if not part.startswith(f"## {title}\n")]
    at = next((i for i, part in enumerate(kept) if part.startswith("## Config")), len(kept))
    before = "".join(kept[:at]).rstrip("\n")
    return f"{before}\n\n## {title}\n\n{body.strip()}\n\n{''.join(kept[at:])}".rstrip("\n") + "\n"


def _front_matter(card: Card) -> str:
    lines = ["---", "library_name: transformers", f"pipeline_tag: {_LOAD[card.kind][1]}"]
    if card.base and card.hub_base:
        lines += [f"base_model: {card.base.partition('@')[0]}"]
    lines += ["tags:", "- jaxrlhf", f"- {card.recipe}"]
    lines += ["- reward-model"] if card.kind == "scalar" else []
    return "\n".join([*lines, "---"])


def _heading(card: Card) -> str:
    what = "language model" if card.kind == "lm" else "reward model"
    start = f"from `{card.base}`" if card.base else "from scratch"
    note = f" {card.note}" if card.note else ""
    return f"# A {what}\n\nTrained {start} by `jaxrlhf {card.recipe}`.{note}"


def _use(card: Card) -> str:
    if not card.others_can_load:
        return (
            "Its score (the mean over tokens, or a head before the last norm) is not one that "
            "`AutoModelForSequenceClassification` computes: `jaxrlhf.hf.folder.load_scalar` does."
        )
    name = _LOAD[card.kind][0]
    lines = [
        "```python",
        f"from transformers import AutoTokenizer, {name}",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        f"model = {name}.from_pretrained(FOLDER)",
        "```",
    ]
    if card.kind == "scalar":
        lines += ["", "Higher scores are better; only differences between scores mean something."]
    return "\n".join(lines)


def _table(name: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_shown(value)} |" for key, value in values.items()]
    return "\n".join([f"| {name} | value |", "| --- | --- |", *rows])


def _shown(value: Any) -> str:
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")
