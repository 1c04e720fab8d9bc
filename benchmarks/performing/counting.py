"""How much arithmetic a method does, and how much memory its operations touch.

Counted as two floating-point operations a multiplication with addition: convolutions and matrix products (torch's own
counter), Fourier transforms (2.5 N log2 N of real values, 5 N log2 N of complex ones, the radix-2 count), and the
decompositions of LAPACK by the leading terms in Golub and Van Loan, Matrix Computations, sections 5.2, 8.3 and 8.6.
Everything pixel by pixel (softmax, pooling, sums, activations) is not counted, and neither is what runs outside torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
#: What the names of operations have in them that do more than a few operations a pixel.
HEAVY = ("fft", "linalg", "conv", "linear", "matmul", "mm", "mkldnn")
#: These, in spite of their names, do not.
BY_PIXEL = {"aten.linalg_vector_norm", "aten._linalg_check_errors"}


@dataclass(frozen=True)
class Count:
    """What one call does.

    Args:
        flops: Floating-point operations of what is counted.
        transforms: How many of these are those of Fourier transforms.
        decompositions: How many of these are those of decompositions.
        bytes: Bytes that the operations read and write, each tensor once an operation; caches spare some of them.
        uncounted: Operations, more than pixel by pixel by their names, that there is no formula for here.
    """

    flops: int
    transforms: int
    decompositions: int
    bytes: int
    uncounted: tuple[str, ...]


def counted(call: Callable[[], Any]) -> Count:
    """Count what a call does."""
    counter, watcher = FlopCounterMode(display=False, custom_mapping={**TRANSFORMS, **DECOMPOSITIONS}), _Watcher()
    with counter, watcher:
        call()
    by_name = {str(name): value for name, value in counter.get_flop_counts().get("Global", {}).items()}

    def total(formulas: dict[Any, Any]) -> int:
        return int(sum(by_name.get(str(name), 0) for name in formulas))

    known = {str(name) for name in counter.flop_registry} | BY_PIXEL
    heavy = {name for name in watcher.names if any(part in name for part in HEAVY)}
    flops = int(counter.get_total_flops())
    return Count(flops, total(TRANSFORMS), total(DECOMPOSITIONS), watcher.bytes, tuple(sorted(heavy - known)))


class _Watcher(TorchDispatchMode):
    """Names of the operations, and bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # what torch makes of others is watched in their place
            result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = function(*args, **kwargs)
        self.names.add(str(function.overloadpacket))
        read, written = list(_tensors((args, kwargs))), list(_tensors(result))
        in_place = function._schema.is_mutable
        if in_place or not ({_storage(tensor) for tensor in written} <= {_storage(tensor) for tensor in read}):
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _transform(weight: float, real: Callable[..., Sequence[int]]) -> Callable[..., int]:
    """The count of a Fourier transform over the dimensions given, many at once; `real` finds the untransformed side."""

    def flops(shape: Sequence[int], dims: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        whole = real(shape, out_shape)
        length = prod(whole[dim] for dim in dims)
        return int(weight * prod(whole) * log2(max(length, 1)))

    return flops


TRANSFORMS = {
    aten._fft_r2c: _transform(2.5, lambda shape, _out: shape),
    aten._fft_c2r: _transform(2.5, lambda _shape, out: out),
    aten._fft_c2c: _transform(5, lambda shape, _out: shape),
}


def _of_matrices(formula: Callable[[int, int], float]) -> Callable[..., int]:
    """The count of a decomposition of many matrices, by that of one with m rows and n columns, m at least n."""

    def flops(shape: Sequence[int], *_: Any, **__: Any) -> int:
        n, m = sorted(shape[-2:])
        return int(prod(shape[:-2]) * formula(m, n))

    return flops


DECOMPOSITIONS = {
    aten._linalg_svd: _of_matrices(lambda m, n: 4 * m * n**2 - 4 * n**3 / 3),  # singular values only
    aten.linalg_qr: _of_matrices(lambda m, n: 4 * (m * n**2 - n**3 / 3)),  # factors, and the thin Q written out
    aten._linalg_eigh: _of_matrices(lambda _m, n: 4 * n**3 / 3),  # eigenvalues only
    aten.linalg_cholesky_ex: _of_matrices(lambda _m, n: n**3 / 3),
}
