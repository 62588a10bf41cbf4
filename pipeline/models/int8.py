"""Multiplications in 8 bits, for processors that do them twice as fast as in bf16.

Weights are rounded once, with a scale for each output. Inputs are rounded with one scale, which is
settled when the model is loaded: each input channel is divided by a factor, and the weights that
meet it are multiplied by it, so that a few loud channels do not take the other ones' bits
(SmoothQuant, 2211.10438, section 4). What GELU puts out can not be divided so; there the loudest
neurons are left in the engine's own precision, and the others rounded as they are computed
(after LLM.int8(), 2208.07339, section 3.2, with neurons chosen once).

How loud a channel is, is seen on random tokens. That needs no texts, suits any language, and is as
good: on 400 pairs of Cranfield the shipped student's scores were off by 0.042 with ranges seen on
random tokens, and by 0.047 with ranges seen on Cranfield, both with a tenth of headroom.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import gelu, linear

from pipeline.models.hardware import CPU_INT8

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = 127  # on either side of zero
ZERO = 128  # what stands for zero in inputs, which oneDNN takes without a sign
SMOOTHING = 0.65  # share of a channel's loudness that weights take over
# For texts louder than what was seen; what is louder still is cut off. LayerNorm bounds what comes
# out of it; attention's averages and GELU's output have no bound, and real text is louder there.
HEADROOM = 1.1
ATTENDED_HEADROOM = 1.3
INNER_HEADROOM = 2.0
LOUDEST = 32  # inner neurons left in the engine's precision; a multiple of what oneDNN likes
LEAST_GELU = -0.17  # GELU's least value is -0.16997
STEPS = 64  # between a power of two and the next but one
TINY = 1e-6


class Ranges(NamedTuple):
    """Largest magnitude of each input channel of one layer's multiplications, seen in float32."""

    projections: torch.Tensor
    mix: torch.Tensor
    widen: torch.Tensor
    narrow: torch.Tensor


def input_ranges(layers: Any, run: Callable[[], object]) -> list[Ranges]:
    """Watch what enters the linear layers of BERT layers while the model runs.

    Raises:
        AttributeError, LookupError: the layers are built otherwise.
    """
    seen: dict[Any, torch.Tensor] = {}

    def watch(linear_layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = inputs[0].abs().flatten(0, -2).amax(dim=0)
        before = seen.get(linear_layer)
        seen[linear_layer] = largest if before is None else torch.maximum(before, largest)

    watched = [
        (
            layer.attention.self.query, layer.attention.output.dense,
            layer.intermediate.dense, layer.output.dense,
        )
        for layer in layers
    ]  # fmt: skip
    hooks = [each.register_forward_pre_hook(watch) for four in watched for each in four]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [Ranges(*(coarse(seen[each]) for each in four)) for four in watched]


def coarse(magnitudes: torch.Tensor) -> torch.Tensor:
    """Round to steps of two to three per cent.

    Processors differ in the last bits of what they compute in float32. Such a difference in a range
    would move roundings everywhere: scores of the shipped student moved by up to 0.045.
    """
    mantissas, exponents = torch.frexp(magnitudes.clamp(min=TINY))
    return torch.ldexp((mantissas * STEPS).round() / STEPS, exponents)


class Linear:
    """A linear layer in 8 bits, of a weight (out, in) and a bias (out) in float32.

    Args:
        largest: magnitude of each input channel.
        dtype: of what is put out.
        headroom: how much louder inputs may be.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        largest: torch.Tensor,
        dtype: torch.dtype,
        headroom: float = HEADROOM,
    ) -> None:
        self._inputs = _Inputs(weight, largest, headroom)
        self._weights = _Weights(weight * self._inputs.factors, bias)
        self._dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return self._weights.multiply(self._inputs(x), self._inputs.scale, ZERO, self._dtype)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Add `other`, of the shape of the output, as well."""
        return self._weights.add(self._inputs(x), self._inputs.scale, ZERO, other)


class Between:
    """The two multiplications around GELU, whose output never leaves 8 bits but for few neurons.

    Args:
        weights, biases: of the first and of the second.
        ranges: what their inputs were seen to be.
        plain: makes a linear layer of the engine's precision of a weight and a bias.
    """

    def __init__(
        self,
        weights: tuple[torch.Tensor, torch.Tensor],
        biases: tuple[torch.Tensor, torch.Tensor],
        ranges: Ranges,
        plain: Callable[[torch.Tensor, torch.Tensor], Any],
    ) -> None:
        order = ranges.narrow.argsort(descending=True, stable=True)
        few = min(LOUDEST, len(order) // 2)
        loud, quiet = order[:few].sort().values, order[few:].sort().values
        widen, narrow = weights
        self._inputs = _Inputs(widen[quiet], ranges.widen)
        self._widen = _Weights(widen[quiet] * self._inputs.factors, biases[0][quiet])
        largest = float(ranges.narrow[quiet].max()) * INNER_HEADROOM
        self._scale = (max(largest, TINY) - LEAST_GELU) / 255
        self._zero = round(-LEAST_GELU / self._scale)
        self._narrow = _Weights(narrow[:, quiet], None)
        self._widen_loud = plain(widen[loud], biases[0][loud])
        self._narrow_loud = plain(narrow[:, loud].contiguous(), biases[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Both multiplications."""
        return self._both(x, self._narrow_loud(self._widen_loud.with_gelu(x)))

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Both multiplications, and `other` added to the outcome."""
        return self._both(x, self._narrow_loud.added(self._widen_loud.with_gelu(x), other))

    def _both(self, x: torch.Tensor, loud: torch.Tensor) -> torch.Tensor:
        """Add what the loud neurons make to what the others do."""
        inner = self._widen.multiply(
            self._inputs(x), self._inputs.scale, ZERO, torch.uint8,
            gelu_into=(self._scale, self._zero),
        )  # fmt: skip
        return self._narrow.add(inner, self._scale, self._zero, loud)


def input_scaling(
    weight: torch.Tensor, largest: torch.Tensor, headroom: float = HEADROOM
) -> tuple[torch.Tensor, float]:
    """What each input channel is divided by, and then the size of a level for all."""
    loud = (largest * headroom).clamp(min=TINY)
    heavy = weight.abs().amax(dim=0).clamp(min=TINY)
    factors = coarse(loud**SMOOTHING / heavy ** (1 - SMOOTHING))
    return factors, float((loud / factors).max()) / LEVELS


class _Inputs:
    """How inputs are rounded: divided channel by channel, then one scale for all."""

    def __init__(
        self, weight: torch.Tensor, largest: torch.Tensor, headroom: float = HEADROOM
    ) -> None:
        self.factors, self.scale = input_scaling(weight, largest, headroom)
        self._by = 1 / (self.factors * self.scale)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        levels = x.float().mul_(self._by) if x.dtype != torch.float32 else x * self._by
        signed = levels.round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        # Then 128 for zero: torch makes int8 of floats many times as fast as uint8.
        return signed.view(torch.uint8).bitwise_xor_(ZERO)


class _Weights:
    """Weights (out, in) rounded to 8 bits, a scale for each output, laid out for oneDNN.

    The operators are those that torch.compile makes of quantised models; they have no public name.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._scales = weight.abs().amax(dim=1).clamp(min=TINY) / LEVELS
        rounded = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._bias = bias

    def multiply(
        self,
        x: torch.Tensor,
        scale: float,
        zero: int,
        dtype: torch.dtype,
        gelu_into: tuple[float, int] | None = None,
    ) -> torch.Tensor:
        """Multiply; with `gelu_into`, a scale and a zero, the output is rounded behind GELU."""
        out_scale, out_zero = gelu_into or (1.0, 0)
        made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, scale, zero, self._packed, self._scales, self._zeros, self._bias,
            out_scale, out_zero, dtype, "gelu" if gelu_into else "none", [], "none",
        )  # fmt: skip
        return made

    def add(self, x: torch.Tensor, scale: float, zero: int, other: torch.Tensor) -> torch.Tensor:
        """Multiply, and add `other`, whose type the outcome has."""
        made: torch.Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            x, scale, zero, self._packed, self._scales, self._zeros, other, self._bias,
            1.0, 0, other.dtype, 1.0, 0, "add", 1.0, "none", [], "",
        )  # fmt: skip
        return made


@cache
def works() -> bool:
    """Whether processor and torch multiply in 8 bits, fast and rightly.

    Without one of those instruction sets oneDNN adds products in 16 bits, which overflow.
    """
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in CPU_INT8):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, back = (
        torch.randn(*shape, generator=generator) for shape in ((9, 64), (80, 64), (80,), (64, 80))
    )
    expected = linear(x, weight, bias)
    inner = gelu(expected)
    both = linear(inner, back) + x
    ranges = Ranges(*(t.abs().amax(dim=0) for t in (x, x, x, inner)))
    try:
        made = Linear(weight, bias, ranges.projections, torch.float32)
        between = Between((weight, back), (bias, torch.zeros(64)), ranges, Plain)
        outcomes = made(x), made.added(x, expected), between.added(x, x)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(
        bool((one - right).abs().mean() < 0.02 * right.abs().mean())
        for one, right in zip(outcomes, (expected, 2 * expected, both), strict=True)
    )


class Plain:
    """A linear layer in floats, as `Between` wants it: what int8 is tried against."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return linear(x, self._weight, self._bias)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Add `other` as well."""
        return self(x) + other

    def with_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply GELU as well."""
        return gelu(linear(x, self._weight, self._bias))
