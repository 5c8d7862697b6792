"""Files and folders that are whole or not there: the one way this package writes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from uuid import uuid4

from lightning_maxmargin.errors import InputError

#: How an error of the system ends in the words of a library in Rust.
RUST_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def whole(path: Path, on_disk: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to: renamed to it at the end, and gone where the writing failed.

    Writers that race leave the file of one of them; a reader never meets half of one. With ``on_disk`` it is there
    after a power failure as well. An error of the system names ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole(target) as part:
        ...     _ = part.write_text("all of it")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('all of it', 1)
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield part
        if on_disk:
            synchronise(part)
        os.replace(part, path)
        if on_disk:
            synchronise(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full names none
        raise
    finally:
        part.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises InputError where the output file is there already, or its folder cannot be made.

    The folder is not left behind: :func:`write_output` makes it, once there is something to write.
    """
    if path.exists():
        raise InputError(f"output: {path} exists and is never overwritten; name another file with --output")
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {path.parent} cannot be made ({error.strerror}); name another file") from error
    finally:
        remove_empty(missing)


def remove_empty(folders: Iterable[Path]) -> None:
    """Those of these directories that are there and hold nothing, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def synchronise(path: Path) -> None:
    """Returns when this file, or the names in this folder, are there after a power failure as well."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A path beside ``path`` for a folder that is yet to be made: renamed to it at the end, and gone where that failed.

    Where ``path`` is a folder that holds something, the renaming fails and it stays; with ``replace`` it goes.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model"
        >>> with whole_folder(target) as part:
        ...     part.mkdir()
        ...     write_text(part / "a.txt", "all of it")
        >>> [found.name for found in target.iterdir()]
        ['a.txt']
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    old = part.with_suffix(".old")
    try:
        yield part
        if replace and path.is_dir():
            os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            if old.is_dir():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def link_whole(source: Path, path: Path) -> None:
    """A second name for what a file holds now, in place of what had that name; gone where that is not possible.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_text(folder / "a.txt", "first")
        >>> link_whole(folder / "a.txt", folder / "b.txt")
        >>> write_text(folder / "a.txt", "second")
        >>> (folder / "b.txt").read_text()
        'first'
    """
    try:
        with whole(path) as part:
            os.link(source, part)
    except OSError:  # there is no such file, or the file system knows no links
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict", on_disk: bool = False) -> None:
    """All of the text in UTF-8, or nothing; ``errors`` as of :meth:`str.encode`, ``on_disk`` as of :func:`whole`."""
    with whole(path, on_disk) as part:
        part.write_bytes(text.encode("utf-8", errors))


def write_output(path: Path, text: str) -> None:
    """The file of an ``--output``, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


class ToldFile:
    """A file to write to that keeps the error of the system, for a writer that hides it.

    torch.save says of a disk that is full what its own code noticed of it, in at least three ways.

    Args:
        path: of the file.

    Example:
        >>> import tempfile
        >>> with ToldFile(Path(tempfile.mkdtemp()) / "a") as file:
        ...     file.write(b"abc")
        3
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "wb")
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of it."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._error = error
            raise
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def __enter__(self) -> ToldFile:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._file.close()
        if self._error is not None and error is not self._error:
            raise self._error


@contextmanager
def rust_errors() -> Iterator[None]:
    """Errors of the system that a library in Rust (safetensors, tokenizers) raises, as Python's are.

    Raises:
        OSError: what it says ends in a number of the system's.

    Example:
        >>> from safetensors.numpy import save_file
        >>> with rust_errors():
        ...     save_file({}, "/no/such/folder/a")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if found := RUST_ERROR.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
