"""A GPU for machines without one: tensors of real numbers on the CPU that say cuda:0, and a count of what waits for it.

    with pretended_gpu() as gpu:
        x = torch.randn(3, device=GPU)
        x + torch.randn(3)            # RuntimeError, as on a GPU
        x.sum().item(), gpu.waits     # what the host waited for, by kind and line

What waits is what waits in torch's CUDA code: reading a number, a size that depends on the data, the error flag of a
decomposition, a blocking copy in either direction. What is not pretended: kernels, streams, speed, several devices.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_maxmargin.callbacks import worker

GPU = torch.device("cuda", 0)
aten = torch.ops.aten

#: Operators whose CUDA code reads a number before it returns.
WAITING = {
    aten._local_scalar_dense.default: "item", aten.is_nonzero.default: "item", aten.equal.default: "equal",
    aten.nonzero.default: "nonzero", aten.masked_select.default: "masked_select", aten.bincount.default: "bincount",
    aten._unique2.default: "unique", aten.unique_dim.default: "unique", aten.unique_consecutive.default: "unique",
    aten._linalg_check_errors.default: "linalg", aten._linalg_svd.default: "linalg",
    aten._linalg_eigh.default: "linalg", aten.linalg_eig.default: "linalg",
}  # fmt: skip
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
#: Operators that may be given a tensor of the host beside those of the device: copies, and indices.
MIXING = COPIES | INDEXED


class Gpu:
    """What was asked of the pretended device.

    Attributes:
        waits: how often the host waited, by kind and line of the package.
        operations: how many there were.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.operations = 0

    def waited(self, kind: str) -> None:
        """Counts one, with the innermost line of the package on the stack, or else of Lightning and its like."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        ours = [f for f in frames if "/lightning_maxmargin/" in f.filename]
        last = (ours or frames)[-1]
        self.waits[f"{kind} {'/'.join(last.filename.split('/')[-2:])}:{last.lineno}"] += 1

    @contextlib.contextmanager
    def expecting(self, waits: int = 0) -> Iterator[None]:
        """Fails where the block makes the host wait more or less often than so."""
        before = Counter(self.waits)
        yield
        found = self.waits - before
        assert found.total() == waits, f"{found.total()} waits, expected {waits}: {dict(found)}"


_now: list[Gpu] = []


class OnGpu(Tensor):
    """Holds a tensor of the CPU, which autograd's C++ sees, and says cuda:0 to Python."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=held.device, requires_grad=False,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"

    def tolist(self) -> Any:
        _waited("item")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host first.")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file holds no device here: what was saved on the device is loaded on the CPU.
        return self.held.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def on_gpu(x: Any) -> bool:
    return isinstance(x, OnGpu)


def _waited(kind: str) -> None:
    if _now:
        _now[-1].waited(kind)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _concerns(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the device has anything to do with it: nearly no operator of a solver has, and these are many."""
    if _is_gpu(kwargs.get("device")):
        return True
    return any(on_gpu(x) or (isinstance(x, list | tuple) and any(map(on_gpu, x))) for x in (*args, *kwargs.values()))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if not _concerns(args, kwargs):
        return func(*args, **kwargs)
    flat, spec = tree_flatten((args, kwargs))
    ours = any(map(on_gpu, flat))
    if ours:
        _check_devices(func, flat)
        _count(func, args, kwargs)
    host = torch.device("cpu")
    bare = [x.held if on_gpu(x) else host if isinstance(x, torch.device) and x.type == "cuda" else x for x in flat]
    bare_args, bare_kwargs = tree_unflatten(bare, spec)
    out = func(*bare_args, **bare_kwargs)
    device = kwargs.get("device")
    here = _is_gpu(device) if device is not None else ours
    if func in COPIES:
        _count_copy(func, args, kwargs, here)
    if func is aten.copy_.default:
        return args[0]
    if not here:
        return out
    written = [arg.name for arg in func._schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
    if written and isinstance(out, Tensor):
        return kwargs["out"] if "out" in kwargs else args[0]
    return tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) and not on_gpu(x) else x, out)


def _check_devices(func: Any, flat: list[Any]) -> None:
    # The zeros that autograd's C++ makes are on the device that it sees.
    if func in COPIES or torch._C._current_autograd_node() is not None:
        return
    strays = [x for x in flat if isinstance(x, Tensor) and not on_gpu(x) and x.ndim]
    if func in INDEXED:
        strays = [x for x in strays if x.is_floating_point()]
    if strays:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func}, of the CPU {tuple(strays[0].shape)})"
        )


def _count(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if _now:
        _now[-1].operations += 1
    if func in WAITING:
        _waited(WAITING[func])
    elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        _waited("repeat_interleave")
    elif func is aten.isin.Tensor_Tensor and args[1].numel() >= 10 * args[0].numel() ** 0.145:
        _waited("isin")  # sorts, by unique; fewer are compared one by one
    elif func in INDEXED:
        indices = [x for x in args[1] if x is not None]
        masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
        filled = func is not aten.index.Tensor and args[2].numel() == 1 and len(masks) == len(indices) == 1
        if masks and not filled:  # one number at one mask is a masked_fill
            _waited("nonzero")
        elif any(not on_gpu(x) and x.ndim for x in indices):
            _waited("copy to the device")


def _count_copy(func: Any, args: Any, kwargs: dict[str, Any], here: bool) -> None:
    if func is aten.copy_.default:
        source, to_gpu = args[1], on_gpu(args[0])
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        source, to_gpu = args[0], here
        blocking = not kwargs.get("non_blocking", False)
    if blocking and on_gpu(source) != to_gpu:
        _waited("copy to the device" if to_gpu else "copy to the host")


class _Dispatch(TorchDispatchMode):
    """Sees what is made on a device by name, of which no argument is a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Copies between devices by the dispatcher's own: the C++ of these functions asks a driver for its device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            named = {Tensor.cuda: GPU, Tensor.cpu: torch.device("cpu")}.get(func)
            return _moved(args[0], list(args[1:]), kwargs, named)
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            device = kwargs.pop("device", None) or (args[0].device if func is Tensor.new_tensor else None)
            data = args[1] if func is Tensor.new_tensor else args[0]
            if func is Tensor.new_tensor:
                kwargs.setdefault("dtype", args[0].dtype)
            if on_gpu(data):
                return _moved(data, [], {**kwargs, "device": device}, None)
            made = (torch.as_tensor if func is torch.as_tensor else torch.tensor)(data, **kwargs)
            return made if device is None else _moved(made, [], {"device": device}, None)
        return func(*args, **kwargs)


def _moved(x: Tensor, words: list[Any], kwargs: dict[str, Any], device: torch.device | None) -> Tensor:
    words += [kwargs.get(name) for name in ("device", "dtype", "other")]
    other = next((w for w in words if isinstance(w, Tensor)), None)
    device = device or next((torch.device(w) for w in words if isinstance(w, torch.device | str)), None)
    dtype = next((w for w in words if isinstance(w, torch.dtype)), None)
    if other is not None:
        device, dtype = other.device, other.dtype
    changes = device is not None and device.type != x.device.type
    flags = [w for w in words if isinstance(w, bool)]
    if not (changes or (dtype or x.dtype) != x.dtype or kwargs.get("copy") or flags[1:2] == [True]):
        return x
    non_blocking = kwargs.get("non_blocking", flags[:1] == [True])
    device = None if device is None else GPU if device.type == "cuda" else device
    return aten._to_copy(x, dtype=dtype or x.dtype, device=device, non_blocking=non_blocking)


class _Event:
    """Of a stream that does what it is told at once; waiting for one counts where nothing was done since."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = -1

    def record(self, *_: Any) -> None:
        self.at = _now[-1].operations

    def synchronize(self) -> None:
        if self.at == _now[-1].operations:
            _waited("event")


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """Within, torch has a device cuda:0, for tensors alone."""
    gpu = Gpu()
    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(torch.cuda, "_lazy_init", lambda: None))
        stack.enter_context(_replaced(torch.cuda, "synchronize", lambda *_: _waited("synchronize")))
        stack.enter_context(_replaced(torch, "Event", _Event))
        # Page-locked memory is the driver's; batches are made on a thread, which no mode reaches.
        stack.enter_context(_replaced(Tensor, "pin_memory", lambda x, *_: x))
        # A tensor made under inference mode has no version, which one that holds another must have.
        stack.enter_context(_replaced(torch._C, "_InferenceMode", lambda on: torch.set_grad_enabled(not on)))
        # Module.to makes new parameters, since .data cannot change a tensor's class.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._ensureCUDADeviceGuardSet()  # a device guard without a driver, as fake tensors have
        _now.append(gpu)
        stack.callback(_now.pop)
        # A thread has modes of its own: the monitors measure on one.
        stack.enter_context(_replaced(worker, "_timed", _within_modes(worker._timed)))
        stack.enter_context(_Dispatch())
        stack.enter_context(_Moves())
        yield gpu


def _within_modes(run: Callable[..., Any]) -> Callable[..., Any]:
    def on_thread(*given: Any) -> Any:
        with _Dispatch(), _Moves():
            return run(*given)

    return on_thread


@contextlib.contextmanager
def _replaced(owner: Any, name: str, other: Callable[..., Any] | type) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, before)
