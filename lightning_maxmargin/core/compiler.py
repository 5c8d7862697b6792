"""Compiling this package's C++ on the machine where it runs, once: the library is kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from platformdirs import user_cache_dir

from lightning_maxmargin.atomic import whole

# No fast-math: it would let infinities and what is no number pass for numbers.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-w")
#: Seconds that a compiler may take; it takes three.
PATIENCE = 120.0


class CompileError(RuntimeError):
    """There is no compiler here, or it failed: one line that says which."""


@functools.cache
def library(source: Path, *headers: Path) -> ctypes.CDLL:
    """The shared library of a C++ file, compiled by ``$CXX``, g++ or clang++ unless an earlier run left it.

    Args:
        source: the file.
        headers: what it includes of this package.

    Raises:
        CompileError: there is no compiler, or it failed.
    """
    compiler = next((x for x in (os.environ.get("CXX"), "g++", "clang++") if x and shutil.which(x)), None)
    if compiler is None:
        raise CompileError("no C++ compiler (g++, clang++ or $CXX) was found")
    key = hashlib.sha256("\0".join([compiler, *FLAGS, _processor()]).encode())
    for path in (source, *headers):
        key.update(path.read_bytes())
    name = f"{source.stem}-{key.hexdigest()[:32]}.so"
    try:
        kept = Path(user_cache_dir("lightning_maxmargin")) / "compiled" / name
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not kept.exists():
            _compile(compiler, source, kept)
    except OSError:  # nothing can be written there
        kept = Path(tempfile.mkdtemp()) / name
        _compile(compiler, source, kept)
    try:
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise CompileError(f"{kept} cannot be loaded: {error}") from None


def _compile(compiler: str, source: Path, to: Path) -> None:
    with whole(to) as part:
        try:
            done = subprocess.run(
                [compiler, *FLAGS, str(source), "-o", str(part)], capture_output=True, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CompileError(f"{compiler} took more than {PATIENCE:g} s") from None
        if done.returncode:
            raise CompileError(f"{compiler} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")


def _processor() -> str:
    """What decides which instructions ``native`` means: a cache may be shared by several machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kinds = {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")}
    return "\n".join([platform.platform(), platform.processor(), *sorted(kinds)])
