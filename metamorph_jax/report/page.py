"""The HTML page: blocks, sections, and the frame around them, with nothing loaded from elsewhere.

Every function escapes the texts it is given, except those that are `Html` already: what a model or
a user's file says can never become markup. What the sections say is decided elsewhere.
"""

import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root { --ink: #1d2328; --quiet: #5b6670; --line: #dde2e6; --good: #18794e; --bad: #b42318; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.5rem 5rem; background: #fff;
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .4rem; }
h2, h3 { break-after: avoid; }
p { margin: .5rem 0 .9rem; max-width: 46rem; }
.lead, figcaption, .quiet { color: var(--quiet); }
nav { margin: 1rem 0 1.5rem; font-size: .9rem; }
nav a { margin-right: 1.1rem; color: inherit; }
figure { margin: 1.1rem 0 1.6rem; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .9rem; margin-top: .5rem; max-width: 46rem; }
table { border-collapse: collapse; margin: .8rem 0 1.4rem; font-size: .93rem;
  font-variant-numeric: tabular-nums; break-inside: avoid; }
th { text-align: left; font-weight: 600; color: var(--quiet); border-bottom: 1px solid var(--ink);
  padding: .3rem 1.1rem .3rem 0; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: .36rem 1.1rem .36rem 0; vertical-align: top; }
td img, .card img { display: block; }
.yes { color: var(--good); font-weight: 600; white-space: nowrap; }
.no { color: var(--bad); font-weight: 600; white-space: nowrap; }
.number { white-space: nowrap; }
.sheet td img { max-width: none; }
.sheet td { border: 0; padding: .12rem 1.2rem .12rem 0; vertical-align: middle; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .9rem;
  margin: .8rem 0 1.4rem; }
.card { display: grid; grid-template-columns: 4rem 1fr; gap: .7rem; font-size: .86rem;
  line-height: 1.35; break-inside: avoid; align-items: start; }
.card .images { display: grid; gap: 2px; }
.card .images img { width: 4rem; height: auto; }
.card.plain { grid-template-columns: 1fr; }
.card .said { margin-top: .2rem; font-weight: 600; overflow-wrap: anywhere; }
.card.wrong .said { color: var(--bad); }
.card .expected { color: var(--quiet); }
pre { font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #f6f7f8;
  padding: .9rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav { display: none; } pre { font-size: 8pt; }
  details > * { display: block; }
}
"""


class Html(str):
    """Markup that is inserted as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """Returns `value` escaped, or as it is when it is markup."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(blocks: Iterable[object]) -> Html:
    """Returns blocks one after the other."""
    return Html("".join(text(block) for block in blocks))


def element(tag: str, content: object, **attributes: object) -> Html:
    """Returns one element; `class_` stands for the attribute class."""
    written = "".join(
        f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
    return Html(f"<{tag}{written}>{text(content)}</{tag}>")


def paragraph(content: object, class_: str = "") -> Html:
    """Returns a paragraph."""
    return element("p", content, **({"class_": class_} if class_ else {}))


def image(uri: str, description: str, width: float | None = None) -> Html:
    """Returns an image.

    Args:
        uri: with the data inside.
        description: for those who cannot see it.
        width: as shown, in CSS pixels; None: its own.
    """
    size = f' width="{width:.0f}"' if width else ""
    return Html(f'<img src="{html.escape(uri)}" alt="{html.escape(description)}"{size}>')


def figure(content: Html, caption: object) -> Html:
    """Returns a figure whose caption says what to look for."""
    return element("figure", join([content, element("figcaption", caption)]))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Html:
    """Returns a table; an empty header leaves the head out."""
    head = element("tr", join(element("th", cell) for cell in header)) if header else Html()
    body = join(element("tr", join(element("td", cell) for cell in row)) for row in rows)
    attributes = {"class_": class_} if class_ else {}
    return element(
        "table",
        join([element("thead", head) if header else "", element("tbody", body)]),
        **attributes,
    )


def verdict(is_reached: bool) -> Html:
    """Returns a coloured yes or no, readable without colour."""
    return element("span", "✓ yes" if is_reached else "✗ no", class_="yes" if is_reached else "no")


def section(title: str, *blocks: object) -> tuple[str, Html]:
    """Returns (title, content) for `render`."""
    return title, join(blocks)


def render(title: str, lead: object, sections: Sequence[tuple[str, Html]], style: str = "") -> str:
    """Returns the whole page, with links to its sections at the top.

    Args:
        title: of the page.
        lead: what it is about.
        sections: see `section`.
        style: CSS for what only this page has.
    """
    names = [f"s{number}" for number in range(1, len(sections) + 1)]
    links = join(
        element("a", heading, href=f"#{name}")
        for name, (heading, _) in zip(names, sections, strict=True)
    )
    parts = [element("h1", title), paragraph(lead, "lead"), element("nav", links)]
    for name, (heading, content) in zip(names, sections, strict=True):
        parts.append(element("section", join([element("h2", heading), content]), id=name))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body>{element('main', join(parts))}</body></html>\n"
    )
