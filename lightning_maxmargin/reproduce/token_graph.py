"""Next-token data, its token-priority graphs, and the limits they predict: W_dir of the graph SVM and W_fin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.active_set import solve_finite_part, solve_kept_svm

Kind = Literal["acyclic", "whole", "parts"]
KINDS: tuple[Kind, ...] = ("acyclic", "whole", "parts")
# Newton's decrement, a length in standard deviations of the estimate, at which the optimum is one of rounding.
DECREMENT, MAX_NEWTON = 1e-13, 500


@dataclass(frozen=True)
class TokenGraphs:
    """B data sets of n sequences over a vocabulary of K tokens.

    Attributes:
        embeddings: (B, K, d), of unit length.
        tokens: (B, n, T), numbers of tokens; the last of a sequence, in any place, is its query.
        last: (B, n).
        labels: (B, n), the next token, one of the sequence's own.
        kept: (B, n, T), tokens in the strongly connected component of the label.
    """

    embeddings: Tensor
    tokens: Tensor
    last: Tensor
    labels: Tensor
    kept: Tensor

    def instance(self, b: int) -> tuple[Tensor, Tensor]:
        """Keys (n, T, d) and queries (n, d) of one of them."""
        return self.embeddings[b][self.tokens[b]], self.embeddings[b][self.last[b]]

    def scores(self, W: Tensor) -> Tensor:
        """a_it = x_it' W z_i of W (B, d, d), (B, n, T)."""
        table = self.embeddings @ W @ self.embeddings.mT
        return table.flatten(1).gather(1, self._cells(self.tokens).flatten(1)).view(self.tokens.shape)

    def pulled(self, weights: Tensor) -> Tensor:
        """sum_it weights_it (x_it - x_i,label) z_i' of weights (B, n, T), (B, d, d)."""
        count = self.embeddings.shape[1]
        table = weights.new_zeros(len(weights), count * count)
        table.scatter_add_(1, self._cells(self.tokens).flatten(1), weights.flatten(1))
        table.scatter_add_(1, self._cells(self.labels[..., None])[..., 0], -weights.sum(2))
        return self.embeddings.mT @ table.view(-1, count, count) @ self.embeddings

    def _cells(self, tokens: Tensor) -> Tensor:
        return tokens * self.embeddings.shape[1] + self.last[..., None]


def draw_graphs(
    kind: Kind, seeds: int, vocabulary: int = 9, d: int = 16, n: int = 200, T: int = 6, block: int = 3, seed: int = 0
) -> TokenGraphs:
    """Every last token ranks the vocabulary in an order of its own; the label is of the best rank in the sequence.

    ``acyclic``: ranks are of single tokens, so that the graph has no cycle; sequences are random. ``parts``: a rank is
    shared by ``block`` tokens, of which those in the sequence are drawn by probabilities of the last token's own.
    ``whole``: likewise, and a sequence is the last token's block and another one, each token once.

    Args:
        kind: as above.
        seeds: how many data sets.
        vocabulary: K tokens.
        d: dimensions of their embeddings, K or more, so that these are independent.
        n: sequences of each.
        T: tokens of each; 2 ``block`` where ``whole``.
        block: tokens of a rank.
        seed: of the first.

    Raises:
        InputError: an unknown kind, d below K, or a vocabulary that is not several whole blocks.

    Example:
        >>> graphs = draw_graphs("acyclic", 2, n=30)
        >>> bool((graphs.kept == (graphs.tokens == graphs.labels[..., None])).all())
        True
    """
    if kind not in KINDS:
        raise InputError(f"next_token: kind {kind!r} is none of {', '.join(KINDS)}")
    if d < vocabulary:
        raise InputError(f"next_token: d is {d}; expected the vocabulary's {vocabulary} or more")
    if kind != "acyclic" and (block < 1 or vocabulary % block or vocabulary <= block):
        raise InputError(f"next_token: vocabulary {vocabulary}; expected several blocks of {block} tokens")
    parts = [_draw(kind, vocabulary, d, n, T, block, seed + b) for b in range(seeds)]
    return TokenGraphs(*(torch.stack(x) for x in zip(*parts, strict=True)))


def _draw(kind: Kind, count: int, d: int, n: int, T: int, block: int, seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    E = torch.randn(count, d, generator=g, dtype=torch.float64)
    size = 1 if kind == "acyclic" else block
    rank = torch.stack([torch.randperm(count, generator=g) // size for _ in range(count)])
    # At least a fifth of the largest, so that few draws show every token of a block.
    chance = 0.25 + torch.rand(count, count, generator=g, dtype=torch.float64)
    last = torch.randint(count, (n,), generator=g)
    if kind == "whole":
        own = rank[last, last]
        other = (own + 1 + torch.randint(count // size - 1, (n,), generator=g)) % (count // size)
        inside = (rank[last] == own[:, None]) | (rank[last] == other[:, None])
        tokens = inside.nonzero()[:, 1].view(n, 2 * size)
    else:
        tokens = torch.randint(count, (n, T), generator=g)
        tokens[:, -1] = last
    ranks = rank[last[:, None], tokens]
    weights = chance[last[:, None], tokens] * (ranks == ranks.amin(1, keepdim=True))
    labels = tokens.gather(1, torch.multinomial(weights, 1, generator=g))[:, 0]
    component = components(tokens, last, labels, count)
    kept = component[last[:, None], tokens] == component[last, labels][:, None]
    return E / E.norm(dim=1, keepdim=True), tokens, last, labels, kept


def components(tokens: Tensor, last: Tensor, labels: Tensor, vocabulary: int) -> Tensor:
    """Number of each token's strongly connected component, (K, K): row k in the token-priority graph of last token k.

    That graph has an edge from the label to every token of each sequence that ends with k.

    Args: tokens (n, T), last (n,), labels (n,) of one data set.

    Example:
        >>> one = torch.tensor([[0, 1], [1, 0], [2, 0]])
        >>> components(one, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), 3)[0].unique(return_counts=True)[1]
        tensor([2, 1])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    found = []
    for k in range(vocabulary):
        ends = (labels[last == k].repeat_interleave(tokens.shape[1]).numpy(), tokens[last == k].flatten().numpy())
        graph = coo_array((np.ones(len(ends[0])), ends), shape=(vocabulary, vocabulary))
        found.append(torch.from_numpy(connected_components(graph, connection="strong")[1]).long())
    return torch.stack(found)


@dataclass(frozen=True)
class Limits:
    """What the graphs predict, B of each.

    Attributes:
        direction: (B, d, d), W_dir.
        finite: (B, d, d), W_fin.
        inside: (B, n, T), the probabilities that W_fin gives to the tokens kept; 0 on others.
        loss: (B,), the mean loss that cannot be gone below.
        certified: whether every problem is.
    """

    direction: Tensor
    finite: Tensor
    inside: Tensor
    loss: Tensor
    certified: bool


def limits(graphs: TokenGraphs) -> Limits:
    """W_dir and W_fin of every data set, from the data alone."""
    far, near, inside = [], [], []
    for b, kept in enumerate(graphs.kept):
        keys, queries = graphs.instance(b)
        logits = component_logits(graphs, b)
        p = logits.masked_fill(~kept, -torch.inf).softmax(1)
        far.append(solve_kept_svm(keys, kept, queries=queries))
        near.append(solve_finite_part(keys, kept, p, queries=queries))
        inside.append(p)
    s = torch.stack(inside)
    on_label = (s * (graphs.tokens == graphs.labels[..., None])).sum(2)
    return Limits(
        torch.stack([x.direction for x in far]),
        torch.stack([x.direction for x in near]),
        s,
        -on_label.log().mean(1),
        all(x.status == "certified" for x in (*far, *near)),
    )


def component_logits(graphs: TokenGraphs, b: int) -> Tensor:
    """The logit (n, T) of every token that minimises the loss of the sequences cut down to what they keep.

    Independent embeddings leave every last token its own logits, where that loss is convex, and a component strongly
    connected, where its minimum is finite: Newton's method, damped by its decrement.
    """
    count = graphs.embeddings.shape[1]
    tokens, last = graphs.tokens[b], graphs.last[b]
    copies = (one_hot(tokens, count) * graphs.kept[b][..., None]).sum(1).double()
    wanted = one_hot(graphs.labels[b], count).double()
    logits = torch.zeros(count, count, dtype=torch.float64)
    for k in last.unique().tolist():
        m, y = copies[last == k], wanted[last == k]
        for _ in range(MAX_NEWTON):
            p = m * (logits[k] - logits[k].max()).exp()
            p = p / p.sum(1, keepdim=True)
            slope, curvature = (p - y).sum(0), torch.diag(p.sum(0)) - p.mT @ p
            step = torch.linalg.pinv(curvature, rtol=1e-11, hermitian=True) @ slope
            decrement = float((slope @ step).clamp_min(0)) ** 0.5
            logits[k] -= step / (1 + decrement)
            if decrement < DECREMENT:
                break
    return logits[last[:, None], tokens]


def frequencies(graphs: TokenGraphs) -> Tensor:
    """How often each kept token (n, T) is the label among the sequences of its last token and component, (B, n, T).

    Where every sequence holds its component whole, each token once, this is the attention that minimises the loss.
    """
    B, n, T = graphs.tokens.shape
    found = torch.zeros(B, n, T, dtype=torch.float64)
    for b in range(B):
        tokens, last, labels, kept = (x[b] for x in (graphs.tokens, graphs.last, graphs.labels, graphs.kept))
        for i in range(n):
            # Of one last token and component: those whose label is kept here.
            alike = (last == last[i]) & torch.isin(labels, tokens[i][kept[i]])
            shares = one_hot(labels[alike], graphs.embeddings.shape[1]).double().mean(0)
            found[b, i] = shares[tokens[i]] * kept[i]
    return found
