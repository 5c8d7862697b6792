"""Progress of long work on texts: a bar on a terminal, a widget in a notebook, nothing in a file of output."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

#: Seconds that work may take before its progress is shown.
SECONDS_BEFORE = 2.0


def progress(iterable: Any = None, **settings: Any) -> Any:
    """A bar of tqdm that is gone when it is full.

    As text it is drawn on terminals alone: the output of a notebook, or a log, would keep a line for every state of it.
    A notebook has widgets for this where ipywidgets is installed.

    Args:
        iterable: what is counted, or None for a bar that is updated.
        settings: of tqdm: ``total``, ``desc``, ``unit`` and the like.

    Example:
        >>> sum(progress(range(4)))
        6
    """
    settings = {"delay": SECONDS_BEFORE, "leave": False, **settings}
    if is_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(iterable, **settings)
    from tqdm import tqdm

    return tqdm(iterable, disable=None, **settings)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    found = None if shell is None else shell.get_ipython()
    return found is not None and "IPKernelApp" in found.config
