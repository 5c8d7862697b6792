"""Variables of the environment by which one process of a run tells the others what it has decided."""

from __future__ import annotations

#: Where the processes that a launcher starts from the same command line write, and which process has chosen it.
RUN_DIR_VARIABLE, OWNER_VARIABLE = "MAXMARGIN_RUN_DIR", "MAXMARGIN_RUN_OWNER"
