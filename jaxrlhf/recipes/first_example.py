"""The first example of a training run as the model sees it, with what is learnt of it marked.

It is printed before the first step of every run, because a wrong template or mask costs a whole
run and shows in one glance. Marked stretches stand between ⟦ and ⟧, and in colour where there is
any; white space is shown as it is.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from rich.text import Text

from jaxrlhf.progress import console

MOST = 600  # tokens
MARKED, PLAIN = "bold green", ""


def show(
    tokenizer: Any, tokens: np.ndarray, mask: np.ndarray, marked: np.ndarray, *, title: str
) -> None:
    """Print one row on stderr.

    Args:
      tokens, mask, marked: `[T]` ids, which of them are real, and which are to stand out.
      title: what is shown, and what the marks mean.
    """
    with suppress(OSError, ValueError):  # a terminal that cannot show it stops no run
        console.print(Text(title, style="bold"))
        console.print(rendered(tokenizer, tokens, mask, marked), soft_wrap=True)
        console.print()


def rendered(tokenizer: Any, tokens: np.ndarray, mask: np.ndarray, marked: np.ndarray) -> Text:
    """The text of a row, control tokens included."""
    real = np.flatnonzero(mask)
    ids, marks = tokens[real[:MOST]].tolist(), marked[real[:MOST]]
    shown, said = Text(), ""
    for end in (*(np.flatnonzero(np.diff(marks.astype(int))) + 1).tolist(), len(ids)):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        words, said = text[len(said) :], text  # alone, a stretch could lose the space before it
        is_marked = bool(end and marks[end - 1])
        shown.append(f"⟦{words}⟧" if is_marked else words, style=MARKED if is_marked else PLAIN)
    if len(real) > MOST:
        shown.append(f" ... and {len(real) - MOST} tokens more", style="dim")
    return shown


def of_texts(tokenizer: Any, columns: Mapping[str, np.ndarray]) -> None:
    """Supervised training: the first row, its learnt tokens marked."""
    tokens, mask, learnt = (columns[name][0] for name in ("tokens", "mask", "loss_mask"))
    show(tokenizer, tokens, mask, learnt & mask, title="First example; ⟦what is learnt⟧")


def of_pairs(tokenizer: Any, columns: Mapping[str, np.ndarray], *, pooling: str) -> None:
    """A reward model: both texts of the first pair, marked where their scores are read."""
    for side in ("chosen", "rejected"):
        tokens, mask = columns[f"{side}_tokens"][0], columns[f"{side}_mask"][0]
        last = np.arange(len(mask)) == np.flatnonzero(mask)[-1]
        read = mask if pooling == "mean" else last
        show(
            tokenizer,
            tokens,
            mask,
            read,
            title=f"First example, {side}; ⟦where its score is read⟧",
        )


def of_prompts(tokenizer: Any, columns: Mapping[str, np.ndarray]) -> None:
    """Reinforcement learning: the first prompt; what is learnt is sampled after it."""
    tokens, mask = columns["prompt_tokens"][0], columns["prompt_mask"][0]
    show(tokenizer, tokens, mask, np.zeros_like(mask), title="First prompt; its answer is sampled")
