"""Linear algebra on one thread: the solvers' steps are too small to share.

With two threads on a machine where another process works, a step of .3 ms takes 20 ms, and a solve of .02 s takes 4 s.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_inside = 0
_limit: Any = None


@cache
def _controller() -> Any:
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """One BLAS thread inside the context, where threadpoolctl is installed.

    The limit is the process's: of several threads inside at once the first sets it and the last sets it back.
    """
    global _inside, _limit
    controller = _controller()
    with _lock:
        # Asking takes 2 us, setting and setting back 13.
        if _inside == 0 and controller is not None and any(x.get_num_threads() > 1 for x in controller.lib_controllers):
            _limit = controller.limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _limit is not None:
                _limit.restore_original_limits()
                _limit = None
