"""Calls of a service that may hang, made on a thread of their own: who waits for one says for how long."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

#: Seconds: with what a run does beside waiting, at its end or its start, it stays below ten.
PATIENCE = 8.0
#: Each with its result, and the seconds that it may take.
Calls: TypeAlias = "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any], float]]"


class Patience:
    """Makes calls one after another; gives the service up once one has failed or taken too long.

    Args:
        seconds: that one call may take.

    Example:
        >>> calls = Patience()
        >>> calls.later(lambda: None)
        >>> calls.now(lambda: 1 + 1)
        2
    """

    def __init__(self, seconds: float = PATIENCE) -> None:
        self.seconds = seconds
        self._calls: Calls = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = 0
        #: Of the call that is under way: when it is too late, and how long it may take.
        self._limit: tuple[float, float] | None = None
        self._failed: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned gets a thread of its own, as a forked one does.
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def is_here(self) -> bool:
        """Whether the thread that makes the calls is the one that asks."""
        return self._process == os.getpid() and threading.current_thread() is self._thread

    def later(self, call: Callable[[], Any], seconds: float | None = None) -> None:
        """Makes the call when those before are done, while the caller goes on.

        Args:
            call: made on the thread.
            seconds: that it may take; None is the usual.

        Raises:
            TimeoutError: one before has not come back in time.
            BaseException: what one before has raised; this and later ones are not made.
        """
        limit = self._limit
        if limit is not None and time.monotonic() > limit[0]:
            raise TimeoutError(f"no answer in {limit[1]:g} s")
        self.begin(call, seconds)

    def now(self, call: Callable[[], Any], seconds: float | None = None) -> Any:
        """The call's result.

        Args:
            call: made when those before are done.
            seconds: to wait for all of them; None is the usual.

        Raises:
            TimeoutError: it has not come back in time.
            BaseException: what it or one before has raised.
        """
        return self.begin(call).result(self.seconds if seconds is None else seconds)

    def begin(self, call: Callable[[], Any], seconds: float | None = None) -> Future[Any]:
        """What the call will give; after so many seconds no further call is made ``later``.

        Raises:
            BaseException: what one before has raised.
        """
        if self._failed is not None:
            raise self._failed
        if self._process != os.getpid():
            # A thread does not follow its process into a fork.
            self._process, self._calls, self._limit = os.getpid(), queue.SimpleQueue(), None
            self._thread = threading.Thread(target=self._work, args=(self._calls,), daemon=True)
            self._thread.start()
        result: Future[Any] = Future()
        self._calls.put((call, result, self.seconds if seconds is None else seconds))
        return result

    def _work(self, calls: Calls) -> None:
        while True:
            call, result, seconds = calls.get()
            self._limit = time.monotonic() + seconds, seconds
            try:
                if self._failed is not None:
                    raise self._failed
                result.set_result(call())
            except BaseException as error:
                self._failed = error
                result.set_exception(error)
            self._limit = None
