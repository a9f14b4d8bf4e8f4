"""Where the benchmarks keep what is not committed, and what is."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
DOCS = REPOSITORY / "docs"


def cache() -> Path:
    """`ASGL_HOME`, or the user's cache directory for asgl: what asgl itself uses."""
    return Path(os.environ.get("ASGL_HOME") or platformdirs.user_cache_dir("asgl"))


def peers() -> Path:
    """The peers' environments and models."""
    return cache() / "peers"


def data() -> Path:
    """Data sets, unpacked from wheels."""
    return cache() / "bench-data"
