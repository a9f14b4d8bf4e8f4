"""The live view in a notebook: the output of a cell, which is drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import Any

from asgl.viewer.canvas import Line

COLUMNS, ROWS = 110, 24
_COLORS = {
    "generating": "#2da44e",
    "computing": "#0a8bc2",
    "waiting": "#b07d00",
    "tool": "#a371f7",
    "retrying": "#b07d00",
    "done": "#3b82d6",
    "failed": "#e5534b",
    "cancelled": "#b35c55",
    "running": "#2da44e",
    "cached": "#0a8bc2",
    "error": "#e5534b",
}
"""Of a brightness between that of light and that of dark pages."""
_BOLD = ("title", "key", "failed", "retrying")
_DIM = ("muted", "idle")


def frame_html(lines: Sequence[Line]) -> str:
    """The lines of a frame."""
    return (
        '<pre style="line-height: 1.2; overflow-x: auto; font-family: monospace">'
        + "\n".join("".join(_span(text, style) for text, style in line) for line in lines)
        + "</pre>"
    )


def _span(text: str, style: str) -> str:
    css = ""
    if style in _COLORS:
        css += f"color: {_COLORS[style]};"
    if style in _BOLD:
        css += "font-weight: bold;"
    if style in _DIM:
        css += "opacity: .65;"
    shown = escape(text.encode("utf-8", "replace").decode())
    return f'<span style="{css}">{shown}</span>' if css else shown


class Cell:
    """The output of the cell that runs now."""

    def __init__(self) -> None:
        # by name: IPython is there when a notebook is, and is no dependency
        display: Any = import_module("IPython.display")
        self._html: Any = display.HTML
        self._handle: Any = display.display(self._html(""), display_id=True)

    def draw(self, lines: Sequence[Line]) -> None:
        """Draws a frame in place of the one before."""
        self._handle.update(self._html(frame_html(lines)))
