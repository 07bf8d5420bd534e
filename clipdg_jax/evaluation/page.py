"""The pieces of a self-contained HTML page: text, tables, tiles and pictures.

Nothing is loaded from anywhere: pictures are in the page itself, and there is no script. It fits a
phone, a desktop and paper.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { margin: .4rem 0; max-width: 46rem; }
.quiet { color: #595959; font-size: .875rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; vertical-align: bottom; }
tr.sum td { font-weight: 600; border-top: 2px solid #888; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tiles div { border: 1px solid #ddd; border-radius: .4rem; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.charts svg, .charts img { width: 100%; max-width: 34rem; height: auto; display: block; }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 46rem; }
.bar { display: flex; height: 1.1rem; border-radius: .2rem; overflow: hidden; background: #eee; }
.key { display: flex; flex-wrap: wrap; gap: 0 1.1rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.key i { display: inline-block; width: .75em; height: .75em; border-radius: .15em;
  margin-right: .35em; }
.set { margin: 1rem 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); gap: .4rem; }
figure { margin: 0; font-size: .75rem; text-align: center; color: #444;
  font-variant-numeric: tabular-nums; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block;
  background: #f4f4f4; border: 3px solid transparent; }
@media (max-width: 30rem) {
  table { font-size: .8125rem; } th, td { padding-right: .5rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff;
    min-width: 7.5rem; max-width: 8.5rem; white-space: normal; overflow-wrap: anywhere; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } figure, .set, svg, img, tr { break-inside: avoid; }
  .gallery { grid-template-columns: repeat(12, 1fr); } .wide { overflow: visible; }
}
"""


def document(title: str, body: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def paragraph(text: str, quiet: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=quiet' if quiet else ''}>{html.escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def tiles(figures: Mapping[str, str]) -> str:
    """A few figures, large: {what: figure}."""
    cells = (
        f"<div><b>{html.escape(figure)}</b>{html.escape(what)}</div>"
        for what, figure in figures.items()
    )
    return f"<div class=tiles>{''.join(cells)}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sums: int = 0) -> str:
    """Rows of text, the first column flush left; the last `sums` rows are sums.

    On a narrow screen it scrolls by itself.
    """
    made = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(rows):
        kind = " class=sum" if number >= len(rows) - sums else ""
        made.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>")
    return f"<div class=wide><table>{''.join(made)}</table></div>"


def notes(texts: Sequence[str]) -> str:
    """A list of remarks; nothing where there are none."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if texts else ""


def chart(svg: str, about: str) -> str:
    """A chart, to be put among others in `charts`.

    Args:
      svg: a whole SVG document.
      about: what it shows, for those who cannot see it.
    """
    # As an image, because the names within one SVG document would clash with another's.
    data = base64.b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(about)}">'


def charts(made: Sequence[str]) -> str:
    """Charts beside each other as far as there is room."""
    return f"<div class=charts>{''.join(made)}</div>"
