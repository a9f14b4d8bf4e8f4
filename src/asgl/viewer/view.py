"""What a run looks like in a terminal: a header, the tree, and the keys. From a model to lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from asgl.trace.model import Model
from asgl.trace.nodes import RATE_SECONDS, STATES, Op, Run, State, Stream
from asgl.viewer.canvas import (
    ICONS,
    Frame,
    Line,
    bar,
    cropped,
    flowed,
    harmless,
    head,
    line_width,
    sparkline,
    tail,
)
from asgl.viewer.rows import Choice, Row, rows_of

HELP = (
    ("p", "pause the view: the program goes on"),
    ("f", "fold what is over, or show all"),
    ("o", "show the ops of each stream"),
    ("/", "show only streams with this in name or state"),
    ("↑ ↓ PgUp PgDn", "scroll, Home to follow again"),
    ("r", "the next Runtime, if there are several"),
    ("q", "leave the view: the program goes on"),
    ("Ctrl-C", "stop the program"),
)
_SPARK = 24


class View:
    """A model, and what its user wants to see of it.

    keys: whether there are keys to tell of.
    """

    def __init__(self, model: Model, *, keys: bool = False) -> None:
        self.model = model
        self.choice = Choice()
        self.keys = keys
        self.paused = False
        self.help = False
        self.typing: str | None = None
        """The filter, while it is typed."""
        self.selected: int | None = None
        """The key of the run to show; None for the one that was opened last."""

    @property
    def run(self) -> Run | None:
        run = self.model.runs.get(self.selected) if self.selected is not None else None
        return run or self.model.run

    def frame(self, width: int, height: int, now: float) -> Frame:
        """What to draw in so many columns and rows. now: the clock's time."""
        run = self.run
        if run is None or width < 8 or height < 1:
            return Frame([])
        lines = header(run, self.model, width, now)
        footer = self._footer(width)
        if self.help:
            lines += _help(width)
        room = height - len(lines) - len(footer)
        if room < 1:
            return Frame([*lines, *footer][:height])
        layout = Layout(width)
        lines += [layout.line(row, now) for row in rows_of(run, self.choice, room)]
        return Frame([*lines, *footer])

    def _footer(self, width: int) -> list[Line]:
        if self.typing is not None:
            return [cropped([(" show only: ", "key"), (harmless(self.typing) + "█", "")], width)]
        line: Line = []
        if self.paused:
            line += [(" paused", "waiting"), (" (p goes on) ", "muted")]
        if self.choice.filter:
            line += [(" only ", "muted"), (repr(self.choice.filter), "key")]
            line.append((" (/ changes)", "muted"))
        if self.keys:
            fold = "unfold" if self.choice.folded else "fold"
            for key, what in (
                ("p", "pause"),
                ("f", fold),
                ("o", "ops"),
                ("/", "filter"),
                ("q", "quit view"),
                ("?", "help"),
            ):
                line += [(f" {key}", "key"), (f" {what} ", "muted")]
        return [cropped(line, width)] if line else []

    # --- keys

    def press(self, key: str) -> bool:
        """Does what a key means; whether the view is to be left."""
        if self.typing is not None:
            self._type(key)
            return False
        choice = self.choice
        match key:
            case "q":
                return True
            case "p" | " ":
                self.paused = not self.paused
            case "f":
                choice.folded, choice.offset = not choice.folded, 0
            case "o":
                choice.ops = not choice.ops
            case "?" | "h":
                self.help = not self.help
            case "/":
                self.typing = choice.filter
            case "escape":
                choice.filter, choice.offset, self.help = "", 0, False
            case "r":
                keys = list(self.model.runs)
                if keys:
                    at = keys.index(self.run.key) if self.run is not None else -1
                    self.selected = keys[(at + 1) % len(keys)]
            case "up" | "k":
                choice.offset = max(choice.offset - 1, 0)
            case "down" | "j":
                choice.offset += 1
            case "pageup":
                choice.offset = max(choice.offset - 10, 0)
            case "pagedown":
                choice.offset += 10
            case "home" | "F":
                choice.offset = 0
            case _:
                pass
        return False

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key == "enter":
            self.choice.filter, self.choice.offset, self.typing = self.typing.strip(), 0, None
        elif key == "escape":
            self.typing = None
        elif key == "backspace":
            self.typing = self.typing[:-1]
        elif len(key) == 1 and key.isprintable():
            self.typing += key


# --- the header -----------------------------------------------------------------------------------


def header(run: Run, model: Model, width: int, now: float) -> list[Line]:
    """How the engine is doing: two lines at 120 columns, four at 60."""
    end = now if run.closed_at is None else run.closed_at
    title: Line = [("asgl ", "title"), (harmless(run.model) or "a run", "")]
    if run.device:
        title.append((f" on {harmless(run.device)}", "muted"))
    if len(model.runs) > 1:
        place = list(model.runs).index(run.key) + 1
        title.append((f" (Runtime {place} of {len(model.runs)})", "muted"))
    title.append((f"  {seconds(max(end - run.opened_at, 0.0))}", ""))
    states: list[Line] = [[part] for part in counted(run.counts)]
    # states come and go: on a line of their own, so that the rest stays where it is
    lines = flowed([title, *_engine_chips(run, now)], width) + flowed(states, width)
    lines.append([("─" * width, "muted")])
    return lines


def _engine_chips(run: Run, now: float) -> Iterator[Line]:
    step = run.last_step
    if run.closed_at is None:
        last = int(now / RATE_SECONDS)
        values = [run.rates.get(slot, 0) for slot in range(last - _SPARK, last)]
        yield [(sparkline(values, _SPARK), "generating"), (f" {run.rate():.0f} tok/s", "title")]
    else:
        spent = run.closed_at - run.opened_at
        rate = run.generated / spent if spent > 0.01 else 0.0
        yield [(f"{run.generated} tokens", "title"), (f", {rate:.0f}/s", "muted")]
    if step is not None:
        yield [("batch ", "muted"), (str(len(step.rows)), "title")]
        yield [("waiting ", "muted"), (str(step.waiting), "waiting" if step.waiting else "")]
    if run.capacity and step is not None:
        running = max(run.capacity - step.free - step.evictable, 0)
        yield _kv_bar(running, step.evictable, run.capacity)
    if run.hit_rate is not None:
        yield [("hits ", "muted"), (f"{run.hit_rate:.0%}", "cached")]
    yield [("evicted ", "muted"), (count(run.evicted), "")]
    yield [("retracted ", "muted"), (str(run.retractions), "waiting" if run.retractions else "")]


def _kv_bar(running: int, cached: int, capacity: int, width: int = 20) -> Line:
    first = min(round(running / capacity * width) or (1 if running else 0), width)
    second = min(round(cached / capacity * width) or (1 if cached else 0), width - first)
    return [
        ("KV ", "muted"),
        ("█" * first, "running"),
        ("▒" * second, "cached"),
        ("░" * (width - first - second), "muted"),
        (f" {running / capacity:.0%}", "running"),
        (" run ", "muted"),
        (f"{cached / capacity:.0%}", "cached"),
        (f" cached of {count(capacity)}", "muted"),
    ]


def counted(states: Counter[State]) -> Iterator[tuple[str, str]]:
    """How many streams there are in each state; first how many have failed."""
    for state in ("failed", *STATES[:-1]):
        if number := states[state]:
            yield (f"{ICONS[state]} {number} {state}", state)


def _help(width: int) -> list[Line]:
    lines: list[Line] = [
        cropped([(f"  {key:<15}", "key"), (what, "")], width) for key, what in HELP
    ]
    return [*lines, [("─" * width, "muted")]]


# --- rows -----------------------------------------------------------------------------------------


class Layout:
    """The columns of the tree at a width.

    narrow    name | text | tokens | seconds
    wide      name | state | text | tokens | cached | tokens/s | seconds
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.name = max(12, min(36, width * 3 // 10))
        self.state = 11 if width >= 78 else 0
        self.tokens = 6 if width >= 40 else 0
        self.cached = 7 if width >= 90 else 0
        self.rate = 8 if width >= 100 else 0
        self.seconds = 7 if width >= 50 else 0
        used = self.name + self.state + self.tokens + self.cached + self.rate + self.seconds
        self.text = max(width - used - 1, 0)

    def line(self, row: Row, now: float) -> Line:
        if row.folded is not None:
            more = sum(row.folded.values())
            line: Line = [(row.prefix, "muted"), (f"… {more} more:", "muted")]
            for part in counted(row.folded):
                line += [(" ", ""), part]
            return cropped(line, self.width)
        assert row.stream is not None
        if row.op is not None:
            return self._op(row.prefix, row.op, now)
        return self._stream(row.prefix, row.stream, now)

    def _stream(self, prefix: str, stream: Stream, now: float) -> Line:
        state, op = stream.state, stream.op
        request = op.request if op is not None else None
        title = harmless(stream.title)
        line: Line = [
            (prefix, "muted"),
            (ICONS[state] + " ", state),
            (head(title, self.name - line_width([(prefix, "")]) - 3) + " ", ""),
        ]
        if self.state:
            line.append((head(state, self.state), state))
        text, style = _said(stream)
        cut = head if style == "error" else tail  # an error says what it is at its beginning
        line.append((cut(harmless(text), self.text), style))
        rate = request.rate(now) if request is not None and state == "generating" else 0.0
        line += self._numbers(stream.generated, stream.cached_share, rate, stream.seconds(now))
        return cropped(line, self.width)

    def _op(self, prefix: str, op: Op, now: float) -> Line:
        running = op.running and op.request is not None
        state = op.request.state if running and op.request is not None else op.state
        request = op.request
        line: Line = [
            (prefix, "muted"),
            (ICONS[state] + " ", state),
            (head(harmless(op.title), self.name - line_width([(prefix, "")]) - 3) + " ", "muted"),
        ]
        if self.state:
            line.append((head(state, self.state), state))
        if op.state == "failed":
            line.append((head(harmless(op.reason), self.text), "error"))
        else:
            line.append((tail(harmless(op.shown.lstrip()), self.text), "muted"))
        share = None
        if request is not None and request.admitted_at is not None and request.prompt_tokens:
            share = request.cached_tokens / request.prompt_tokens
        tokens = request.generated if request is not None else 0
        line += self._numbers(tokens, share, request.rate(now) if request else 0.0, op.seconds(now))
        return cropped(line, self.width)

    def _numbers(self, tokens: int, share: float | None, rate: float, spent: float) -> Line:
        line: Line = []
        if self.tokens:
            line.append((count(tokens).rjust(self.tokens), ""))
        if self.cached:
            shown = " " * self.cached if share is None else "  " + bar(share, self.cached - 2)
            line.append((shown, "cached"))
        if self.rate:
            line.append(((f"{rate:.1f}/s" if rate else "").rjust(self.rate), "muted"))
        if self.seconds:
            line.append((seconds(spent).rjust(self.seconds), "muted"))
        return line


def _said(stream: Stream) -> tuple[str, str]:
    """What to show of a stream, in one line: why it failed, what it waits for, or its text."""
    op = stream.op
    if stream.state == "failed":
        return stream.reason or (op.reason if op is not None else ""), "error"
    if stream.state == "tool" and op is not None:
        calls = [call for call in op.tools if call.state == "tool"] or op.tools
        return ", ".join(f"{call.tool}({_arguments(call.arguments)})" for call in calls), "tool"
    if stream.state == "waiting":
        if stream.waits:
            other, what, _ = stream.waits[-1]
            return f"for {what} of stream {other}".replace("for  of", "for"), "muted"
        if not stream.open_ops and stream.active_below:
            return f"for {stream.active_below} below it", "muted"
    if op is None:
        return "", ""
    if stream.state == "retrying" and op.rejected:
        return f"not valid: {op.rejected[-1].reason}", "waiting"
    return op.shown.lstrip(), "" if stream.state in ("generating", "computing") else "muted"


def _arguments(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


# --- numbers --------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """A duration in at most six characters."""
    if value < 100:
        return f"{value:.1f}s"
    if value < 6000:
        return f"{int(value) // 60}m{int(value) % 60:02}s"
    return f"{int(value) // 3600}h{int(value) // 60 % 60:02}m"


def count(value: int) -> str:
    """A number in at most five characters."""
    if value < 10_000:
        return str(value)
    if value < 1_000_000:
        return f"{value / 1000:.0f}k"
    return f"{value / 1e6:.1f}M"
