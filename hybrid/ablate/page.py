"""The bare page: HTML elements as functions that escape all text, and the one style sheet.

`Html` marks what is markup already; every other string is text and is escaped. The page needs
no network and no script, is readable at phone width (tables scroll inside their boxes) and
follows the reader's dark mode; figures keep white paper.
"""

import re
from collections.abc import Collection, Sequence
from html import escape
from typing import Any


class Html(str):
    """A string that is markup, as `element` returns it."""

    __slots__ = ()


def element(tag: str, *content: Any, **attributes: str | None) -> Html:
    """`<tag attributes>content</tag>`; text is escaped, None attributes are left out.

    A trailing underscore is cut from attribute names (`class_`), others become hyphens.
    """
    named = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    opening = "".join(f' {key}="{escape(value)}"' for key, value in named.items())
    return Html(f"<{tag}{opening}>{joined(content)}</{tag}>")


def joined(content: Sequence[Any]) -> Html:
    """Contents one after the other, each escaped unless it is Html."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in content))


def unbroken(text: str) -> str:
    """The text with numbers held together with their units at the ends of lines."""
    return re.sub(r"(?<=\d) (?=%|×|[KMGT]iB|B\b)", "\u00a0", text)


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], marked: Collection[int] = ()
) -> Html:
    """A caption over a table that scrolls in its box; its first column names the rows.

    Rows `marked` stand out.
    """
    heads = [element("th", text, scope="col") for text in head]
    body = []
    for index, (name, *cells) in enumerate(rows):
        first = element("th", name, scope="row")
        kind = "marked" if index in marked else None
        body.append(element("tr", first, *[element("td", cell) for cell in cells], class_=kind))
    whole = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
    )
    kind = "box wide" if len(head) > 9 else "box"
    box = element("div", whole, class_=kind, role="region", aria_label=caption, tabindex="0")
    return joined([element("p", caption, class_="note", aria_hidden="true"), box])


def document(title: str, *content: Html) -> str:
    """The whole file."""
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            element("title", title),
            Html(f"<style>{_STYLE}</style>"),
        ]
    )
    body = element("body", element("main", *content))
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n{body}\n</html>\n'


_STYLE = """
:root { --ink: #1f2430; --faint: #5b6478; --line: #d9dde6; --paper: #ffffff; --tint: #f5f7fb;
  --worse: #a33a06; --better: #0a6b4b; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --faint: #a3acbf; --line: #373d4c; --paper: #14171f; --tint: #1d212c;
    --worse: #ffab7a; --better: #6fdcb4; --accent: #7fa9f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI",
  Helvetica, Arial, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1340px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { font-size: 25px; line-height: 1.2; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 30px 0 8px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 0 0 8px; }
.about, figcaption, .note { color: var(--faint); font-size: 13px; }
.answer { border-left: 4px solid var(--accent); background: var(--tint); padding: 10px 16px 4px;
  margin: 12px 0 14px; border-radius: 0 8px 8px 0; }
.answer h2 { margin: 0 0 4px; font-size: 15px; color: var(--faint); }
.answer p { max-width: 135ch; }
.answer p + h2 { margin-top: 10px; }
.progress { border-left: 4px solid var(--worse); padding: 4px 14px; margin: 10px 0; }
.box { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 8px;
  margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
p.note { margin: 0 0 4px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 5px 10px; text-align: right; vertical-align: top; white-space: nowrap;
  border-top: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--faint); vertical-align: bottom; white-space: normal;
  min-width: 68px; }
thead tr:first-child th { border-top: 0; }
.box { position: relative; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
th:first-child { text-align: left; }
.error { display: inline-block; text-align: left; white-space: pre-wrap; min-width: 240px;
  max-width: 70ch; }
.marked th, .marked td { background: var(--tint); }
.tag { font-weight: 400; color: var(--faint); font-size: 12px; }
.worse { color: var(--worse); font-weight: 600; }
.better { color: var(--better); font-weight: 600; }
.ends { color: var(--faint); font-size: 12.5px; margin-left: 5px; }
.wide .ends { display: block; margin: 0; }
@media (max-width: 1150px) { .ends { display: block; margin: 0; } }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr));
  gap: 18px; align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  min-width: 0; }
figure svg { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 4px;
  margin-top: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; max-width: 100ch; }
@media (max-width: 600px) {
  main { padding: 12px 12px 32px; }
  body { font-size: 14px; line-height: 1.42; }
  h1 { font-size: 20px; }
  .answer { padding: 8px 12px 2px; margin: 10px 0; }
  th, td { padding: 5px 9px; }
  figure { padding: 8px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
@media print { .box { overflow: visible; } figure { break-inside: avoid; } }
"""
