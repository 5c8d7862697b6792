"""What a user's code gets for a W&B run that is not open: one that is waited for, or one that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class NoRun:
    """Takes every call and does nothing, as a run that was given up: ``logger.experiment.log(...)`` ends no training.

    Example:
        >>> bool(NO_RUN.config.update({"a": 1}))
        False
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # of Python's own protocols
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return False


NO_RUN: Any = NoRun()


class RunToCome:
    """Stands for a run that is being opened: Lightning asks every logger for its run before it trains, and needs none.

    Args:
        opened: waits for the run.

    Example:
        >>> RunToCome(lambda: "the run").upper()
        'THE RUN'
    """

    def __init__(self, opened: Callable[[], Any]) -> None:
        object.__setattr__(self, "_opened", opened)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._opened(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._opened(), name, value)
