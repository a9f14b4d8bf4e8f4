"""Steps of the CUDA runner with the Triton back end in its interpreter: part of make
test-interpret."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]
