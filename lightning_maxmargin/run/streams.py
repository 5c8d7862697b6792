"""Output that nobody reads any more: dropped, so that ``maxmargin ... | head`` ends no command."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Pipe(io.FileIO):
    """A pipe whose reader may go: what is written afterwards is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


@contextmanager
def readers_may_go() -> Iterator[None]:
    """While it lasts, no reader that goes away raises BrokenPipeError: the command does all else that it has to."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_quiet, before)
    try:
        yield
    finally:
        for stream in {sys.stdout, sys.stderr} - set(before):
            stream.flush()
        sys.stdout, sys.stderr = before


def _quiet(stream: TextIO | None) -> Any:
    """The stream, by a pipe of ours where it is one; not one that has no descriptor, as those of a notebook."""
    try:
        number = stream.fileno() if stream is not None else -1
        mode = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):
        return stream
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Pipe(number, "wb", closefd=False)), encoding=stream.encoding, errors=stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip
