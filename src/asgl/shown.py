"""HTML of streams, handles and views for notebooks: text and tables, and no script.

All text goes in escaped. Colours have an alpha, so that they can be read on light and on dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

BACKGROUNDS: Mapping[str, str] = {
    "given": "transparent",
    "sampled": "rgba(46, 160, 67, .25)",
    "constrained": "rgba(137, 87, 229, .25)",
    "forced": "rgba(219, 97, 162, .3)",
    "selected": "rgba(210, 153, 34, .3)",
    "joined": "rgba(110, 118, 129, .25)",
}
"""By where text comes from."""

_PLAIN = "white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace;"


class Piece(NamedTuple):
    """Text that came one way."""

    text: str
    how: str = "given"
    """A name in `BACKGROUNDS`."""
    told: str = ""
    """What is said of it when it is pointed at."""


def text_html(pieces: Iterable[Piece]) -> str:
    """The text, coloured by where it comes from."""
    spans: list[str] = []
    for piece in pieces:
        color = BACKGROUNDS.get(piece.how, "transparent")
        title = f' title="{escape(piece.told)}"' if piece.told else ""
        text = escape(piece.text.encode("utf-8", "replace").decode())
        spans.append(f'<span style="background: {color}"{title}>{text}</span>')
    return f'<div style="{_PLAIN}">{"".join(spans)}</div>'


def legend_html(hows: Iterable[str]) -> str:
    """What the colours mean."""
    shown = [
        f'<span style="background: {BACKGROUNDS[how]}; padding: 0 .3em">{escape(how)}</span>'
        for how in hows
        if how != "given" and how in BACKGROUNDS
    ]
    return f"<small>{' '.join(shown)}</small>" if shown else ""


def table_html(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(
        f'<tr><th scope="row" style="text-align: left">{escape(name)}</th>'
        f'<td style="text-align: left; white-space: pre-wrap">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>" if cells else ""


def card_html(title: str, *parts: str) -> str:
    """Parts below a title."""
    return (
        '<div style="border-left: 3px solid rgba(110, 118, 129, .5); padding-left: .6em">'
        f"<div><b>{escape(title)}</b></div>{''.join(parts)}</div>"
    )
