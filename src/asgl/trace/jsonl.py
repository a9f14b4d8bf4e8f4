"""Traces on disk: a header, and then a line of JSON for each event.

    {"type":"trace","version":1,"started_at":1764355500.1}
    {"time":0.0021,"type":"StreamEvent","kind":"opened","stream_id":0,"name":"tips"}
    {"time":0.0024,"type":"OpEvent","kind":"submitted","stream_id":0,"number":0,"op":"gen"}

`time` counts seconds from the header. A field that has its default is left out. Lines are given to
the operating system one by one, so that a process that is killed leaves all of them but, perhaps,
the last.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, get_args

from asgl import checks
from asgl.errors import ConfigError, TraceError
from asgl.trace.events import VERSION, Event
from asgl.types import TokenLogprob


class _Field(NamedTuple):
    name: str
    default: Any


def _fields_of(kind: type[Any]) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            field.name,
            field.default_factory() if field.default_factory is not MISSING else field.default,
        )
        for field in fields(kind)
        if field.name not in ("time", "run")
    )


_KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
_FIELDS: Mapping[type[Any], tuple[_Field, ...]] = {
    kind: _fields_of(kind) for kind in _KINDS.values()
}
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=repr)


class JsonlTracer:
    """Writes a trace: each event as a line of JSON (see `asgl.trace.jsonl`).

    A context manager. A process that is killed leaves all lines but, perhaps, the last.

    Args:
        path: The file; one that is there is replaced.
        flush_every: How many lines are given to the operating system at once. More than 1 is a
            little faster, and a process that is killed loses those that were not.
    """

    def __init__(self, path: str | os.PathLike[str], *, flush_every: int = 1) -> None:
        self._flush_every = checks.integer("flush_every", flush_every, 1)
        name = checks.path("path", path)
        try:
            self._file: BinaryIO = open(name, "wb", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise ConfigError(f"no trace can be written to {str(name)!r}: {error}") from error
        self._lines: list[bytes] = []
        self._runs: dict[int, int] = {}
        self._zero: float | None = None
        """The clock's time of the header."""
        header = {"type": "trace", "version": VERSION, "started_at": time.time()}
        self._write(_ENCODER.encode(header))

    def event(self, event: Event, /) -> None:
        """Writes a line."""
        if self._zero is None:
            self._zero = event.time
        line: dict[str, Any] = {
            "time": round(event.time - self._zero, 6),
            "type": type(event).__name__,
        }
        run = self._runs.setdefault(event.run, len(self._runs))
        if run:
            line["run"] = run
        for name, default in _FIELDS[type(event)]:
            value = getattr(event, name)
            if value != default:
                line[name] = value
        self._write(_ENCODER.encode(line))

    def _write(self, line: str) -> None:
        # half a surrogate pair becomes the escape that JSON has for it
        self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
        if len(self._lines) >= self._flush_every:
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = b"".join(self._lines), []
        while lines:
            lines = lines[self._file.write(lines) or 0 :]

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if not self._file.closed:
            self._flush()
            self._file.close()

    def __enter__(self) -> JsonlTracer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Trace:
    """A trace on disk. Iterating over it gives its events; TraceError, which names file and line,
    for what is none.

    Lines that a later asgl of the same version writes are passed over, as are fields of an event
    that are not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checks.path("path", path)
        self.cut_short = False
        """Whether the last line is not whole, because the process was killed as it wrote it. Known
        once all events were read."""
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise TraceError(f"{str(self.path)!r} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file, but a pipe or device"
            raise TraceError(
                f"{str(self.path)!r} is {kind}: give the file that asgl.JsonlTracer has written"
            )
        try:
            with self.path.open("rb") as file:
                first = file.readline(1 << 16)
        except OSError as error:
            raise TraceError(f"{str(self.path)!r} cannot be read: {error.strerror}") from error
        self.started_at = self._check_header(first)
        """The time of day of its beginning, in seconds since 1970."""

    def _check_header(self, line: bytes) -> float:
        header = _object(line)
        if header is None or header.get("type") != "trace":
            said = "it is empty" if not line else f"it begins with {line[:60]!r}"
            raise TraceError(f"{str(self.path)!r} is no trace of asgl's: {said}")
        version = header.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise TraceError(
                f"{str(self.path)!r} is a trace of version {version!r}, and this asgl reads "
                f"versions up to {VERSION}: read it with the asgl that wrote it"
            )
        started = header.get("started_at")
        return float(started) if isinstance(started, int | float) else 0.0

    def __iter__(self) -> Iterator[Event]:
        self.cut_short = False
        with self.path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                entry = _object(line)
                if entry is None:
                    if not line.endswith(b"\n"):
                        self.cut_short = True
                        return
                    raise TraceError(
                        f"line {number} of {str(self.path)!r} is no JSON object: {line[:60]!r}"
                    )
                try:
                    event = decode(entry)
                except (TypeError, ValueError, KeyError) as error:
                    raise TraceError(
                        f"line {number} of {str(self.path)!r} is no event: {error}"
                    ) from error
                if event is not None:
                    yield event


def _object(line: bytes) -> dict[str, Any] | None:
    """The line as a JSON object; None if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decode(entry: Mapping[str, Any]) -> Event | None:
    """The event that a line says; None for a kind that is not known. Raises TypeError, ValueError
    or KeyError for what cannot be one."""
    kind = _KINDS.get(str(entry["type"]))
    if kind is None:
        return None
    given: dict[str, Any] = {
        "time": float(entry.get("time", 0.0)),
        "run": int(entry.get("run", 0)),
    }
    for name, default in _FIELDS[kind]:
        if name in entry:
            given[name] = _value(kind, name, entry[name])
        elif default is MISSING:
            raise ValueError(f"a {kind.__name__} without {name!r}")
    return kind(**given)


def _value(kind: type[Any], name: str, value: Any) -> Any:
    """The value of a field, checked, as the event has it. JSON has lists for tuples."""
    match kind.__annotations__[name]:
        case "int":
            return checks.integer(name, value)
        case "int | None":
            return None if value is None else checks.integer(name, value)
        case "float":
            return float(checks.number(name, value, finite=False))
        case "float | None":
            return None if value is None else float(checks.number(name, value, finite=False))
        case "str | None" if value is None:
            return None
        case "tuple[str, ...]":
            return tuple(map(_text, value))
        case "tuple[tuple[int, int], ...]":
            return tuple((int(request), int(tokens)) for request, tokens in value)
        case "tuple[TokenLogprob, ...]":
            return tuple(
                TokenLogprob(int(token), _text(text), float(logprob))
                for token, text, logprob, *_ in value
            )
        case "Mapping[str, Any]":
            if not isinstance(value, dict):
                raise TypeError(f"{name!r} must be an object, not {value!r}")
            return value
        case _:
            return _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, not {value!r}")
    return value


def read(path: str | os.PathLike[str]) -> list[Event]:
    """All events of a trace. TraceError if the file is none."""
    return list(Trace(Path(path)))
