"""Lines of styled text, cut to a width, and how they get to a terminal.

Rich measures characters and knows the terminal's colours. The lines are put together here, since a
frame has to be drawn in a millisecond or two.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

Line: TypeAlias = list[tuple[str, str]]
"""Texts, each with the name of its style."""

# only colours that can be read on light and on dark: the terminal's own, and no background
STYLES = {
    "": Style(),
    "title": Style(bold=True),
    "muted": Style(dim=True),
    "key": Style(bold=True),
    "generating": Style(color="green"),
    "computing": Style(color="cyan"),
    "waiting": Style(color="yellow"),
    "tool": Style(color="magenta"),
    "retrying": Style(color="yellow", bold=True),
    "idle": Style(dim=True),
    "done": Style(color="blue"),
    "failed": Style(color="red", bold=True),
    "cancelled": Style(color="red", dim=True),
    "running": Style(color="green"),
    "cached": Style(color="cyan"),
    "error": Style(color="red"),
}
ICONS = {
    "generating": "▸",
    "computing": "▪",
    "waiting": "·",
    "tool": "⚒",
    "retrying": "↻",
    "idle": "◦",
    "done": "✓",
    "failed": "✗",
    "cancelled": "−",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_PARTS = "▏▎▍▌▋▊▉█"
_ASCII = {
    **dict(zip("▸▪·⚒↻◦✓✗−", ">#.t~oVX-", strict=True)),
    **dict(zip(_BLOCKS, "__..--##", strict=True)),
    **dict(zip("▏▎▍▌▋▊▉", "   :::#", strict=True)),
    **dict(zip("│├└─╴░▒…⏎×", "||`--..~/x", strict=True)),
}
ASCII = str.maketrans(_ASCII)
"""What stands for characters that a terminal without UTF-8 has not."""


@lru_cache(maxsize=4096)
def _harmless(character: str) -> str:
    if character == "\n":
        return "⏎"
    if character == "\t":
        return " "
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") else character


def harmless(text: str) -> str:
    """The text as one line, without anything that a terminal would obey."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_harmless, text))


def width_of(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def head(text: str, width: int) -> str:
    """The beginning of the text, in exactly so many cells."""
    have = width_of(text)
    if have <= width:
        return text + " " * (width - have)
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


def tail(text: str, width: int) -> str:
    """The end of the text, in exactly so many cells."""
    have = width_of(text)
    if have <= width:
        return text + " " * (width - have)
    if width <= 0:
        return ""
    kept = text[-(width - 1) :] if width > 1 else ""
    while width_of(kept) > width - 1:
        kept = kept[1:]
    return head("…" + kept, width)


def line_width(line: Line) -> int:
    return sum(width_of(text) for text, _ in line)


def cropped(line: Line, width: int) -> Line:
    """The line in at most so many cells."""
    room, kept = width, Line()
    for text, style in line:
        have = width_of(text)
        if have > room:
            if room > 0:
                kept.append((head(text, room), style))
            return kept
        kept.append((text, style))
        room -= have
    return kept


def bar(share: float, width: int) -> str:
    """A bar of eighths."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (_PARTS[part - 1] if part else "")
    return text + "░" * (width - len(text))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks, the highest as a whole one."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return " " * width
    blocks = "".join(
        " " if value <= 0 else _BLOCKS[min(int(value / top * 8), 7)] for value in shown
    )
    return blocks.rjust(width)


def flowed(chips: Iterable[Line], width: int, gap: str = "   ") -> list[Line]:
    """Chips side by side, as many on each line as fit."""
    lines: list[Line] = []
    room = 0
    for chip in chips:
        need = line_width(chip)
        if lines and need + len(gap) <= room:
            lines[-1] += [(gap, ""), *chip]
            room -= need + len(gap)
        else:
            lines.append([(" ", ""), *chip])
            room = width - need - 1
    return [cropped(line, width) for line in lines]


class Frame(NamedTuple):
    """Lines to be drawn. Rich prints it; `ansi` is for who draws by himself."""

    lines: list[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from self._segments(line, options.ascii_only)
            yield Segment.line()

    @staticmethod
    def _segments(line: Line, ascii_only: bool) -> Iterator[Segment]:
        for text, style in line:
            yield Segment(text.translate(ASCII) if ascii_only else text, STYLES[style])


class Painter:
    """Writes lines with the escape codes of a console's terminal."""

    def __init__(self, console: Console) -> None:
        self._ascii = not (console.encoding or "").lower().startswith("utf")
        self._codes: dict[str, tuple[str, str]] = {}
        for name, style in STYLES.items():
            shown = style.without_color if console.no_color else style
            marked = shown.render("\0", color_system=_system(console))
            before, _, after = marked.partition("\0")
            self._codes[name] = (before, after)

    def paint(self, line: Line) -> str:
        codes = self._codes
        text = "".join([codes[style][0] + text + codes[style][1] for text, style in line])
        if self._ascii:
            text = text.translate(ASCII).encode("ascii", "replace").decode()
        return text


def _system(console: Console):  # type: ignore[no-untyped-def]  # rich has no public name for it
    return console._color_system
