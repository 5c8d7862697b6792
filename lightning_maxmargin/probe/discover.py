"""Finds the attention layers of any module by watching one forward pass, and reads them in the passes after it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.attention import difference, differs_by
from lightning_maxmargin.probe.capture import Reading, quietly
from lightning_maxmargin.probe.find_layer import find, owner_of
from lightning_maxmargin.probe.found import FoundAttention, Seen, Unwatchable
from lightning_maxmargin.probe.read_layer import read_maps, see
from lightning_maxmargin.probe.tap import Call, Tap
from lightning_maxmargin.probe.visible import QueryToken

NO_ATTENTION = "computes no attention in its forward pass"
#: What a name goes through in modules that are compiled, sharded or checkpointed.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Layers left out that an error lists.
MOST_LISTED = 4


@dataclass
class Discovery:
    """The attention layers of a module.

    Attributes:
        sources: those that are watched, by name.
        left_out: the others, by name, and why.
        differences: of those that are watched, the largest between an attention weight of the module's own and the one
            recomputed from inputs and weights.

    ``str()`` is a table of both.
    """

    sources: dict[str, FoundAttention] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def in_short(self) -> str:
        """How many layers are watched, and each that is left out with the reason; one line where there is none.

        Example:
            >>> Discovery({}, {"decoder": "it was not called"}).in_short()
            'no attention layer is watched; left out:\\n  decoder: it was not called'
        """
        layers, heads = len(self.sources), sum(found.heads for found in self.sources.values())
        watched = f"{layers} attention layer{'s' * (layers > 1)} watched, {heads} head{'s' * (heads > 1)}"
        left = "".join(f"\n  {name}: {why}" for name, why in self.left_out.items())
        return (watched if layers else "no attention layer is watched") + (f"; left out:{left}" if left else "")

    def __str__(self) -> str:
        width = max((len(name) for name in [*self.sources, *self.left_out]), default=0)
        rows = [
            f"{name:{width}}  {found.heads} head{'s' * (found.heads > 1)}, {found.how}; "
            f"off by {self.differences[name]:.0e}"
            for name, found in self.sources.items()
        ]
        rows += [f"{name:{width}}  left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(rows)


def find_attention(
    root: nn.Module,
    forward: Callable[[], Any],
    query_token: QueryToken = "auto",
    most: int = 128,
    layers: str | None = None,
) -> Discovery:
    """Every attention that a pass computes whose scores are x'W z, checked against the module's own.

    Nothing goes by names: the products and softmaxes of the pass are seen, and the submodules whose outputs they are
    made of are found by value. Each layer's attention is then recomputed from inputs and weights.

    Args:
        root: the module.
        forward: the pass, on a batch with at least two tokens.
        query_token: whose attention is compared.
        most: pairs of sample and position that are compared.
        layers: only these, a pattern such as ``layer.[0-3].*`` of the name's end, or a part of the name.

    Raises:
        InputError: no layer can be watched, or none has this name.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> print(find_attention(layer, lambda: layer(torch.randn(3, 5, 8))).sources["self_attn"].how)
        bidirectional; a MultiheadAttention
    """
    seen: dict[tuple[str, int], tuple[FoundAttention, Seen]] = {}
    why: dict[tuple[str, int], str] = {}

    def attends(key: tuple[str, int], call: Call) -> None:
        try:
            found = find(call)
            seen[key] = found, see(call, found, query_token, most)
        except Unwatchable as reason:
            why[key] = str(reason)
        except InputError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            # Of shapes that no layer before had: the module's own pass goes on.
            why[key] = f"it cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"

    Tap(root, _numbered(attends)).run(forward)
    discovery = Discovery()
    repeated = {name for name, nth in [*seen, *why] if nth}
    with quietly(root):
        for key, (found, what) in seen.items():
            _check(discovery, root, _name(found.owner, key, repeated), key, found, what)
    for key, reason in why.items():
        discovery.left_out[_name(key[0], key, repeated)] = reason
    discovery.left_out |= _silent(root, [*seen, *why], [f.owner for f, _ in seen.values()])
    if not discovery.sources:
        raise InputError(_nothing(root, discovery.left_out))
    return discovery if layers is None else _only(discovery, layers)


def read_found(
    root: nn.Module,
    sources: Mapping[str, FoundAttention],
    forward: Callable[[], Any],
    query_token: QueryToken,
    most: int,
) -> dict[str, Reading | str]:
    """A pass's readings of layers that were found before; why, where one is no longer what it was.

    Args:
        root: the module.
        sources: by name, of a :class:`Discovery`.
        forward: the pass.
        query_token: whose attention.
        most: pairs of sample and position.
    """
    by_key = {found.key: name for name, found in sources.items()}
    seen: dict[str, Seen | str] = {}

    def attends(key: tuple[str, int], call: Call) -> None:
        if key in by_key:
            name = by_key[key]
            try:
                seen[name] = see(call, sources[name], query_token, most)
            except (Unwatchable, InputError) as reason:
                seen[name] = str(reason)

    Tap(root, _numbered(attends)).run(forward)
    readings: dict[str, Reading | str] = {}
    with quietly(root):
        for name, found in sources.items():
            what = seen.get(name, "it computes no attention in this pass")
            try:
                readings[name] = what if isinstance(what, str) else read_maps(root, found, what)
            except InputError as error:
                readings[name] = _without_place(error)
    return readings


def _check(
    discovery: Discovery, root: nn.Module, name: str, key: tuple[str, int], found: FoundAttention, seen: Seen
) -> None:
    """Takes a layer whose attention follows from its inputs and weights; says by how much another does not."""
    found.key = key
    try:
        reading = read_maps(root, found, seen)
    except InputError as error:
        discovery.left_out[name] = _without_place(error)
        return
    found.tokens = reading.keys.shape[1]
    off, allowed = difference(found, reading)
    if off > allowed:
        discovery.left_out[name] = differs_by(off)
        return
    discovery.sources[name], discovery.differences[name] = found, off


def _without_place(error: InputError) -> str:
    return str(error).removeprefix("HeadMonitor.sources: ").split(";")[0]


def _numbered(attends: Callable[[tuple[str, int], Call], None]) -> Callable[[Call], None]:
    """Tells which of its owner's attentions a call is, in the order of the pass."""
    counts: dict[str, int] = {}

    def numbered(call: Call) -> None:
        owner = owner_of(call).name
        counts[owner] = counts.get(owner, -1) + 1
        attends((owner, counts[owner]), call)

    return numbered


def _name(owner: str, key: tuple[str, int], repeated: set[str]) -> str:
    """Of a layer; with its turn where one module computes several, as ALBERT's."""
    plain = ".".join(part for part in owner.split(".") if part not in WRAPPERS)
    return f"{plain}@{key[1]}" if key[0] in repeated else plain


def _silent(root: nn.Module, keys: list[tuple[str, int]], owners: list[str]) -> dict[str, str]:
    """Modules that are called attention and in which none was seen."""
    known = {*(name for name, _ in keys), *owners}
    called = {name for name, module in root.named_modules() if "attention" in type(module).__name__.lower()}
    found = {}
    for name in sorted(called):
        around = any(other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in known)
        inside = any(name.startswith(f"{other}.") for other in called)
        if name and not around and not inside:
            found[name] = (
                "no softmax over queries and keys was seen in the pass: it was not called, or uses a kernel of its own "
                "(flash or flex attention; watched are eager and sdpa)"
            )
    return found


def _nothing(root: nn.Module, left_out: dict[str, str]) -> str:
    looked = "scaled_dot_product_attention, MultiheadAttention, or a softmax over a product of queries and keys"
    if not left_out:
        return f"HeadMonitor.sources: {type(root).__name__} {NO_ATTENTION} ({looked})"
    listed = [f"{name or 'the module itself'}: {why}" for name, why in list(left_out.items())[:MOST_LISTED]]
    more = len(left_out) - len(listed)
    end = f"; and {more} more" if more else ""
    return f"HeadMonitor.sources: no attention layer of {type(root).__name__} can be watched; {'; '.join(listed)}{end}"


def _only(discovery: Discovery, layers: str) -> Discovery:
    kept = [name for name in discovery.sources if layers in name or fnmatchcase(f".{name}", f"*.{layers}")]
    if not kept:
        near = difflib.get_close_matches(layers, list(discovery.sources), 1, cutoff=0.0)
        raise InputError(f"HeadMonitor.layers: no watched layer is called {layers!r}; the closest is {near[0]!r}")
    return Discovery(
        {name: discovery.sources[name] for name in kept}, discovery.left_out,
        {name: discovery.differences[name] for name in kept},
    )  # fmt: skip
