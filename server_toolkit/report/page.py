"""What all pages share: the style, the frame, and how a number with its interval looks."""

from __future__ import annotations

import html

from server_toolkit.report.figures import Point

STYLE = """
:root { color-scheme: light; --line: #d8dce2; --soft: #5b6573; --accent: #0072B2; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: #16202c; background: #f6f7f9; margin: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
p.lead, .soft { color: var(--soft); }
section > .card, .cards > div { background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: 1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.facts div { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem 1rem; min-width: 8.5rem; }
.facts b { display: block; font-size: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .42rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); }
tr.control td { background: #fafafa; } tr.main td { background: #eaf4fb; font-weight: 600; }
.scroll { overflow-x: auto; } svg, img { max-width: 100%; height: auto; display: block; }
svg { margin: 0 auto; }
.cards h3 { margin: 0; } td:first-child { white-space: nowrap; }
td small { white-space: normal; } img { image-rendering: pixelated; border-radius: 4px; }
small { color: var(--soft); font-weight: 400; }
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """Return one HTML document that needs no other file; `style` is added to the shared one."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE}{style}</style></head>
<body><main>
{body.strip()}
</main></body></html>
"""


def escaped(text: object) -> str:
    """Return text as HTML shows it."""
    return html.escape(str(text))


def point_cell(point: Point) -> str:
    """Return an accuracy in percent with its interval below it."""
    middle, low, high = (100 * p for p in point)
    return f"{middle:.1f} %<br><small>{low:.1f} to {high:.1f}</small>"
