"""Bytes kept and allocated by a forward and backward pass, counted at the allocations of PyTorch's operators.

The count is equal for tensors on a CPU and on the meta device, which has shapes and formats but no data. Allocations inside the
kernels of operators (workspaces of convolutions) are not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ACTIVATIONS = "activations"
"""Allocated in the forward pass."""
WEIGHT_COPIES = "weight_copies"
"""Copies of weights in half precision, made by autocast."""
GRADIENTS = "gradients"
"""Gradients of parameters."""
TEMPORARIES = "temporaries"
"""Allocated in the backward pass: gradients of activations, and activations recomputed by gradient checkpointing."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a forward and backward pass, without the parameters."""

    saved: dict[str, int]
    """Alive at the end of the forward pass, by purpose."""
    peak: dict[str, int]
    """Alive at the peak, by purpose."""


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of live tensors that operators allocate on a device type, by purpose."""

    def __init__(self, parameters: Iterable[nn.Parameter], device_type: str, uncounted: Iterable[str] = ()) -> None:
        """`uncounted`: purposes to ignore."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type, self.uncounted = device_type, frozenset(uncounted)
        self.alive: Counter[str] = Counter()
        self.total = self.peak_total = 0
        self.peak: dict[str, int] = {}
        self.is_backward = False
        self._call = MetaOperators() if device_type == "meta" else _call_operator
        self._parameters = list(parameters)
        self._weights = {_storage_id(parameter) for parameter in self._parameters}
        self._purposes: dict[int, tuple[str, int]] = {}  # live storage -> purpose, bytes
        self._references: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it allocated."""
        out = self._call(func, args, kwargs or {})
        for tensor in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device_type:
                self._count(tensor, func, args)
        return out

    def _count(self, tensor: Tensor, func: Any, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._purposes or key in self._weights:
            return
        purpose = TEMPORARIES if self.is_backward else ACTIVATIONS
        if func is torch.ops.aten._to_copy.default and _storage_id(args[0]) in self._weights:
            purpose = WEIGHT_COPIES
        n_bytes = 0 if purpose in self.uncounted else storage.nbytes()
        self._purposes[key] = purpose, n_bytes
        self._references[key] = weakref.ref(storage, partial(self._forget, key))
        self.alive[purpose] += n_bytes
        self.total += n_bytes
        if self.total > self.peak_total:
            self.peak_total, self.peak = self.total, dict(self.alive)

    def _forget(self, key: int, reference: object) -> None:
        del reference  # refers to the deleted storage
        purpose, n_bytes = self._purposes.pop(key)
        del self._references[key]
        self.alive[purpose] -= n_bytes
        self.total -= n_bytes

    def mark_gradient(self, parameter: Tensor) -> None:
        """Hook of a parameter: count its gradient as a gradient."""
        assert parameter.grad is not None
        key = _storage_id(parameter.grad)
        purpose, n_bytes = self._purposes[key]
        kept = 0 if GRADIENTS in self.uncounted else n_bytes
        self.alive[purpose] -= n_bytes
        self.alive[GRADIENTS] += kept
        self.total += kept - n_bytes
        self._purposes[key] = GRADIENTS, kept

    @contextmanager
    def marking_gradients(self) -> Iterator[None]:
        """Context manager that marks gradients when they are complete."""
        hooks = [p.register_post_accumulate_grad_hook(self.mark_gradient) for p in self._parameters if p.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class MetaOperators:
    """Calls operators on meta tensors with a cache of result shapes, since networks repeat their layers."""

    def __init__(self) -> None:
        self._results: dict[Any, Any] = {}  # (operator, arguments) -> result shapes
        self._is_repeatable: dict[Any, bool] = {}  # whether results of an operator are new tensors

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result, as new meta tensors."""
        if func not in self._is_repeatable:
            schema = func._schema
            self._is_repeatable[func] = not schema.is_mutable and all(result.alias_info is None for result in schema.returns)
        if not self._is_repeatable[func]:
            return func(*args, **kwargs)
        key = func, _describe(args), _describe(tuple(kwargs.items())) if kwargs else ()
        if key in self._results:
            return _create(self._results[key])
        out = func(*args, **kwargs)
        arguments = {_storage_id(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        if any(_storage_id(x) in arguments for x in tree_iter(out) if isinstance(x, Tensor)):
            self._is_repeatable[func] = False  # a view not declared in the schema, such as _unsafe_view
        else:
            self._results[key] = _describe(out)
        return out


class _Shape(NamedTuple):
    """Description of a meta tensor."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _describe(value: Any) -> Any:
    """A hashable description of a value: tensors by their shapes."""
    if isinstance(value, Tensor):
        return _Shape(value.shape, value.stride(), value.dtype, value.device)
    return tuple([_describe(x) for x in value]) if isinstance(value, tuple | list) else value


def _create(value: Any) -> Any:
    """New meta tensors from a description."""
    if isinstance(value, _Shape):
        return torch.empty_strided(value.size, value.stride, dtype=value.dtype, device=value.device)
    return tuple([_create(x) for x in value]) if isinstance(value, tuple) else value


def _call_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def measure_pass(
    forward: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    device_type: str = "meta",
    uncounted: Iterable[str] = (),
    after_forward: Callable[[], object] = lambda: None,
) -> PassMemory:
    """Run `forward`, which returns the loss, and its backward pass; gradients are freed afterwards.

    `uncounted`: purposes to ignore, e.g. gradients that exist before the pass. `after_forward` is called
    between the passes.
    """
    parameters = list(parameters)
    with AllocationCounter(parameters, device_type, uncounted) as counter, counter.marking_gradients():
        loss = forward()
        after_forward()
        saved = dict(counter.alive)
        counter.is_backward = True
        loss.backward()
        peak = counter.peak
    for parameter in parameters:
        parameter.grad = None
    return PassMemory(_nonzero(saved), _nonzero(peak))


def _storage_id(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {purpose: n_bytes for purpose, n_bytes in counts.items() if n_bytes}
