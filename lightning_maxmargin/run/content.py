"""What a checkpoint holds: a sum of it that travels inside, and what a run needs of it to go on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from lightning_maxmargin.errors import InputError

#: Key of the sum. The one beside a checkpoint is lost with a copy, and zip's sums hold again in a file saved anew.
SUM = "content_sha256"
#: Of a Lightning whose checkpoints it would have to rewrite.
OLDEST = Version("2.0")
KINDS: dict[str, Any] = {
    "state_dict": Mapping, "hyper_parameters": Mapping, "global_step": int, "epoch": int, "loops": Mapping,
    "callbacks": Mapping, "optimizer_states": list, "lr_schedulers": list, "pytorch-lightning_version": str,
}  # fmt: skip
#: Without these Lightning ends in an error, or begins anew without a word.
NEEDED_TO_GO_ON = (
    "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers", "pytorch-lightning_version",
)  # fmt: skip


def content_sum(content: Mapping[str, Any]) -> str:
    """sha256 of all that a checkpoint holds but the sum itself: names, kinds, shapes and every bit of every tensor.

    Example:
        >>> content_sum({"w": torch.zeros(2)}) == content_sum({"w": torch.zeros(2), "content_sha256": "x"})
        True
        >>> content_sum({"w": torch.zeros(2)}) == content_sum({"w": torch.zeros(2).double()})
        False
    """
    digest = hashlib.sha256()
    _add({key: value for key, value in content.items() if key != SUM}, digest.update)
    return digest.hexdigest()


def _add(value: Any, add: Callable[[Any], object]) -> None:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        add(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        add(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        add(f"mapping {len(value)};".encode())
        for key, item in value.items():
            _add(key, add)
            _add(item, add)
    elif isinstance(value, list | tuple):
        add(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)};".encode())
        for item in value:
            _add(item, add)
    elif isinstance(value, str | bytes | bool | int | float | None):
        told = value if isinstance(value, bytes) else repr(value).encode(errors="surrogatepass")
        add(f"{type(value).__name__} {len(told)};".encode() + told)
    else:
        # Objects of other kinds are loaded by those who trust the file; their insides have no order to rely on.
        add(f"{type(value).__module__}.{type(value).__qualname__};".encode())


def refuse_altered(path: Any, content: Mapping[str, Any]) -> None:
    """Refuses content that is not what its sum was taken of; without a sum nothing is known.

    Raises:
        InputError: it is not.
    """
    if SUM in content and content[SUM] != content_sum(content):
        raise InputError(
            f"ckpt_path: {path} was altered after it was saved, so it is damaged; use an earlier checkpoint"
        )


def refuse_misshapen(path: Any, content: Mapping[Any, Any], goes_on: bool) -> None:
    """Refuses content of other kinds than Lightning saves, before it fails on them in the middle.

    Args:
        path: of the checkpoint.
        content: of it.
        goes_on: whether training does, which needs more than the weights.

    Raises:
        InputError: a part is missing, or of another kind.
    """
    for name in NEEDED_TO_GO_ON if goes_on else ():
        if name not in content:
            raise InputError(f"ckpt_path: {path} has no {name}, without which no run goes on; use another checkpoint")
    if SUM in content:
        return  # it is what a run has saved, whatever that is
    for name, kind in KINDS.items():
        if name in content and (not isinstance(content[name], kind) or isinstance(content[name], bool)):
            _refuse(path, name, content[name])
    for name, weight in content["state_dict"].items():
        if str(name).endswith("_extra_state"):
            continue  # of torch's set_extra_state: anything
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            _refuse(path, f"state_dict.{name}", weight)
        if _has_nan(weight):
            raise InputError(f"ckpt_path: {path} holds weights that are not finite ({name}); use an earlier checkpoint")
    if goes_on:
        _refuse_other_lightning(path, content["pytorch-lightning_version"])
        _refuse_misshapen_optimizers(path, content["optimizer_states"])
        _refuse_other_step(path, content)


def refuse_other_weights(path: Any, content: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuses weights of other shapes or kinds than the model's, where it knows these already.

    Raises:
        InputError: they are of another shape, no floating numbers, or infinite where the model's own are not.
    """
    for name, weight in content.get("state_dict", {}).items():
        if not isinstance(own.get(name), Tensor) or not isinstance(weight, Tensor):
            continue
        if weight.shape != own[name].shape:
            raise InputError(
                f"ckpt_path: {path} is of another model: its {name} is {tuple(weight.shape)}, not "
                f"{tuple(own[name].shape)}"
            )
        if weight.is_floating_point() != own[name].is_floating_point():
            _refuse(path, f"state_dict.{name}", f"{weight.dtype}")
        if not own[name].is_meta and bool(own[name].isfinite().all()) and not bool(weight.isfinite().all()):
            raise InputError(f"ckpt_path: {path} holds weights that are not finite ({name}); use an earlier checkpoint")


def load_or_refuse(
    load: Callable[..., None], path: Any, dtype: torch.dtype | None, model: torch.nn.Module,
    checkpoint: Mapping[str, Any], strict: bool = True,
) -> None:  # fmt: skip
    """Loads the weights of a checkpoint, in place of a strategy's ``load_model_state_dict``.

    Lightning raises a page of missing names, and casts other kinds of numbers without a word.

    Args:
        load: the strategy's own.
        path: of the checkpoint.
        dtype: of the floating numbers that training holds; None is what the model has by now.
        model: that is loaded, as it is then.
        checkpoint: of which it is.
        strict: whether each name must be there.

    Raises:
        InputError: a weight is missing, is none of the model's, or is of another dtype than the run's.
    """
    # A strategy that shards has loaded them by itself, and takes them out.
    weights = checkpoint.get("state_dict", {})
    own = model.state_dict() if weights else {}
    for name, weight in weights.items():
        mine = own.get(name)
        if not isinstance(mine, Tensor) or not isinstance(weight, Tensor) or not weight.is_floating_point():
            continue
        expected = dtype or mine.dtype
        if weight.dtype != expected and mine.is_floating_point():
            raise InputError(
                f"ckpt_path: {path} holds {_dtype(weight.dtype)} ({name}), and this command {_dtype(expected)}; give "
                "the trainer.precision that it was trained with"
            )
    try:
        load(checkpoint, strict=strict)
    except RuntimeError as error:
        told = _of_other_names(str(error))
        if told is None:
            raise
        raise InputError(f"ckpt_path: {path} is of another model: it {told}; use another") from error


def _of_other_names(text: str) -> str | None:
    """What torch says of names that are missing or too many, in short; None of another error.

    Example:
        >>> _of_other_names('Error(s) in loading state_dict for M: Missing key(s) in state_dict: "a", "b". ')
        'lacks a and 1 more'
    """
    for kind, told in (("Missing", "lacks"), ("Unexpected", "also holds")):
        found = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        names = re.findall(r'"([^"]+)"', found[1]) if found else []
        if names:
            return f"{told} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return None


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_finite_weights(content: Mapping[str, Any]) -> bool:
    """Whether every weight of a checkpoint is.

    Example:
        >>> has_finite_weights({"state_dict": {"w": torch.tensor([1.0, torch.nan])}})
        False
    """
    weights = content["state_dict"].values()
    return all(x.layout != torch.strided or bool(x.isfinite().all()) for x in weights if isinstance(x, Tensor))


def _has_nan(x: Tensor) -> bool:
    """Whether a number of these is none, or cannot be told; infinity may be that of a mask."""
    return x.layout != torch.strided or bool(x.isnan().any())


def _refuse(path: Any, name: str, found: Any) -> None:
    told = found if isinstance(found, str) else type(found).__name__
    raise InputError(f"ckpt_path: {path} is no checkpoint of Lightning by its {name} ({told[:40]!r}); use another")


def _refuse_other_lightning(path: Any, version: str) -> None:
    try:
        known = Version(version) >= OLDEST
    except InvalidVersion:
        known = False
    if not known:
        raise InputError(f"ckpt_path: {path} is of pytorch-lightning {version[:20]!r}; {OLDEST} or later is read")


def _refuse_misshapen_optimizers(path: Any, states: list[Any]) -> None:
    for i, state in enumerate(states):
        name = f"optimizer_states.{i}"
        if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
            _refuse(path, name, state)
        groups = state["param_groups"]
        whole = isinstance(groups, list) and all(
            isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
        )
        if not whole or not groups:
            _refuse(path, f"{name}.param_groups", groups)
        if not isinstance(state["state"], Mapping) or not all(isinstance(x, Mapping) for x in state["state"].values()):
            _refuse(path, f"{name}.state", state["state"])
        kept = [x for of_one in state["state"].values() for x in of_one.values()]
        if any(_has_nan(x) or not bool(x.isfinite().all()) for x in kept if isinstance(x, Tensor)):
            raise InputError(f"ckpt_path: {path} holds {name} that is not finite; use an earlier checkpoint")


def _refuse_other_step(path: Any, content: Mapping[str, Any]) -> None:
    """Lightning goes on from the counts of its loops, and the run is told of ``global_step``."""
    loop = content["loops"].get("fit_loop")
    counts = list(_counts(loop)) if isinstance(loop, Mapping) else [None]
    if not counts or not all(isinstance(n, int) and n >= 0 for n in counts):
        _refuse(path, "loops.fit_loop", "no counts")
    step = content["global_step"]
    if step < 0 or step not in (_steps(loop, name) for name in ("automatic", "manual")):
        raise InputError(f"ckpt_path: {path} says step {step}, and its loops another; use an earlier checkpoint")


def _counts(loop: Any) -> Any:
    """Every number of the loops' progress."""
    if not isinstance(loop, Mapping):
        yield loop
        return
    for name, part in loop.items():
        if not str(name).endswith("state_dict"):
            yield from _counts(part)


def _steps(loop: Mapping[str, Any], kind: str) -> Any:
    """Steps by the loop of this optimisation; None where it is not there."""
    name = {"automatic": "optim_progress", "manual": "optim_step_progress"}[kind]
    found: Any = loop.get(f"epoch_loop.{kind}_optimization.{name}")
    for key in ("optimizer", "step", "total", "completed") if kind == "automatic" else ("total", "completed"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
