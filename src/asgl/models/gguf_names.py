"""Names of GGUF files: part 2 of 3 of a model is NAME-00002-of-00003.gguf."""

from __future__ import annotations

import re
from pathlib import Path

MAX_PARTS = 10_000
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)


def part_paths(path: Path) -> list[Path]:
    """The files of the model that `path` is a part of, by its name; `path` alone if its name is not
    that of a part."""
    name = _PART.fullmatch(path.name)
    if name is None or not 1 <= int(name["count"]) <= MAX_PARTS:
        return [path]
    count = int(name["count"])
    return [
        path.with_name(f"{name['stem']}-{part:05}-of-{count:05}{name['suffix']}")
        for part in range(1, count + 1)
    ]
