"""Names beside the points of a plot, each at the nearest place where it covers nothing.

The axes must have been laid out, since places are looked for in pixels. Nothing else is drawn here
(`plots.py`), and a name that finds no free place at all stands at the last one tried.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

Align = Literal["left", "right", "center"]

SIDES: tuple[tuple[int, Align], ...] = (
    *((8, "left"), (-8, "right"), (0, "center"), (40, "left"), (-40, "right")),
)
# Points right of a point, points above it, and which end of the name stands there; nearest first.
PLACES: list[tuple[int, int, Align]] = sorted(
    ((dx, dy, align) for dy in range(-112, 113, 14) for dx, align in SIDES if dy or abs(dx) == 8),
    key=lambda place: (math.hypot(place[0], place[1]), place[1]),
)
FAR = 20
"""Points from where on a line leads to the name."""
DOT = 6
"""Pixels on each side of a point that its dot takes."""


def write_names(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    *,
    colours: Sequence[str],
    ink: str,
) -> None:
    """Write a name for each point, from left to right.

    Args:
      points: in data coordinates.
      colours: of the lines that lead to names which found no room beside their point.
      ink: colour of the names.
    """
    dots = np.asarray(axes.transData.transform(points))
    taken = [Bbox([dot - DOT, dot + DOT]) for dot in dots]
    for i in sorted(range(len(points)), key=lambda i: dots[i, 0]):
        taken.append(_write(axes, points[i], names[i], colours[i], ink, taken))


def _write(
    axes: Axes,
    point: tuple[float, float],
    name: str,
    colour: str,
    ink: str,
    taken: Sequence[Bbox],
) -> Bbox:
    """Write one name; the pixels that it takes."""
    text = axes.annotate(
        name,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=9,
        color=ink,
        va="center",
        parse_math=False,
    )
    text.set_in_layout(False)  # the axes stay where they are
    box, place = Bbox.null(), (0, 0)
    for dx, dy, align in PLACES:
        place = (dx, dy)
        text.set_position(place)
        text.set_horizontalalignment(align)
        box = text.get_window_extent()
        inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
        if inside and not any(box.overlaps(other) for other in taken):
            break
    if math.hypot(*place) > FAR:
        line = {"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 6, "shrinkB": 4}
        leader = axes.annotate("", point, xytext=place, textcoords="offset points", arrowprops=line)
        leader.set_in_layout(False)
    return box
