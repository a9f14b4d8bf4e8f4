"""Models and vocabularies that are fetched: `make test-models`."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("ASGL_LANE") == "models" else ["*"]
