"""A GPU in name only: tensors that say they lie on cuda:0, held in memory and computed on the CPU.

What runs on it takes the ways that are taken on a GPU, and what may not happen there fails: tensors of two devices in
one operation, or numpy on a tensor of the device. It says nothing of how a GPU rounds, of streams, or of speed, and
nothing can be trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = "cuda:0"
GIB = 2**30

_ATEN = torch.ops.aten
_COMPOSITE = "CompositeImplicitAutograd"


class Pretended(Tensor):
    """A tensor that is said to be on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        with torch.inference_mode(False):  # a view of one made outside must be possible inside
            return Tensor._make_wrapper_subclass(
                cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
            )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Pretended({self.held!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """By this a module that moves knows to take the tensor itself for its parameter, and not its storage."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> Pretended:
        return Pretended(parts["held"])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _GUARDED:
            return _GUARDED[function](*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, *args, **(kwargs or {}))


def _get(tensor: Pretended, index: Any) -> Pretended:
    _check("indexing", (tensor, index))
    return Pretended(tensor.held[_held(index)])


def _set(tensor: Pretended, index: Any, values: Any) -> None:
    _check("indexing", (tensor, index, values))
    tensor.held[_held(index)] = _held(values)


def _copy(tensor: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
    _held(tensor).copy_(_held(values))
    return tensor


#: What torch's Python layer does itself, asking the CUDA library that is not there.
_GUARDED: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _get,
    Tensor.__setitem__: _set,
    Tensor.__int__: lambda tensor: int(tensor.item()),
    Tensor.__float__: lambda tensor: float(tensor.item()),
    Tensor.__bool__: lambda tensor: bool(tensor.item()),
    Tensor.__index__: lambda tensor: int(tensor.item()),
    Tensor.nonzero: _ATEN.nonzero.default,
    Tensor.copy_: _copy,
    Tensor.new_tensor: lambda tensor, data: Pretended(torch.tensor(data, dtype=tensor.dtype)),
    Tensor.__invert__: _ATEN.bitwise_not.default,
    Tensor.tolist: lambda tensor: tensor.cpu().tolist(),
    Tensor.contiguous: _ATEN.contiguous.default,
}


#: What torch only notes and does later, where the note would be lost between a tensor and what it holds.
_AT_ONCE = {_ATEN._conj.default: _ATEN.conj_physical.default, _ATEN._neg_view.default: _ATEN.neg.default}


def _held(content: Any) -> Any:
    return tree_map_only(Pretended, lambda tensor: tensor.held, content)


def _check(operation: Any, content: Any) -> bool:
    """Whether any tensor is on the device.

    Raises:
        RuntimeError: One is, and another, no mere number, is not.
    """
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Pretended) for tensor in tensors)
    if there and any(not isinstance(tensor, Pretended) and tensor.dim() for tensor in tensors):
        raise RuntimeError(f"{operation}: found tensors on {DEVICE} and on the CPU")
    return there


def _compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on tensors of the device, or one that makes a tensor there."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), _COMPOSITE):
        return operation._op_dk(getattr(torch._C.DispatchKey, _COMPOSITE), *args, **kwargs)
    if operation is _ATEN.copy_.default:
        return _copy(*args)
    operation = _AT_ONCE.get(operation, operation)
    device = kwargs.get("device")  # of what is made, or copied; otherwise it lies where the others do
    there = _check(operation, (args, kwargs)) if device is None else torch.device(device).type == "cuda"
    named = {} if device is None else {"device": torch.device("cpu")}
    result = operation(*_held(args), **_held(kwargs) | named)
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return kwargs[argument.name] if argument.name in kwargs else args[place]
    return tree_map_only(Tensor, Pretended, result) if there else result


class _Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def pretended_gpu() -> Iterator[str]:
    """A machine that seems to have a GPU; gives its name, index included, without which torch asks CUDA for it."""
    if torch.version.cuda:
        pytest.skip("torch is a build for CUDA, whose own kernels would ask for a driver")
    empty = torch.empty

    def unpinned(*shape: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return empty(*shape, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "mem_get_info": lambda device=None: (64 * GIB, 80 * GIB),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "stream": lambda stream: nullcontext(),
            "Stream": _Stream,
            "current_stream": _Stream,
            "_lazy_init": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "empty", unpinned)
        library = torch.library.Library("_", "IMPL")
        library.fallback(_compute, "CUDA")
        try:
            yield DEVICE
        finally:
            library._destroy()
