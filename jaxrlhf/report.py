"""One HTML file that shows what a run did, and the same plots as PNG files beside it.

    report = Report("Preferences, end to end", "sandbox, seed 0")
    report.facts({"gold before": 0.12, "gold after": 1.57})
    report.heading("Reward")
    report.figure("gold", plots.lines(...), caption="Gold on 500 held-out prompts.")
    report.save("runs/demo")          # runs/demo/report.html and runs/demo/plots/gold.png

The file needs nothing but itself: images are inside it, there is no script, and a content
security policy tells the browser to load nothing. All text, above all what a model wrote, is
escaped. A table or figure without data says so.

What it deliberately does not do: it draws no plot (plots.py) and computes nothing.
"""

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jaxrlhf.progress import format_column, format_number, is_numeric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"
PLOTS_DIR = "plots"


class Report:
    """Collects blocks in order; `save` writes them. Every method returns the report."""

    def __init__(self, title: str, subtitle: str = ""):
        self._title, self._subtitle = title, subtitle
        self._blocks: list[str] = []
        self._headings: list[str] = []
        self._plots: dict[str, bytes] = {}
        self._figures_open = False

    def heading(self, text: str) -> Self:
        """Start a section."""
        self._headings.append(text)
        return self._add(f'<h2 id="s{len(self._headings)}">{escape(text)}</h2>')

    def text(self, text: str) -> Self:
        """Add paragraphs, separated by blank lines; `code`, **bold**, and lines "- item"."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._add(_paragraph(paragraph))
        return self

    def facts(self, facts: Mapping[str, Any]) -> Self:
        """Add headline tiles, name -> number or short text."""
        tiles = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(format_number(value, digits=3))}</dd></div>"
            for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">{tiles}</dl>' if tiles else _nothing("Figures"))

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = ""
    ) -> Self:
        """Add a table; columns of numbers are right-aligned and share their digits.

        Raises:
            ValueError: a row has another length than `headers`.
        """
        for number, row in enumerate(rows, start=1):
            if len(row) != len(headers):
                raise ValueError(
                    f"row {number} of the table {caption!r} has {len(row)} cells for "
                    f"{len(headers)} headers {list(headers)}"
                )
        return self._add(_table(headers, rows, caption=caption, kind="plain"))

    def completions(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], caption: str = ""
    ) -> Self:
        """Add samples side by side: one line a prompt, one column a key of `columns`.

        Text keeps its line breaks; an empty completion and a missing cell are shown as such.
        """
        cells = [[row.get(column) for column in columns] for row in rows]
        return self._add(_table(columns, cells, caption=caption, kind="samples"))

    def figure(
        self, name: str, figure: "Figure | None", *, caption: str = "", wide: bool = False
    ) -> Self:
        """Add a plot; neighbours stand in two columns unless `wide`.

        Args:
            name: the file's name under `plots/`, letters, digits, "-" and "_" only.
            figure: None stands for a plot that could not be made: the report says so.

        Raises:
            ValueError: the name is not usable, or was used before.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f'figure name {name!r}: use letters, digits, "-" and "_" only')
        if name in self._plots:
            raise ValueError(f"figure name {name!r} was used before in this report")
        title = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        if figure is None:
            body = _nothing("Plot")
        else:
            from jaxrlhf import plots

            self._plots[name] = plots.png(figure)
            data = base64.b64encode(self._plots[name]).decode()
            alt = escape(caption or name)
            body = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        return self._add_figure(f"<figure>{body}{title}</figure>", wide)

    def config(self, yaml_text: str) -> Self:
        """Add the resolved configuration, collapsed."""
        return self._add(
            f"<details><summary>Configuration</summary><pre>{escape(yaml_text)}</pre></details>"
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `plots/*.png` and `report.html` into `folder`; return the path of the latter.

        Each file appears whole or not at all: an older report stays until the new one is ready.
        """
        folder = Path(folder)
        (folder / PLOTS_DIR).mkdir(parents=True, exist_ok=True)
        for name, data in self._plots.items():
            _write_atomically(folder / PLOTS_DIR / f"{name}.png", data)
        _write_atomically(folder / REPORT_FILE, self.html().encode())
        return folder / REPORT_FILE

    def html(self) -> str:
        """Return the whole document."""
        subtitle = f'<p class="subtitle">{escape(self._subtitle)}</p>' if self._subtitle else ""
        links = [
            f'<a href="#s{i}">{escape(text)}</a>' for i, text in enumerate(self._headings, start=1)
        ]
        contents = f"<nav>{''.join(links)}</nav>" if len(links) > 2 else ""
        body = "\n".join(self._blocks) + ("</div>" if self._figures_open else "")
        return _PAGE.format(
            title=escape(self._title), subtitle=subtitle, contents=contents, body=body, style=_STYLE
        )

    def _add(self, block: str) -> Self:
        self._close_figures()
        self._blocks.append(block)
        return self

    def _add_figure(self, block: str, wide: bool) -> Self:
        if wide:
            return self._add(block)
        if not self._figures_open:
            self._blocks.append('<div class="figures">')
            self._figures_open = True
        self._blocks.append(block)
        return self

    def _close_figures(self) -> None:
        if self._figures_open:
            self._blocks.append("</div>")
            self._figures_open = False


def escape(text: str) -> str:
    """Make any string safe to stand in HTML text or a quoted attribute.

    Control characters become their visible pictures (U+2400...), lone surrogates, which UTF-8
    cannot hold, become U+FFFD.
    """
    text = "".join(_visible(c) for c in text)
    return html.escape(text, quote=True)


# ---------------------------------------------------------------------------------------- helpers


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000:
        return "\ufffd"
    return character


def _paragraph(text: str) -> str:
    blocks = []
    for is_item, lines in groupby(text.splitlines(), lambda line: line.lstrip().startswith("- ")):
        if is_item:
            items = "".join(f"<li>{_inline(line.lstrip()[2:])}</li>" for line in lines)
            blocks.append(f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{_inline(chr(10).join(lines))}</p>")
    return "".join(blocks)


def _inline(text: str) -> str:
    safe = escape(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)


def _nothing(what: str) -> str:
    return f'<p class="nothing">{what}: nothing was recorded.</p>'


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str, kind: str
) -> str:
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    if not rows:
        return _nothing(escape(caption) or "Table")
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    classes = ['class="number"' if is_numeric(column) else "" for column in columns]
    texts = [_cells(column) for column in columns]
    head = "".join(
        f"<th {class_}>{escape(str(header))}</th>"
        for header, class_ in zip(headers, classes, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td {class_}>{cell}</td>" for cell, class_ in zip(line, classes, strict=True))
        + "</tr>"
        for line in zip(*texts, strict=True)
    )
    return (
        f'<div class="scroll"><table class="{kind}">{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(column: Sequence[Any]) -> list[str]:
    texts = [escape(text) for text in format_column(column)]
    empty = '<span class="empty">(empty)</span>'
    return [
        empty if isinstance(value, str) and not value.strip() else text
        for value, text in zip(column, texts, strict=True)
    ]


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{subtitle}</header>
{contents}
{body}
</main>
</body>
</html>
"""

# In the dark the plots are inverted and their hue turned back: black on white becomes white on
# black with blue still blue, from one image. Paper is always light.
_STYLE = """
:root { --paper: #fbfbfa; --card: #ffffff; --ink: #23262c; --faint: #6a707b; --line: #e3e5e9;
  --accent: #0072b2; --code: #f1f2f4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --card: #1e2126; --ink: #e2e4e8; --faint: #989fab; --line: #32363d;
    --accent: #62b5e8; --code: #272b31; }
  figure img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.015em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .35rem;
  border-bottom: 1px solid var(--line); letter-spacing: -.01em; }
p, ul { max-width: 46rem; margin: .7rem 0; }
.subtitle { color: var(--faint); margin: .35rem 0 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.1rem 0 0; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .86em; background: var(--code); border-radius: 4px; }
code { padding: .1em .35em; }
pre { padding: 14px 16px; overflow-x: auto; line-height: 1.45; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 1.6rem 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px 14px; display: flex; flex-direction: column; justify-content: space-between; }
.facts dt { color: var(--faint); font-size: .82rem; line-height: 1.3; }
.facts dd { margin: .15rem 0 0; font-size: 1.55rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 16px; margin: 1rem 0; }
figure { margin: 1rem 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 14px 16px 12px; break-inside: avoid; }
.figures figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption, caption { color: var(--faint); font-size: .88rem; line-height: 1.45; }
figcaption { margin-top: .6rem; }
caption { caption-side: top; text-align: left; padding: 0 0 .5rem; }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; font-size: .92rem; min-width: 40%; }
th, td { padding: .45rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; font-size: .82rem; white-space: nowrap;
  border-bottom-width: 2px; vertical-align: bottom; }
td { unicode-bidi: isolate; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.samples { width: 100%; }
table.samples td:not(.number) { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9rem; }
tbody tr:hover { background: var(--code); }
tr { break-inside: avoid; }
.empty, .nothing { color: var(--faint); font-style: italic; }
details { margin: 1.6rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { font-size: 11pt; background: #fff; } main { max-width: none; padding: 0; }
  nav { display: none; } h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } }
"""
