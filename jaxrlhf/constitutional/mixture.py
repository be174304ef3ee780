"""Rows of two kinds in a stated ratio: revisions with helpful answers, AI labels with people's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrlhf.errors import DataError

Row = dict[str, Any]


def mixed(
    made: Sequence[Row], others: Sequence[Row], *, ratio: float | None, seed: int, name: str
) -> list[Row]:
    """All rows of `made`, then `ratio` rows of `others` for each of them, marked by `source`.

    Args:
      ratio: others for each row of `made`, drawn without repetition; None: all there are.
      name: of the others, in `source` and in messages.
    Raises:
      DataError: there are fewer others than the ratio asks for.
    """
    wanted = len(others) if ratio is None else round(ratio * len(made))
    if wanted > len(others):
        raise DataError(
            f"{name}_ratio = {ratio}: {len(made)} rows ask for {wanted} {name} rows, there are "
            f"{len(others)}; at most {len(others) / len(made):.3g} would do"
        )
    chosen = np.random.default_rng(seed).permutation(len(others))[:wanted]
    return [*made, *({**others[i], "source": name} for i in sorted(chosen.tolist()))]
