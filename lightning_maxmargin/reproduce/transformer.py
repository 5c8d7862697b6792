"""A small transformer with a [CLS] token, in plain torch: no part of it is this package's."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Heads of separate projections: (n, T, dim) and mask (n, T) or None to (n, T, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop(self.attention(self.before(x), mask))
        return x + self.drop(self.mlp(self.between(x)))


class ClsTransformer(pl.LightningModule):
    """Tokens (n, T, features) to class logits (n, classes), read off a [CLS] token put before them.

    Batches are (tokens, labels) or (tokens, labels, mask) with mask (n, T) true on tokens.

    Args:
        features: of a token.
        length: T, for the position embeddings.
        classes: number of labels.
        dim: of the model.
        heads: per layer.
        layers: blocks.
        lr: of AdamW.
        weight_decay: of AdamW.
        dropout: after attention and MLP.
    """

    def __init__(
        self,
        features: int,
        length: int,
        classes: int,
        dim: int = 32,
        heads: int = 2,
        layers: int = 2,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.lr, self.weight_decay = heads, lr, weight_decay
        self.embed = nn.Linear(features, dim)
        self.cls = nn.Parameter(0.02 * torch.randn(dim))
        self.position = nn.Parameter(0.02 * torch.randn(length + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), self.embed(tokens)], 1) + self.position
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x[:, 0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, labels, *mask = batch
        return cross_entropy(self(tokens, *mask), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
