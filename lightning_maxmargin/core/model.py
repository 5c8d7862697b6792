"""The model f(X) = v' X' softmax(X W z), in its three parametrisations."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_maxmargin.core.attention import centred_pool, naive_pool
from lightning_maxmargin.core.heads import apply_psi, make_head
from lightning_maxmargin.core.products import products
from lightning_maxmargin.core.selection import select, take_token
from lightning_maxmargin.core.sequences import Sequences
from lightning_maxmargin.errors import InputError

Init = Literal["zeros", "normal"] | ListOf[float] | ListOf[ListOf[float]]


class Output(NamedTuple):
    """What the model says of a batch.

    Attributes:
        logits: (n,) or (n, K).
        attention: (n, T).
        scores: (n, T), before softmax.
    """

    logits: Tensor  # (n,) or (n, K)
    attention: Tensor  # (n, T)
    scores: Tensor  # (n, T)


class TokenSelector(nn.Module):
    """f(X_i) = v' X_i' softmax(a_i) with scores a_it = k_it' W z_i.

    Args:
        dim: d, of the keys.
        value_dim: of the values; ``dim`` where None.
        parametrization: ``p`` (a_it = k_it'p, the shared prompt merged into p), ``W`` (d x dq) or ``KQ`` (W = K Q').
        query: ``shared`` (one fixed unit prompt z), ``own`` (z_i is token ``own_token`` of the sequence itself) or
            ``separate`` (z_i comes with the data).
        query_dim: dq of separate queries; ``dim`` where None.
        own_token: the token that asks, for ``query="own"``.
        prompt: the shared prompt z, scaled to unit length; the first unit vector where None.
        rank: m, of K and Q; ``dim`` where None.
        num_classes: 2 is the linear binary head v; more is the linear multiclass head V (K, d).
        head: ``linear`` (v or V), ``mlp`` (one hidden layer with biases, drawn by torch's default), or any module from
            pooled tokens (n, dv) to logits, (n,) or (n, 1) for two classes, (n, K) for more. A head that is not linear
            is trained with ``gradient: centred``, and has no label SVM.
        hidden: width of the hidden layer of ``mlp``.
        activation: of ``mlp``: relu, gelu or tanh.
        attention_init: ``zeros``, ``normal`` (standard deviation ``init_std``) or the numbers themselves. With KQ: of
            K, and Q is zero (both zero would be a saddle).
        head_init: likewise, of v or V; other heads come with their own start.
        init_std: standard deviation of ``normal``.

    Raises:
        InputError: numbers whose shape disagrees with the model, or a choice that does not exist.

    Source: MMTS (p and v jointly), TFSVM (W and K, Q).

    Example:
        >>> model = TokenSelector(dim=2, parametrization="p", attention_init=[0.0, 9.0], head_init=[0.0, 1.0])
        >>> data = Sequences(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([1.0]))
        >>> round(model(data).logits.item(), 3)
        1.0
    """

    # Each exists in the parametrisation that names it.
    p: nn.Parameter
    W: nn.Parameter
    K: nn.Parameter
    Q: nn.Parameter
    v: nn.Parameter
    V: nn.Parameter
    prompt: Tensor

    def __init__(
        self,
        dim: int,
        value_dim: int | None = None,
        parametrization: Literal["p", "W", "KQ"] = "W",
        query: Literal["shared", "own", "separate"] = "shared",
        query_dim: int | None = None,
        own_token: int = 0,
        prompt: ListOf[float] | None = None,
        rank: int | None = None,
        num_classes: int = 2,
        attention_init: Init = "zeros",
        head_init: Init = "zeros",
        init_std: float = 0.1,
        head: Literal["linear", "mlp"] | nn.Module = "linear",
        hidden: int = 32,
        activation: Literal["relu", "gelu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        _check_choice("parametrization", parametrization, ("p", "W", "KQ"))
        _check_choice("query", query, ("shared", "own", "separate"))
        if parametrization == "p" and query != "shared":
            raise InputError(f"model: parametrization p has the shared prompt built in; query {query!r} needs W or KQ")
        self.dim, self.value_dim, self.num_classes = dim, value_dim or dim, num_classes
        self.parametrization, self.query, self.own_token = parametrization, query, own_token
        dq = query_dim if query == "separate" and query_dim else dim
        self.register_buffer("prompt", _unit_prompt(prompt, dim) if query == "shared" else torch.empty(0))
        if parametrization == "KQ":
            m = rank or dim
            self.K = nn.Parameter(_initial("attention_init", attention_init, (dim, m), init_std))
            self.Q = nn.Parameter(torch.zeros(dq, m))
        else:
            shape = (dim,) if parametrization == "p" else (dim, dq)
            weight = nn.Parameter(
                _initial("attention_init", attention_init, shape, init_std, self.prompt if query == "shared" else None)
            )
            self.register_parameter(parametrization, weight)
        linear = isinstance(head, str) and head == "linear"
        self.psi = None if linear else make_head(head, self.value_dim, hidden, activation, num_classes)
        if self.psi is not None:
            if not isinstance(head_init, str) or head_init != "zeros":
                raise InputError(f"model.head_init: {head_init!r} is for head: linear; leave it out for another head")
            return
        head_shape = (self.value_dim,) if num_classes == 2 else (num_classes, self.value_dim)
        self.register_parameter(
            "v" if num_classes == 2 else "V", nn.Parameter(_initial("head_init", head_init, head_shape, init_std))
        )

    @property
    def attention_parameters(self) -> dict[str, nn.Parameter]:
        """p (d,), W (d, dq), or K (d, m) and Q (dq, m), by these names."""
        return {k: p for k, p in self.named_parameters() if k in ("p", "W", "K", "Q")}

    @property
    def head_parameters(self) -> dict[str, nn.Parameter]:
        """v (dv,), V (K, dv), or the parameters of a nonlinear head psi, by name."""
        return {k: p for k, p in self.named_parameters() if k in ("v", "V") or k.startswith("psi.")}

    @property
    def linear(self) -> bool:
        """Whether the head is v or V."""
        return self.psi is None

    @property
    def dtype(self) -> torch.dtype:
        """Of the attention's weights."""
        return next(iter(self.attention_parameters.values())).dtype

    @property
    def head(self) -> Tensor:
        """v (d,) or V (K, d).

        Raises:
            InputError: the head is not linear.
        """
        if self.psi is not None:
            raise InputError("model.head: a nonlinear head is no vector; use logits instead")
        return self.v if self.num_classes == 2 else self.V

    def logits(self, tokens: Tensor) -> Tensor:
        """psi(x), v'x or V x of tokens (m, dv): (m,) or (m, K).

        Args:
            tokens: (m, dv).
        """
        if self.psi is not None:
            return apply_psi(self.psi, tokens, self.num_classes)
        return tokens @ (self.head if self.num_classes == 2 else self.head.mT)

    @property
    def matrix(self) -> Tensor:
        """W (d, dq), whatever the parametrisation; for p the column p itself."""
        if self.parametrization == "p":
            return self.p[:, None]
        return self.K @ self.Q.T if self.parametrization == "KQ" else self.W

    @property
    def direction(self) -> Tensor:
        """What the limit problem is about: p = W z (d,) for the shared prompt, W (d, dq) otherwise."""
        if self.query != "shared":
            return self.matrix
        if self.parametrization == "KQ":
            return self.K @ (self.prompt[None] @ self.Q)[0]
        return self.p if self.parametrization == "p" else self.W @ self.prompt

    def queries(self, data: Sequences) -> Tensor | None:
        """z_i (n, dq), or None for the shared prompt.

        Args:
            data: n sequences.

        Raises:
            InputError: the model takes separate queries and the data have none.
        """
        if self.query == "shared":
            return None
        if self.query == "own":
            return data.keys[:, self.own_token]
        if data.queries is None:
            raise InputError("data: query 'separate' needs queries and the data have none; give them or use 'shared'")
        return data.queries

    def scores(self, data: Sequences, keys: Tensor | None = None) -> Tensor:
        """a_it = k_it' W z_i, (n, T), of the data's keys or of these in their place.

        Args:
            data: n sequences.
            keys: (n, T, d), in place of theirs.
        """
        keys, z = data.keys if keys is None else keys, self.queries(data)
        if z is None:
            return keys @ self.direction
        target = (z @ self.Q) @ self.K.T if self.parametrization == "KQ" else z @ self.W.T
        return torch.einsum("ntd,nd->nt", keys, target)

    def scores_and_token_values(self, data: Sequences) -> tuple[Tensor, Tensor | None]:
        """a_it and, of a binary linear head, v'x_it, both (n, T), where one product gives both; else None for these.

        Args:
            data: n sequences.

        Example:
            >>> model, keys = TokenSelector(dim=2, head_init=[0.0, 1.0]), torch.ones(1, 2**17, 2)
            >>> model.scores_and_token_values(Sequences(keys, torch.ones(1)))[1][0, 0].item()
            1.0
        """
        if self.query != "shared" or self.num_classes != 2 or not self.linear or not data.is_read_once:
            return self.scores(data), None
        scores, token_values = products(data.keys, torch.stack([self.direction, self.head]))
        return scores, token_values

    def _centred_scores(self, data: Sequences, scores: Tensor) -> Tensor | None:
        """(k_it - k_i,alpha)' W z_i where keys are equal or near and a gradient will be taken; None elsewhere."""
        if not scores.requires_grad:
            return None
        copies = data.copies()
        if not (copies.equal or copies.near):
            return None
        selected = select(scores.detach(), data.mask)
        return self.scores(data, data.keys - take_token(data.keys, selected)[:, None])

    def forward(self, data: Sequences, pooling: Literal["centred", "naive"] = "centred") -> Output:
        """logits (n,) or (n, K), attention (n, T) and scores (n, T).

        Args:
            data: n sequences.
            pooling: ``centred``, or ``naive`` to see what softmax's own gradient does.

        Raises:
            InputError: the model takes separate queries and the data have none.
        """
        # Outside autocast: bfloat16 scores have 3 digits, so at norm 1,000 they would be off by more than 1.
        with torch.autocast(data.keys.device.type, enabled=False):
            if pooling == "naive":
                scores = self.scores(data)
                pooled, attention = naive_pool(scores, data.values, data.mask)
                return Output(self.logits(pooled), attention, scores)
            scores, token_values = self.scores_and_token_values(data)
            centred = self._centred_scores(data, scores)
            if token_values is not None and centred is None:
                # v' of the pooled token is the pooled v'x: tokens are read twice in a step, and not four times.
                pooled, attention = centred_pool(scores, token_values[:, :, None], data.mask)
                return Output(pooled[:, 0], attention, scores)
            pooled, attention = centred_pool(scores, data.values, data.mask, centred)
            return Output(self.logits(pooled), attention, scores)

    def set_attention_gradient(self, direction: Tensor) -> None:
        """Fills ``.grad`` from the gradient with respect to p (shared prompt) or W, by the chain rule.

        Args:
            direction: (d,) or (d, dq), as :attr:`direction`.
        """
        if self.parametrization == "p":
            self.p.grad = direction
            return
        G = torch.outer(direction, self.prompt) if self.query == "shared" else direction
        if self.parametrization == "W":
            self.W.grad = G
        else:
            self.K.grad, self.Q.grad = G @ self.Q.detach(), G.T @ self.K.detach()


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InputError(f"model.{name}: {given!r} is none of {', '.join(known)}")


def _unit_prompt(prompt: ListOf[float] | None, dim: int) -> Tensor:
    if prompt is None:  # no numbers to look at: a model may be made on the meta device, without any
        return torch.eye(dim)[0]
    z = _numbers("prompt", prompt, torch.float64)
    if z.shape != (dim,) or not z.norm() > 0:
        raise InputError(
            f"model.prompt: {list(z.shape)} numbers or all zero; expected a nonzero vector of length {dim}"
        )
    return (z / z.norm()).to(torch.get_default_dtype())


def _numbers(name: str, given: object, dtype: torch.dtype) -> Tensor:
    try:
        return torch.tensor(given, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model.{name}: {str(given)[:40]} is no array of numbers ({error})") from error


def _initial(name: str, init: Init, shape: tuple[int, ...], std: float, prompt: Tensor | None = None) -> Tensor:
    """The initial numbers; a (d,) start of W under the shared prompt z means p(0), so W(0) = p(0) z'."""
    if isinstance(init, str):
        _check_choice(name, init, ("zeros", "normal"))
        return torch.zeros(shape) if init == "zeros" else std * torch.randn(shape)
    numbers = _numbers(name, init, torch.get_default_dtype())
    if len(shape) == 2 and prompt is not None and numbers.shape == shape[:1]:
        numbers = torch.outer(numbers, prompt)
    if numbers.shape != shape:
        raise InputError(
            f"model.{name}: the numbers have shape {tuple(numbers.shape)}; expected {shape}, zeros or normal"
        )
    return numbers
