"""A set of labelled token sequences, padded to a common length: the one form in which data travels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core import waiting
from lightning_maxmargin.core.copies import Copies, find_copies
from lightning_maxmargin.errors import InputError

#: Numbers in one block of a pass over all tokens: 16 MB of float32.
BLOCK_NUMBERS = 2**22
#: Keys from this many numbers on, 1 MB of float32, do not stay in a cache between two products.
LARGE_NUMBERS = 2**18


class Sequences:
    """n sequences of at most T tokens in d dimensions.

    Args:
        keys: (n, T, d), the tokens that attention scores.
        labels: (n,), floating -1/+1 for binary heads, or int64 class indices.
        values: (n, T, dv), the tokens that the head reads; the keys where None.
        queries: (n, dq), one query per sequence, or None.
        mask: (n, T) bool, True at real tokens; None where no sequence is padded.
        index: (n,) int64, the place of each sequence in its data set.
        planted: (n,) int64, the token that is known to carry the label, where that is known.
        instance: (n,) int64, which problem of an ensemble each sequence belongs to; None where there is one problem.
        mapped: whether keys and values lie in a file that is mapped into memory: whoever reads them all does so in
            :meth:`blocks`, and converts no more than one at a time.

    Example:
        >>> data = Sequences(torch.randn(4, 3, 2), torch.tensor([1.0, -1.0, 1.0, 1.0]))
        >>> len(data), data.values is data.keys
        (4, True)
    """

    # No dataclass: Lightning's precision plugins rebuild those field by field, and keys and values would part ways.
    FIELDS = ("keys", "labels", "values", "queries", "mask", "index", "planted", "instance")

    def __init__(
        self,
        keys: Tensor,
        labels: Tensor,
        values: Tensor | None = None,
        queries: Tensor | None = None,
        mask: Tensor | None = None,
        index: Tensor | None = None,
        planted: Tensor | None = None,
        instance: Tensor | None = None,
        mapped: bool = False,
    ) -> None:
        self.instance, self.mapped, self.pinned = instance, mapped, False
        self.keys, self.labels, self.queries, self.mask, self.planted = keys, labels, queries, mask, planted
        self.values = keys if values is None else values
        self.index = torch.arange(len(keys), device=keys.device) if index is None else index
        self._copies: tuple[object, object, Copies] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def _repr_html_(self) -> str:
        from lightning_maxmargin.core.show import sequences_html

        return sequences_html(self)

    def __getitem__(self, rows: Tensor | slice) -> Sequences:
        """The sequences at these rows; keys and values stay one tensor where they were one."""
        if isinstance(rows, Tensor) and rows.dtype == torch.int64:
            # 64 of 1,024 sequences of 128 tokens of 384 take 1.1 ms, by t[rows] 7.2 ms.
            return self.map(lambda t: t.index_select(0, rows.to(t.device)))
        return self.map(lambda t: t[rows])

    def take(
        self, rows: Tensor, dtype: torch.dtype | None = None, empty: Callable[..., Tensor] = torch.empty
    ) -> Sequences:
        """The sequences at these rows (b,) int64 on the CPU, floating numbers in this dtype; equal to indexing.

        Args:
            rows: of the data.
            dtype: as in :meth:`to`; as they are where None.
            empty: ``empty(shape, dtype=dtype)`` gives the memory that they are written to.
        """

        def copied(t: Tensor) -> Tensor:
            shape = (len(rows), *t.shape[1:])
            found = torch.index_select(t, 0, rows, out=empty(shape, dtype=t.dtype))
            if dtype in (None, t.dtype) or not t.is_floating_point():
                return found
            return empty(shape, dtype=dtype).copy_(found)

        return self.map(copied)

    @property
    def is_read_once(self) -> bool:
        """Whether two products with keys and values are better one: these are the same, many, and without queries."""
        return self.values is self.keys and self.queries is None and self.keys.numel() >= LARGE_NUMBERS

    def blocks(self) -> Iterator[tuple[slice, Sequences]]:
        """All sequences in consecutive parts of about ``BLOCK_NUMBERS`` numbers, each with its rows; no copies.

        Example:
            >>> [(rows.start, len(part)) for rows, part in Sequences(torch.zeros(5, 2, 1), torch.ones(5)).blocks()]
            [(0, 5)]
        """
        step = max(1, BLOCK_NUMBERS // max(1, self.keys[0].numel(), self.values[0].numel()))
        for at in range(0, len(self), step):
            rows = slice(at, min(at + step, len(self)))
            yield rows, self[rows]

    def to(self, *args: object, **kwargs: object) -> Sequences:
        """Like ``Tensor.to``; a dtype is given to floating tensors alone, and no copy to a device waits for it.

        Args:
            args: a device, a dtype or both.
            kwargs: as of ``Tensor.to``.
        """
        given = (*args, kwargs.get("device"))
        if self.pinned or any(isinstance(x, str | torch.device) and torch.device(x).type != "cpu" for x in given):
            kwargs = {"non_blocking": True, **kwargs}
        keep = {k: v for k, v in kwargs.items() if k != "dtype"}
        dtype_given = "dtype" in kwargs or any(isinstance(a, torch.dtype) for a in args)
        plain = [a for a in args if not isinstance(a, torch.dtype)]

        def move(t: Tensor) -> Tensor:
            if dtype_given and not t.is_floating_point():
                return t.to(*plain, **keep) if plain or keep else t  # type: ignore[call-overload]
            return t.to(*args, **kwargs)  # type: ignore[call-overload]

        return self.map(move)

    def pin_memory(self) -> Sequences:
        """The same in page-locked memory, which a GPU copies from while the process goes on."""
        pinned = self.map(lambda t: t.pin_memory())
        pinned.pinned = True
        return pinned

    def __getstate__(self) -> dict[str, Any]:
        # The stamp holds identities of tensors, which are others in another process.
        known = self._copies[2] if self._copies is not None and self._copies[0] == self._stamp() else None
        return {**self.__dict__, "_copies": known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("_copies")
        self.__dict__ |= state
        self._copies = None if known is None else (self._stamp(), (self.keys, self.values, self.mask), known)

    def with_queries(self, queries: Tensor | None) -> Sequences:
        """The same sequences with these queries (n, dq), or with none.

        Args:
            queries: (n, dq), or None.
        """
        if queries is self.queries:
            return self
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.FIELDS}
        other = Sequences(**{**fields, "queries": queries}, mapped=self.mapped)
        other._copies = self._stamp(), (self.keys, self.values, self.mask), self.copies()
        return other

    def copies(self) -> Copies:
        """Which keys are equal or near: found once, and again where keys, values or mask have been written to.

        Asked on the CPU, the answer goes along to a device and to parts of the data; a device itself is not asked.
        """
        stamp = self._stamp()
        if self._copies is None or self._copies[0] != stamp:
            found = find_copies(self.keys, self.values, self.mask, ask=waiting.answers_at_once(self.keys))
            # The tensors are held as well, because another one might get the id of one that is gone.
            self._copies = stamp, (self.keys, self.values, self.mask), found
        return self._copies[2]

    @property
    def knows_copies(self) -> bool:
        """Whether somebody has asked for them."""
        return self._copies is not None

    def _stamp(self) -> object:
        """Which tensors, and how often each was written to; torch does not count that in inference mode."""
        tensors = (self.keys, self.values, self.mask)
        return tuple((id(x), -1 if x is None or x.is_inference() else x._version) for x in tensors)

    def map(self, f: Callable[[Tensor], Tensor]) -> Sequences:
        """The same with f of every tensor, which keeps what keys have in common; asked once where values are the keys.

        Args:
            f: of a tensor, which keeps its shape.

        Example:
            >>> Sequences(torch.ones(1, 2, 1), torch.ones(1)).map(lambda t: 2 * t).labels
            tensor([2.])
        """
        names = [name for name in self.FIELDS if name != "values" or self.values is not self.keys]
        new: dict[str, Any] = {k: f(t) for k in names if (t := getattr(self, k)) is not None}
        if all(new[k] is getattr(self, k) for k in new):
            return self
        moved = Sequences(**new)
        # What is known of the keys holds for a part of them; near keys may be equal in another dtype.
        if self._copies is not None and self._copies[0] == self._stamp():
            known = self._copies[2]
            if not known.near or moved.keys.dtype == self.keys.dtype:
                first = None if known.first is None else f(known.first)
                held = (moved.keys, moved.values, moved.mask)
                moved._copies = moved._stamp(), held, replace(known, first=first)
        return moved

    @staticmethod
    def pad(keys: Sequence[Tensor], labels: Tensor, values: Sequence[Tensor] | None = None, **rest: Any) -> Sequences:
        """Ragged lists of (T_i, d) tokens to one padded set; the mask hides the padding.

        Args:
            keys: n tensors (T_i, d).
            labels: (n,).
            values: n tensors (T_i, dv); the keys where None.
            rest: queries, planted and index, as of :class:`Sequences`.

        Example:
            >>> data = Sequences.pad([torch.ones(2, 3), torch.ones(1, 3)], torch.tensor([1.0, -1.0]))
            >>> data.mask.tolist()
            [[True, True], [True, False]]
        """
        lengths = torch.tensor([len(k) for k in keys])
        padded = torch.nn.utils.rnn.pad_sequence(list(keys), batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        separate = None if values is None else torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
        return Sequences(padded, labels, values=separate, mask=mask, **rest)


def check_sequences(data: Sequences, num_classes: int = 2, where: str = "data") -> Sequences:
    """Returns ``data`` if a model can be trained on it, with zeros where NaN or Inf stands on padding.

    Args:
        data: the sequences.
        num_classes: 2 expects labels in {-1, 1}, more expect class indices below it.
        where: the name that the message gives to the data.

    Raises:
        InputError: shapes that disagree, a mask that is not bool, a sequence without a token, labels outside the
            classes, NaN or Inf.

    Example:
        >>> check_sequences(Sequences(torch.ones(1, 2, 1), torch.tensor([2.0])))
        Traceback (most recent call last):
            ...
        lightning_maxmargin.errors.InputError: data: label 2 of sequence 0 is outside {-1, 1}
    """
    _check_shapes(data, where)
    if data.mask is not None and data.mask.dtype != torch.bool:
        kind = str(data.mask.dtype).removeprefix("torch.")
        raise InputError(f"{where}: mask is {kind}; expected bool, true at tokens (of ones and zeros: mask == 1)")
    if data.mask is not None and not data.mask.any(1).all():
        row = int((~data.mask.any(1)).nonzero()[0])
        raise InputError(f"{where}: sequence {row} has no token (its mask hides every one); drop it or fix the mask")
    padding_is_sound = _check_finite(data, where)
    _check_labels(data.labels, num_classes, where)
    if data.planted is not None:
        _check_planted(data, data.planted, where)
    if padding_is_sound or data.mask is None:
        return data
    if data.mapped:
        raise InputError(
            f"{where}: NaN or Inf stands on padding of arrays that stay in their file; write zeros there, or read them "
            "into memory (mapped: false)"
        )
    return _clear_padding(data, data.mask)


def _check_finite(data: Sequences, where: str) -> bool:
    """Whether padding holds finite numbers as well; tokens and queries must. In blocks: it may be a large file."""
    sound = True
    for rows, part in data.blocks():
        for name in ("keys", "values", "queries"):
            tensor = getattr(part, name)
            if tensor is None or (name == "values" and tensor is part.keys) or bool(tensor.isfinite().all()):
                continue
            bad = ~tensor.isfinite()
            if data.mask is not None and name != "queries":
                sound, bad = False, bad & data.mask[rows][..., None]
            if bad.any():
                row = rows.start + int(bad.flatten(1).any(1).nonzero()[0])
                raise InputError(f"{where}: {name} of sequence {row} hold NaN or Inf; clean the array before training")
    return sound


def _check_planted(data: Sequences, planted: Tensor, where: str) -> None:
    inside = (planted >= 0) & (planted < data.keys.shape[1])
    if data.mask is not None:
        inside &= data.mask.gather(1, planted.long().clamp(0, data.keys.shape[1] - 1)[:, None])[:, 0]
    if not inside.all():
        row = int((~inside).nonzero()[0])
        raise InputError(f"{where}: planted token {int(planted[row])} of sequence {row} is no token of it")


def _clear_padding(data: Sequences, mask: Tensor) -> Sequences:
    """Zeros on padding."""
    keys = data.keys.masked_fill(~mask[..., None], 0)
    values = None if data.values is data.keys else data.values.masked_fill(~mask[..., None], 0)
    rest = {k: getattr(data, k) for k in Sequences.FIELDS if k not in ("keys", "values")}
    return Sequences(keys=keys, values=values, **rest)


def _check_shapes(data: Sequences, where: str) -> None:
    if data.keys.ndim != 3:
        raise InputError(f"{where}: keys have shape {tuple(data.keys.shape)}; expected (sequences, tokens, dimensions)")
    n, T = data.keys.shape[:2]
    if n == 0 or T == 0:
        raise InputError(f"{where}: keys have shape {tuple(data.keys.shape)}; at least one sequence and one token")
    wanted = {"labels": (n,), "mask": (n, T), "values": (n, T, "dv"), "queries": (n, "dq")}
    wanted |= {"planted": (n,), "instance": (n,)}
    for name, shape in wanted.items():
        tensor = getattr(data, name)
        if tensor is None:
            continue
        fits = tensor.ndim == len(shape) and all(
            isinstance(w, str) or w == s for w, s in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            text = ", ".join(map(str, shape))
            raise InputError(
                f"{where}: {name} have shape {tuple(tensor.shape)}; expected ({text}) for keys {tuple(data.keys.shape)}"
            )


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    allowed = torch.tensor([-1, 1]) if num_classes == 2 else torch.arange(num_classes)
    bad = ~torch.isin(labels.double(), allowed.double().to(labels.device))
    if bad.any():
        row = int(bad.nonzero()[0])
        text = "{-1, 1}" if num_classes == 2 else f"the classes 0..{num_classes - 1}"
        hint = (
            "; write 0 as -1" if num_classes == 2 and torch.isin(labels, torch.tensor([0, 1]).to(labels)).all() else ""
        )
        raise InputError(f"{where}: label {labels[row].item():g} of sequence {row} is outside {text}{hint}")
