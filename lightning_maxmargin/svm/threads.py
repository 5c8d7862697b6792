"""Linear algebra on one thread: the solvers' steps are too small to share.

With two threads on a machine where another process works, a step of .3 ms takes 20 ms, and a solve of .02 s takes 4 s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


@cache
def _controller() -> Any:
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    except ImportError:
        return None
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """One BLAS thread inside the context, where threadpoolctl is installed."""
    controller = _controller()
    return nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")
