"""The report: one safe, self-contained file, and plots that survive any data."""

import base64
import io
import re
import sys
from html.parser import HTMLParser
from typing import Any, cast

import matplotlib.image
import numpy as np
import pytest

from jaxrlhf import plots
from jaxrlhf.plots import Line, Panel, Point
from jaxrlhf.report import Report, escape

HOSTILE = (
    "<script>alert(1)</script> <img src=https://evil.example/x onerror=alert(2)> "
    "\"' & &lt; {0} {title} \x00\x1b \ud800 \u202e 漢 \U0001f600\nsecond line"
)
VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _pixels(data: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(data), format="png")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A report with a block of every kind, with hostile text wherever text can go."""
    folder = tmp_path_factory.mktemp("report")
    report = Report(HOSTILE, HOSTILE)
    report.facts({"gold after": 1.4731, HOSTILE: HOSTILE, "pairs": 12000})
    report.heading(HOSTILE).text(f"{HOSTILE}\n\nSee `code` and **bold**:\n- one\n- two")
    report.heading("Two").heading("Three")
    line = Line([0, 1, 2], [0.0, 1.0, float("nan")], f"_$x^$ {HOSTILE}", [-1, 0, 1], [1, 2, 3])
    figure = plots.lines([line], xlabel="$_{$", ylabel="$^$", title=f"$5 to $_{{6 {HOSTILE}")
    report.figure("gold-1", figure, caption=HOSTILE)
    report.figure("missing", None, caption="no reward model")
    report.figure("again", figure, wide=True)
    report.table(["stage", HOSTILE], [["sft", 0.9], [HOSTILE, 0.875]], caption=HOSTILE)
    report.completions(
        [
            {"prompt": HOSTILE, "before": HOSTILE, "after": "", "gold": -0.5},
            {"prompt": "p", "before": "NaN", "gold": 1.75},
        ],
        ["prompt", "before", "after", "gold"],
        HOSTILE,
    )
    report.config(f"a: 1 # {HOSTILE}")
    return folder, report.save(folder)


def test_everything_is_escaped(saved):
    text = saved[1].read_text(encoding="utf-8")
    page = Checker(text)
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == 2, "the figures, and none that a text asked for"
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert page.text.count("second line") >= 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), "control characters are shown"
    assert "␀␛ \ufffd \u202e 漢 \U0001f600" in page.text


def test_the_file_needs_nothing_but_itself(saved):
    text = saved[1].read_text(encoding="utf-8")
    page = Checker(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "action"):
            assert value.startswith("data:image/png;base64," if tag == "img" else "#s")
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    # An address may be read (in text, or in what a figure is called) but never followed.
    markup = re.sub(r'alt="[^"]*"', "", re.sub(r">[^<]*<", "><", text))
    assert not re.search(r"https?:", markup)
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} == ids


def test_plots_are_valid_png_files_and_the_same_inside(saved):
    folder, path = saved
    assert path == folder / "report.html"
    names = {file.name for file in (folder / "plots").iterdir()}
    assert names == {"gold-1.png", "again.png"}, "whole files, no temporary ones"
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', path.read_text(encoding="utf-8"))
    data = (folder / "plots" / "gold-1.png").read_bytes()
    assert base64.b64decode(inside[0]) == data
    pixels = _pixels(data)
    width, height = (round(inches * plots.DPI) for inches in plots.SIZE)
    assert pixels.shape[:2] == (height, width)
    # The band and the line are there: some pixels are of the first palette colour, #0072B2.
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(pixels[..., :3] - blue).max(-1) < 0.02).sum() > 100


def test_numbers_are_aligned_and_short(saved):
    text = saved[1].read_text(encoding="utf-8")
    assert "<dd>1.47</dd>" in text and "<dd>12,000</dd>" in text
    assert '<td class="number">0.900</td>' in text and '<td class="number">0.875</td>' in text
    assert '<td class="number">-0.500</td>' in text and '<td class="number">1.750</td>' in text


def test_empty_and_missing_cells_differ(saved):
    text = saved[1].read_text(encoding="utf-8")
    assert text.count("(empty)") == 1  # the completion ""; the one that is not there is "-"
    assert re.search(r"<td >-</td>", text)


def test_a_block_without_data_says_so(saved, tmp_path):
    assert "no reward model" in saved[1].read_text(encoding="utf-8")
    report = Report("Nothing happened")
    report.facts({}).table(["a"], [], caption="Stages").completions([], ["prompt"], "Samples")
    report.figure("x", None).text("").config("")
    page = Checker(report.html())
    for name in ("Stages", "Samples", "Figures", "Plot"):
        assert f"{name}: nothing was recorded." in page.text
    assert page.text.count("nothing was recorded") == 4
    assert Report("Empty").save(tmp_path).exists()


def test_neighbouring_figures_share_a_row_and_wide_ones_do_not():
    report = Report("t").figure("a", None).figure("b", None).text("x").figure("c", None)
    text = report.figure("d", None, wide=True).html()
    rows = re.findall(r'<div class="figures">(.*?)</div>', text, flags=re.DOTALL)
    assert [row.count("<figure>") for row in rows] == [2, 1]
    Checker(text)


def test_bad_calls_are_explained():
    report = Report("t").figure("a", None)
    report.figure("b", plots.lines([], xlabel="", ylabel="", title=""))
    with pytest.raises(ValueError, match="'b' was used before"):
        report.figure("b", None)
    with pytest.raises(ValueError, match=r"'\.\./x'"):
        report.figure("../x", None)
    with pytest.raises(ValueError, match=r"row 2 .*'Stages' has 1 cells for 2 headers"):
        report.table(["a", "b"], [[1, 2], [3]], caption="Stages")


def test_an_older_report_stays_if_saving_fails(tmp_path, monkeypatch):
    path = Report("old").save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxrlhf.report.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        Report("new").save(tmp_path)
    assert "<h1>old</h1>" in path.read_text()


def test_escape_known_answers():
    assert escape("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#x27;"
    assert escape("\n\t") == "\n\t"
    assert escape("\x1b\x7f\x85\udfff") == "\u241b\u2421\ufffd\ufffd"


# ------------------------------------------------------------------------------------------- plots


def _texts(figure) -> str:
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_every_plot_says_when_there_is_no_data():
    nan = float("nan")
    nothing, hollow = Line([], [], "a"), Line([1, 2], [nan, nan], "b")
    for figure in (
        plots.lines([nothing, hollow], xlabel="x", ylabel="y", title="t"),
        plots.points([Point(nan, 0, "a")], xlabel="x", ylabel="y", title="t"),
        plots.two_axes(nothing, hollow, xlabel="", left_label="", right_label="", title="t"),
        plots.reliability([0.5, nan], [nan, 0.5], [0, 3], nan),
        plots.histogram({"a": [], "b": [nan]}, xlabel="x", title="t"),
        plots.grid([{"step": 1, "other": 1.0}], title="t"),
    ):
        assert "nothing was recorded" in _texts(figure)
    assert _pixels(plots.png(figure)).ndim == 3


def test_labels_are_text_whatever_is_in_them():
    lines = [Line([0, 1], [0, 1], "_hidden"), Line([0, 1], [1, 0], "$a_$"), Line([0], [0], "")]
    figure = plots.lines(lines, xlabel="$x_$", ylabel="$^$", title="$_$")
    plots.png(figure)  # formulas that matplotlib cannot parse raise here
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["_hidden", "$a_$"], "a series without a label is not listed"


def test_names_of_points_do_not_cover_one_another():
    # Twelve points at three places, in a corner too: every name has room of its own.
    named = [Point(i % 3, 1.0, f"policy {i}", "ab"[i % 2]) for i in range(12)]
    figure = plots.points([*named, Point(2, 0, HOSTILE[:20])], xlabel="x", ylabel="y", title="t")
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert len(boxes) == 13
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for rest, other in boxes.items() if rest != name), name
        assert figure.axes[0].bbox.contains(box.x0, box.y0), name
        assert figure.axes[0].bbox.contains(box.x1, box.y1), name
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["a", "b"], "a colour a kind"
    plots.png(plots.points([Point(0, 0, HOSTILE)], xlabel="", ylabel="", title=HOSTILE))


def test_two_axes_draws_what_there_is_and_aligns_zero():
    left, right = Line([0, 1], [-0.1, 1.4], "gold"), Line([0, 1], [0.0, 9.0], "learned")
    labels = {"xlabel": "step", "left_label": "sd", "right_label": "logit", "title": "t"}
    figure = plots.two_axes(left, right, **labels)
    heights = [-low / (high - low) for low, high in (ax.get_ylim() for ax in figure.axes)]
    assert heights[0] == pytest.approx(heights[1])
    assert all(
        ax.get_ylim()[0] <= min(line.y) and max(line.y) <= ax.get_ylim()[1]
        for ax, line in zip(figure.axes, (left, right), strict=True)
    )
    assert "learned" not in _texts(plots.two_axes(left, Line([], [], "learned"), **labels))


def test_reliability_shows_what_it_was_given():
    figure = plots.reliability([0.55, 0.7, 0.95], [0.5, 0.75, 1.0], [10, 0, 30], 0.0425)
    assert "ECE 0.043" in _texts(figure) or "ECE 0.042" in _texts(figure)
    upper, lower = cast(Any, figure.axes)
    measured = upper.lines[1]
    assert list(measured.get_xdata()) == [0.55, 0.95], "an empty bin has no accuracy"
    assert [bar.get_height() for bar in lower.patches] == [10, 30]


def test_histogram_has_area_one_and_names_the_mean():
    samples = {"before": [0.0, 1.0, 2.0, float("inf")], "after": [5.0]}
    figure = plots.histogram(samples, xlabel="gold", title="t", bins=7)
    # mean of 0, 1, 2 is 1; infinity is left out
    assert "before: mean 1, n 3" in _texts(figure) and "after: mean 5, n 1" in _texts(figure)
    patch = cast(Any, figure.axes[0].patches[0])
    heights, edges, _ = patch.get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1.0)


def test_grid_leaves_out_panels_without_metrics_and_smooths_long_series():
    rows = [
        {"step": s, "objective/kl_k1": 2.0 * s, "policy/entropy": float("nan")} for s in range(80)
    ]
    rows += [{"step": 80, "mine": 1.0}]
    panels = (*plots.PPO_PANELS, Panel("Mine", "things", {"mine": "", "absent": "x"}))
    figure = plots.grid(rows, panels, title="$ title")
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert titles == ["KL to the reference", "Mine"]
    raw, mean = cast(Any, figure.axes[0].lines)
    assert len(raw.get_xdata()) == 80
    # 80 points: windows of 4, so 77 of them; steps 0..3 have mean 1.5, and 2 s averages to 3.0.
    assert len(mean.get_xdata()) == 77
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (1.5, 3.0)


def test_drawing_leaves_matplotlib_as_it_was():
    # Reading the setting "backend" alone would make matplotlib import pyplot.
    settings = cast(Any, matplotlib.rcParams)
    names = [name for name in settings if name != "backend"]
    before = [settings[name] for name in names]
    plots.png(plots.lines([Line([1], [1], "a", style="connected")], xlabel="", ylabel="", title=""))
    assert [settings[name] for name in names] == before
    assert "matplotlib.pyplot" not in sys.modules
