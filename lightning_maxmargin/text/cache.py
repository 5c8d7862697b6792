"""Vectors of sentences on disk: computed once, checked whenever they are read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_maxmargin.atomic import rust_errors, whole
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.encoders import Encoder

FEATURE_VERSION = 1  # raised whenever the same sentence would get another vector


def cached_vectors(encoder: Encoder, sentences: Sequence[str], cache_dir: str | Path | None = None) -> Tensor:
    """``encoder.encode(sentences)``, read from a file where the same was encoded before.

    The file is named after a hash of the encoder's identity, the feature version and the sentences. It is written to
    a temporary file and renamed, so processes that race write the same file one after the other; it carries a checksum
    of the numbers, and a file that fails it is computed again. Where nothing can be written, a warning says so.

    Args:
        encoder: makes the vectors.
        sentences: of any length.
        cache_dir: the folder; else the environment variable ``MAXMARGIN_CACHE``, else the user's cache folder.

    Returns:
        (n, d), as the encoder gives it.

    Raises:
        InputError: as the encoder does.
    """
    path = cache_folder(cache_dir) / f"sentences-{_key(encoder, sentences)}.safetensors"
    vectors = _read(path, len(sentences))
    if vectors is None:
        vectors = _checked(encoder.encode(sentences), encoder, len(sentences))
        try:
            _write(path, vectors)
        except OSError as error:
            reason = f"data: the cache {path.parent} cannot be written ({error.strerror}); vectors are not kept"
            warnings.warn(reason, stacklevel=2)
    return vectors


def _checked(vectors: Tensor, encoder: Encoder, rows: int) -> Tensor:
    """What an encoder of the user's own returned, if it is (rows, d) float32."""
    name = type(encoder).__name__
    if not isinstance(vectors, Tensor) or vectors.dtype != torch.float32:
        what = vectors.dtype if isinstance(vectors, Tensor) else f"a {type(vectors).__name__}"
        raise InputError(f"data.encoder: {name}.encode returned {what}; expected a float32 tensor")
    if vectors.ndim != 2 or len(vectors) != rows:
        raise InputError(f"data.encoder: {name}.encode returned {list(vectors.shape)}; expected [{rows}, d]")
    return vectors


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where vectors are kept: ``cache_dir``, else ``MAXMARGIN_CACHE``, else the user's cache folder.

    Example:
        >>> cache_folder("vectors").name
        'vectors'
    """
    return Path(cache_dir or os.environ.get("MAXMARGIN_CACHE") or user_cache_dir("lightning_maxmargin"))


def _key(encoder: Encoder, sentences: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{encoder.identity} {FEATURE_VERSION} {len(sentences)}\0".encode())
    for sentence in sentences:
        text = sentence.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)  # a separator may stand in a sentence
    return digest.hexdigest()[:24]


def _checksum(vectors: Tensor) -> str:
    return hashlib.sha256(vectors.contiguous().numpy().data).hexdigest()


def _read(path: Path, rows: int) -> Tensor | None:
    """The vectors, or None where the file is absent or not to be trusted."""
    try:
        with safe_open(path, "pt") as file:
            vectors, expected = file.get_tensor("vectors"), (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return vectors if len(vectors) == rows and _checksum(vectors) == expected else None


def _write(path: Path, vectors: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, rust_errors():
        save_file({"vectors": vectors.contiguous()}, part, metadata={"sha256": _checksum(vectors)})
