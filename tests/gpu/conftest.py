"""What only a GPU can show: run by make gpu, which names the device in ASGL_TEST_GPU."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("ASGL_TEST_GPU") else ["*"]
