"""``python -m lightning_maxmargin`` is ``maxmargin``."""

import sys

from lightning_maxmargin.cli import main

if __name__ == "__main__":
    sys.exit(main())
