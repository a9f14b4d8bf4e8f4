"""Compiles kernels for devices that are not there: a process of its own (make test-compile), where
Triton has a fake driver."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("ASGL_LANE") == "compile" else ["*"]
