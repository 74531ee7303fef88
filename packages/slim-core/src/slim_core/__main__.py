"""``python -m slim_core``: the ``slim`` command where the console script is not on the path."""

from __future__ import annotations

import sys

from slim_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
