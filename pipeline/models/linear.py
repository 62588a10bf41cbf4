"""Linear layers of the faster forward pass: by our own kernels, oneDNN's layout, or plainly."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import gelu, linear

if TYPE_CHECKING:
    from pipeline.models.engine import Engine

TYPICAL_ROWS = 1024  # tokens of a batch, for which oneDNN lays out weights


class Linear:
    """A linear layer laid out for the engine, of a weight (out, in) and a bias (out) in float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, engine: Engine) -> None:
        own = engine.kernels
        self._own = own if own is not None and own.can_multiply(*weight.T.shape) else None
        self._packed = self._own is None and engine.lays_out and _packing_works()
        if self._own is not None:
            self._weight, self._bias = self._own.lay_out(weight), bias.float()
            return
        self._weight = weight.to(engine.device, engine.dtype)
        self._bias = bias.to(engine.device, engine.dtype)
        if self._packed:
            self._weight = _pack(self._weight)

    @property
    def laid_out(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weight and bias, where our own kernels compute the layer."""
        return (self._weight, self._bias) if self._own is not None else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (..., in)."""
        if self._own is not None:
            return self._own.multiply(x, self._weight, self._bias)
        if self._packed:
            return _multiply(x, self._weight, self._bias, "none")
        return linear(x, self._weight, self._bias)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Add `other`, of the shape of the output, as well."""
        if self._packed:
            return _multiply_and_add(x, self._weight, self._bias, other)
        return self(x) + other

    def with_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the exact GELU as well."""
        if self._own is not None:
            return self._own.multiply(x, self._weight, self._bias, with_gelu=True)
        if self._packed:
            return _multiply(x, self._weight, self._bias, "gelu")
        return gelu(linear(x, self._weight, self._bias))


# oneDNN's own layout of weights: torch.compile calls it so, and it has no public name. Where a
# torch has it not, or computes something else by it, plain multiplications do.


def _pack(weight: torch.Tensor) -> torch.Tensor:
    lay_out = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
    return lay_out(weight, TYPICAL_ROWS)  # type: ignore[no-any-return]


def _multiply(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, activation: str
) -> torch.Tensor:
    fused = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    return fused(x, packed, bias, activation, [], "none")  # type: ignore[no-any-return]


def _multiply_and_add(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    fused = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
    return fused(x, other, packed, bias, "add")  # type: ignore[no-any-return]


@cache
def _packing_works() -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((9, 64), (48, 64), (48,))
    )
    expected = linear(x, weight, bias).float()
    try:
        plain, fused = (
            _multiply(x, _pack(weight), bias, kind).float() for kind in ("none", "gelu")
        )
        added = _multiply_and_add(x, _pack(weight), bias, linear(x, weight, bias)).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(
        torch.allclose(plain, expected, rtol=0.02, atol=0.1)
        and torch.allclose(fused, gelu(expected), rtol=0.02, atol=0.1)
        and torch.allclose(added, 2 * expected, rtol=0.02, atol=0.2)
    )
