"""Processes that compute something together: what one of them fails at is raised by all, and names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import distributed as dist

from lightning_maxmargin.errors import InputError, NonFiniteError

T = TypeVar("T")
#: A failure as (class, message): it travels to the other processes, where a traceback would not.
Failure = tuple[type[Exception], str]
#: What was made, or what failed.
Outcome = tuple[Failure | None, Any]
#: ``ask(*words)``: what every process answers to these words, in the order of the ranks.
Ask = Callable[..., list[Any]]
# What a reader of data raises where a file ends early or is gone.
BAD_DATA = (InputError, OSError, EOFError)


def as_failure(error: Exception) -> Failure:
    """An error of this package as it is, anything else with its class named."""
    for kind in (InputError, NonFiniteError):
        if isinstance(error, kind):
            return kind, str(error)
    return InputError if isinstance(error, BAD_DATA) else RuntimeError, f"{type(error).__name__}: {error}"


class Ranks:
    """The processes of a group, all of which call the same methods in the same order.

    Objects are pickled, so any backend will do that moves them; a ``gloo`` group of its own
    (``torch.distributed.new_group(backend="gloo")``) keeps them apart from the gradients of a training thread.

    Args:
        group: of ``torch.distributed``; None is the default group, or this process alone where there is none.

    Raises:
        InputError: this process is not in the group.

    Example:
        >>> ranks = Ranks()
        >>> ranks.rank, ranks.size, ranks.gather(lambda: "mine")
        (0, 1, ['mine'])
    """

    def __init__(self, group: Any = None) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if there else 0
        self.size = dist.get_world_size(group) if there else 1
        if self.rank < 0:
            raise InputError("this process is not in the group: call only where it is")

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What every process makes, on all of them, in the order of the ranks.

        Raises: InputError where one failed by bad input or a reader's error, otherwise RuntimeError; on all processes.
        """
        if self.size == 1:
            return [make()]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, _attempt(make), group=self.group)
        return _made(found)

    def collect(self, make: Callable[[], T]) -> list[T]:
        """What every process makes, on the first one alone; the others get an empty list.

        Raises: as :meth:`gather`, on the first process alone, which has to tell the others.
        """
        if self.size == 1:
            return [make()]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(_attempt(make), found, dst=self._first(), group=self.group)
        return [] if found is None else _made(found)

    def led(self, lead: Callable[[Ask], T], serve: Callable[..., Any]) -> T:
        """``lead(ask)`` as the first process computes it, on all of them.

        The first process leads: its ``ask(*words)`` has every process, itself as well, answer by ``serve(*words)``.
        So nothing that rounds differently on another machine can make two processes part ways.

        Raises: as :meth:`gather`.
        """
        if self.size == 1:
            return lead(lambda *words: [serve(*words)])
        if self.rank > 0:
            return self._follow(serve)

        def ask(*words: Any) -> list[Any]:
            self._broadcast((False, words))
            return self.collect(partial(serve, *words))

        outcome = _attempt(lambda: lead(ask))
        self._broadcast((True, outcome))
        return _value(outcome)

    def _follow(self, serve: Callable[..., Any]) -> Any:
        while True:
            done, words = self._broadcast(None)
            if done:
                return _value(words)
            self.collect(partial(serve, *words))

    def _broadcast(self, message: Any) -> Any:
        """The first process's message."""
        box = [message]
        dist.broadcast_object_list(box, src=self._first(), group=self.group)
        return box[0]

    def _first(self) -> int:
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)


class Alone(Ranks):
    """This process by itself, whatever group there is.

    Example:
        >>> Alone().size
        1
    """

    def __init__(self) -> None:
        self.group, self.rank, self.size = None, 0, 1


def _attempt(make: Callable[[], Any]) -> Outcome:
    # Not raised here: the other processes wait for an answer, and would wait half an hour.
    try:
        return None, make()
    except Exception as error:
        return as_failure(error), None


def _made(found: Sequence[Outcome]) -> list[Any]:
    for rank, (failure, _) in enumerate(found):
        if failure is not None:
            kind, message = failure
            raise kind(f"rank {rank}: {message}")
    return [value for _, value in found]


def _value(outcome: Outcome) -> Any:
    failure, value = outcome
    if failure is not None:
        kind, message = failure
        raise kind(message)
    return value
