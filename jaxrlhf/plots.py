"""Figures of a report: lines, named points, two scales, reliability, intervals, histograms, grids.

Every function takes plain sequences of numbers and returns a `matplotlib.figure.Figure`; `png`
turns one into bytes. Only matplotlib's object interface is used, so nothing here touches pyplot or
global settings, and a figure can be drawn next to somebody else's. Missing data is a figure that
says so, never an exception. Colours are those of Okabe and Ito (2008), told apart with any of the
common forms of colour blindness; series differ by dash as well where there is room.

What it deliberately does not do: it computes no metric (a running mean in `grid` is the only
arithmetic) and writes no file.
"""

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from jaxrlhf.metrics import series as pick
from jaxrlhf.plot_names import write_names

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#B0578D"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#555555")
INK, FAINT, GRID = "#2b2f36", "#6d7480", "#e4e6ea"

SIZE = (6.4, 4.0)  # inches; two of them stand side by side in a report
DPI = 160

Style = Literal["solid", "dashed", "dotted", "points", "connected"]


@dataclass(frozen=True)
class Line:
    """One series. `low` and `high` draw a band around it (an interval: say which in the label).

    style: "solid", "dashed", "dotted", "points" (no line), "connected" (points joined in the order
    given, with the last one ringed: a path through a plane, such as reward against KL).
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Style = "solid"


@dataclass(frozen=True)
class Point:
    """One point of `points`, and the name beside it; points of one `kind` share a colour."""

    x: float
    y: float
    name: str
    kind: str = ""


@dataclass(frozen=True)
class Panel:
    """One small plot of `grid`: the metrics `names` (name in the file -> label) against steps."""

    title: str
    unit: str
    names: Mapping[str, str]


PPO_PANELS = (
    Panel("KL to the reference", "nats", {"objective/kl_k1": "k1", "objective/kl_k3": "k3"}),
    Panel("KL coefficient", "", {"objective/kl_coef": ""}),
    Panel("Response length", "tokens", {"rollout/length": ""}),
    Panel("Ended by a stop token", "share", {"rollout/eos_rate": ""}),
    Panel("Entropy of the policy", "nats per token", {"policy/entropy": ""}),
    Panel(
        "Clipped",
        "share of tokens",
        {"policy/clip_fraction": "policy", "value/clip_fraction": "value"},
    ),
    Panel("Change in one update", "nats per token", {"policy/approx_kl": ""}),
    Panel("Value: explained variance", "share", {"value/explained_variance": ""}),
    Panel("Value loss", "", {"value/loss": ""}),
)


def lines(series: Sequence[Line], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """Draw several series on one pair of axes, legend below."""
    figure, axes = _figure(title)
    drawn = [_draw(axes, line, i) for i, line in enumerate(series) if _has_data(line)]
    if not drawn:
        return _no_data(axes)
    _label(axes, xlabel, ylabel)
    _legend(figure, drawn)
    return figure


def points(named: Sequence[Point], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """Draw points, each with its name beside it; one that finds no room there is led to by a line.

    A legend of colours would have to repeat them where there are more points than colours.
    """
    figure, axes = _figure(title)
    shown = [point for point in named if math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown:
        return _no_data(axes)
    _label(axes, xlabel, ylabel)
    drawn, colours = [], {}
    for point in shown:
        colour = colours.setdefault(point.kind, PALETTE[len(colours) % len(PALETTE)])
        dot = axes.plot(point.x, point.y, color=colour, marker="o", markersize=6, linestyle="none")
        if point.kind not in {kind for _, kind in drawn}:
            drawn.append((dot[0], point.kind))
    _legend(figure, drawn)
    axes.margins(0.08)
    with _any_script(figure):
        figure.draw_without_rendering()  # now it is known where everything lies
        write_names(
            axes,
            [(point.x, point.y) for point in shown],
            [_encodable(point.name) for point in shown],
            colours=[colours[point.kind] for point in shown],
            ink=INK,
        )
    return figure


def two_axes(
    left: Line, right: Line, *, xlabel: str, left_label: str, right_label: str, title: str
) -> Figure:
    """Draw two series in different units over one x, each scale in its series' colour.

    Made for gold against learned reward, over steps or over KL: the two have different units, and
    what matters is whether they rise together. Where both scales contain 0, it is at one height.
    """
    figure, axes = _figure(title)
    if not _has_data(left) and not _has_data(right):
        return _no_data(axes)
    other = axes.twinx()
    _style(other)
    other.grid(False)
    drawn = []
    for ax, line, i in ((axes, left, 0), (other, right, 1)):
        if _has_data(line):
            drawn.append(_draw(ax, line, i))
        ax.tick_params(axis="y", labelcolor=PALETTE[i])
    _label(axes, xlabel, left_label)
    axes.yaxis.label.set_color(PALETTE[0])
    _align_zeros(axes, other)
    other.set_ylabel(right_label, color=PALETTE[1], fontsize=10, parse_math=False)
    other.spines["right"].set_visible(False)
    _legend(figure, drawn)
    return figure


def reliability(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    count: Sequence[int],
    ece: float,
    *,
    title: str = "Calibration",
    event: str = "pairs",
) -> Figure:
    """Draw a reliability diagram: observed against predicted share, with the size of each bin.

    Args:
        confidence: mean predicted probability of each bin.
        accuracy: share of the bin that came true.
        count: how many fell into the bin; empty bins are left out.
        ece: expected calibration error, printed (it is not recomputed here).
        event: what is counted, for the label of the lower axis.
    """
    figure = _blank()
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _style(axes)
    _style(below)
    _title(axes, title)
    bins = [
        (p, a, n)
        for p, a, n in zip(confidence, accuracy, count, strict=True)
        if n > 0 and math.isfinite(p) and math.isfinite(a)
    ]
    if not bins:
        below.set_visible(False)
        return _no_data(axes)
    p, a, n = (np.asarray(column, float) for column in zip(*bins, strict=True))
    start = 0.5 if p.min() >= 0.5 else 0.0
    ideal = axes.plot([start, 1], [start, 1], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)[0]
    # Two standard errors of a share, so that a bin of nine is not read like one of nine hundred.
    error = 2 * np.sqrt(np.clip(a * (1 - a), 0.0, None) / n)
    axes.vlines(p, a - error, a + error, color=BLUE, alpha=0.35, linewidth=3)
    dots = axes.plot(p, a, color=BLUE, marker="o", markersize=6, linewidth=1.8)[0]
    axes.set(xlim=(start - 0.01, 1.01))
    axes.set_ylim(max(-0.03, min(start, float((a - error).min())) - 0.03), 1.03)
    _label(axes, "", "share that came true")
    axes.set_title(f"ECE {ece:.3f}", loc="right", fontsize=11, color=INK, pad=8)
    below.bar(p, n, width=0.6 * (1 - start) / max(10, len(p)), color=BLUE, alpha=0.55)
    _label(below, "predicted probability", event)
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    _legend(figure, [(dots, "measured (bars: 2 standard errors)"), (ideal, "perfect")])
    return figure


def intervals(
    names: Sequence[str],
    estimate: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    xlabel: str,
    title: str,
    marks: Sequence[float | None] = (),
    marked: str = "",
) -> Figure:
    """Draw an estimate and its interval for each name, one below the other in the order given.

    `marks` are values to compare with, a small upright line each, and `marked` says what they are.
    """
    figure = _blank((SIZE[0], max(2.2, 1.2 + 0.24 * len(names))))
    axes = figure.add_subplot()
    _style(axes)
    _title(axes, title)
    if not len(names):
        return _no_data(axes)
    place = np.arange(len(names))[::-1]
    axes.hlines(place, low, high, color=BLUE, alpha=0.35, linewidth=4)
    axes.plot(estimate, place, color=BLUE, marker="o", markersize=5, linestyle="none")
    beside = [(x, y) for x, y in zip(marks, place, strict=False) if x is not None]
    if beside:
        drawn = axes.scatter(*zip(*beside, strict=True), marker="|", s=90, color=INK, zorder=3)
        _legend(figure, [(drawn, marked)])
    axes.set_yticks(place, [name if len(name) <= 40 else name[:39] + "…" for name in names])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(-0.8, len(names) - 0.2)
    axes.grid(False, axis="y")
    _label(axes, xlabel, "")
    return figure


def histogram(
    samples: Mapping[str, Sequence[float]], *, xlabel: str, title: str, bins: int = 30
) -> Figure:
    """Draw the distributions of several samples over shared bins, each with its mean.

    Every sample has area 1, so samples of different sizes compare. Non-finite values are left out.
    """
    figure, axes = _figure(title)
    finite = {label: _finite(values) for label, values in samples.items()}
    finite = {label: values for label, values in finite.items() if values.size}
    if not finite:
        return _no_data(axes)
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=bins)
    drawn = []
    for i, (label, values) in enumerate(finite.items()):
        colour = PALETTE[i % len(PALETTE)]
        heights, _ = np.histogram(values, edges, density=True)
        patch = axes.stairs(heights, edges, fill=True, color=colour, alpha=0.22)
        axes.stairs(heights, edges, color=colour, linewidth=1.8)
        axes.axvline(values.mean(), color=colour, linewidth=1.6, linestyle=(0, (4, 3)))
        drawn.append((patch, f"{label}: mean {values.mean():.3g}, n {values.size:,}"))
    _label(axes, xlabel, "density")
    axes.set_ylim(bottom=0)
    _legend(figure, drawn)
    return figure


def grid(
    rows: Sequence[Mapping[str, float]],
    panels: Sequence[Panel] = PPO_PANELS,
    *,
    title: str = "",
    columns: int = 3,
) -> Figure:
    """Draw metrics of `read_metrics` against steps, one small plot a panel.

    Panels of which no metric was recorded are left out. Long noisy series are drawn faintly, with
    their centred running mean (1/20 of the points wide) on top.
    """
    found = [panel for panel in panels if _recorded(rows, panel)]
    if not found:
        figure, axes = _figure(title)
        return _no_data(axes)
    columns = min(columns, len(found))
    height = math.ceil(len(found) / columns)
    figure = _blank((3.6 * columns + 0.4, 2.35 * height + (0.5 if title else 0.2)))
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, parse_math=False)
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)  # pyright: ignore
    all_axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axes, panel in zip(all_axes, found, strict=False):
        _draw_panel(axes, rows, panel)
    for axes in all_axes[len(found) :]:
        axes.set_visible(False)
    return figure


def png(figure: Figure) -> bytes:
    """Render a figure as PNG, background white."""
    buffer = io.BytesIO()
    with _any_script(figure):
        figure.savefig(
            buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- helpers


@contextmanager
def _any_script(figure: Figure) -> Iterator[None]:
    """Whatever is in its texts, they can be measured and drawn."""
    for text in figure.findobj(Text):
        text.set_text(_encodable(text.get_text()))
    with warnings.catch_warnings():
        # A label in a script the font lacks is drawn as boxes; that should not end a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # lone surrogates


def _blank(size: tuple[float, float] = SIZE) -> Figure:
    return Figure(figsize=size, layout="constrained", facecolor="white")


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = _blank()
    axes = figure.add_subplot()
    _style(axes)
    _title(axes, title)
    return figure, axes


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b9bec7")
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9, length=3)


def _title(axes: Axes, title: str, size: int = 12) -> None:
    # parse_math=False throughout: a "$" in a label is a dollar, not the start of a formula.
    axes.set_title(
        title, loc="left", fontsize=size, fontweight="bold", color=INK, pad=8, parse_math=False
    )


def _label(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=10, color=INK, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=10, color=INK, parse_math=False)


def _legend(figure: Figure, drawn: Sequence[tuple]) -> None:
    """Put the legend outside, below the axes, leaving out series without a label."""
    named = [(artist, label) for artist, label in drawn if label]
    if not named:
        return
    room, sizes = 84, [len(label) + 8 for _, label in named]  # characters, with the handles
    columns = len(named) if sum(sizes) <= room else max(1, room // max(sizes))
    legend = figure.legend(
        [artist for artist, _ in named],
        [label for _, label in named],
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _no_data(axes: Axes) -> Figure:
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        "nothing was recorded for this plot",
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=11,
        color=FAINT,
    )
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _draw(axes: Axes, line: Line, i: int) -> tuple:
    """Draw one series in the i-th colour; return (artist, label) for the legend."""
    colour = PALETTE[i % len(PALETTE)]
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if line.low is not None and line.high is not None:
        axes.fill_between(x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    dash = {"dashed": (0, (5, 2.5)), "dotted": (0, (1.2, 1.8))}.get(line.style, "solid")
    if line.style == "points":
        dash = "none"
    marked = line.style in ("points", "connected") or len(x) <= 25
    artist = axes.plot(
        x,
        y,
        color=colour,
        linewidth=2.0 if len(x) <= 100 and line.style != "connected" else 1.4,
        linestyle=dash,
        marker="o" if marked and line.style not in ("dashed", "dotted") else None,
        markersize=4.5,
        solid_capstyle="round",
    )[0]
    if line.style == "connected":
        last = np.flatnonzero(np.isfinite(x) & np.isfinite(y))[-1]
        axes.plot(x[last], y[last], marker="o", markersize=10, markerfacecolor="none", color=colour)
    return artist, line.label


def _align_zeros(axes: Axes, other: Axes) -> None:
    """Put 0 at the same height on both scales, if both show it already."""
    limits = np.array([axes.get_ylim(), other.get_ylim()])
    if (limits[:, 0] > 0).any() or (limits[:, 1] < 0).any():
        return
    spans = limits[:, 1] - limits[:, 0]
    low, high = (limits[:, 0] / spans).min(), (limits[:, 1] / spans).max()
    for ax, span in zip((axes, other), spans, strict=True):
        ax.set_ylim(low * span, high * span)


def _draw_panel(axes: Axes, rows: Sequence[Mapping[str, float]], panel: Panel) -> None:
    _style(axes)
    _title(axes, panel.title, size=10)
    drawn = []
    for i, (name, label) in enumerate(panel.names.items()):
        steps, values = pick(rows, name)
        if not _finite(values).size:
            continue
        colour = PALETTE[i]
        width = len(values) // 20
        if width >= 3:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            steps, values = _running_mean(steps, values, width)
        drawn.append((axes.plot(steps, values, color=colour, linewidth=1.8)[0], label))
    named = [(artist, label) for artist, label in drawn if label]
    if len(named) > 1:
        axes.legend(
            *zip(*named, strict=True),
            loc="lower right",
            bbox_to_anchor=(1.02, 0.99),
            ncols=len(named),
            fontsize=8,
            frameon=False,
            labelcolor=INK,
            handlelength=1.2,
            columnspacing=1.2,
        )
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step", fontsize=8, color=FAINT)
    axes.set_ylabel(panel.unit, fontsize=8, color=FAINT, parse_math=False)


def _running_mean(
    steps: Sequence[float], values: Sequence[float], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Average every full window of `width` neighbours, placed at its middle; NaN is left out."""
    finite, ones = np.isfinite(values), np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="valid")
    count = np.convolve(finite.astype(float), ones, mode="valid")
    middle = np.convolve(np.asarray(steps, float), ones / width, mode="valid")
    return middle, total / np.where(count > 0.5, count, np.nan)


def _recorded(rows: Sequence[Mapping[str, float]], panel: Panel) -> bool:
    return any(_finite(pick(rows, name)[1]).size for name in panel.names)


def _has_data(line: Line) -> bool:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    return bool(np.any(np.isfinite(x) & np.isfinite(y)))


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, float)
    return array[np.isfinite(array)]
