"""`python -m asgl` is the command `asgl`."""

from __future__ import annotations

from asgl.cli import main

if __name__ == "__main__":
    main()
