"""LoRA on torch's convolutions, in one, two and three dimensions.

A convolution multiplies each patch of its input by its weight, flattened to (out, in k) for kernels
of k elements. So its update is that of a linear layer, s B A with A (r, in k) and B (out, r):

    h = conv(x, W0) + b + s conv1(conv(x, A), B)

where the inner convolution has the kernel, stride, padding and dilation of the layer, and the outer
one a kernel of a single element. B A is formed only for merging.

The inner one also pads as the layer does. In PEFT it has neither the layer's dilation nor its
padding_mode, so merging changes the output of such layers; here it does not.

With g groups of channels the weight is (out, in / g · k), but lora_A reads all channels and
lora_B has one block for each group, as in PEFT: such an update does not fit the layer's weight,
so it cannot be merged. A row scale belongs to a row of the weight of the equivalent convolution of
all channels, where W0 is zero outside of its groups.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.described import KernelShape
from lorakit.ops import LinearOperands, LowRankTerm
from lorakit.ops.dropout import drop
from lorakit.ops.row_scale import add_changes

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class AdaptedConv(AdaptedLayer):
    """Base class of adapted convolutions of any dimension."""

    dimensions: ClassVar[int]
    is_linear = False

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    bias: Tensor | None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (channels times elements of a kernel, out_channels)."""
        shape = cls.kernel_shape(module)
        return shape.columns, module.out_channels  # type: ignore[return-value]  # an attribute of a module

    @classmethod
    def kernel_shape(cls, module: nn.Module) -> KernelShape:
        """Return channels, kernel and groups of a convolution."""
        return KernelShape(module.in_channels, tuple(module.kernel_size), module.groups)  # type: ignore[arg-type]  # an attribute of a module

    def base_weight(self) -> Tensor:
        """Return the weight as (out, in k), zero outside of its groups."""
        if self.groups == 1:
            return self.weight.flatten(1)
        blocks = [block.flatten(1) for block in self.weight.chunk(self.groups)]
        return torch.block_diag(*blocks)

    def orient(self, delta_weight: Tensor) -> Tensor:
        """Reshape (out, in k) to the stored shape (out, in, *kernel), and back."""
        if delta_weight.ndim == 2:
            return delta_weight.reshape(self.weight.shape)
        return delta_weight.flatten(1)

    def merge_obstacle(self) -> str | None:
        """Return why the updates cannot be added to the weight, such as groups, or None."""
        if self.groups == 1:
            return super().merge_obstacle()
        return f"it has groups={self.groups}, and its updates mix the channels of all of them"

    def operand_weight(self) -> Tensor:
        """Return the kernels, (out, in / groups, …)."""
        return self.weight

    def compute(self, x: Tensor, operands: LinearOperands) -> Tensor:
        """Map (*, in, …) to (*, out, …)."""
        bias = None if operands.bias is None else operands.bias.to(self.weight.dtype)
        is_scaled = any(term.row_scale is not None for term in operands.terms)
        h: Tensor = self._conv_forward(x, self.weight, None if is_scaled else bias)  # type: ignore[operator]  # an attribute of a module
        return self._with_changes(x, h, operands.terms, bias if is_scaled else None)

    def update_output(self, x: Tensor, base: Tensor, operands: LinearOperands) -> Tensor:
        """Return outputs (rows, out, …), given the base's, which have its bias."""
        if self.bias is None:
            return self._with_changes(x, base, operands.terms, operands.bias)
        if operands.bias is self.bias and operands.terms[0].row_scale is None:
            return self._with_changes(x, base, operands.terms, None)
        without = base - self.bias.to(base.dtype).view(-1, *(1,) * self.dimensions)
        return self._with_changes(x, without, operands.terms, operands.bias)

    def _with_changes(
        self, x: Tensor, h: Tensor, terms: Sequence[LowRankTerm], bias: Tensor | None
    ) -> Tensor:
        changes = [self._change(term, x) for term in terms]
        if bias is None and all(term.row_scale is None for term in terms):
            return sum(changes, h)
        channel = -1 - self.dimensions
        last = [change.movedim(channel, -1) for change in changes]
        return add_changes(h.movedim(channel, -1), last, terms, bias).movedim(-1, channel)

    def _change(self, term: LowRankTerm, x: Tensor) -> Tensor:
        """Return s B A at every patch of an input, dropout included, (*, out, …)."""
        convolve = _CONVOLVE[self.dimensions]
        x = x if term.seed is None else drop(x, term.drop_probability, term.seed)
        A = term.A.to(x.dtype).reshape(-1, self.in_channels, *self.kernel_size)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)  # type: ignore[arg-type]  # an attribute of a module
            padding = (0,) * self.dimensions
        u = convolve(x, A, None, self.stride, padding, self.dilation)  # (*, r, …)
        # s goes into B, which is far smaller than the output, before B is rounded.
        B = (term.B * term.scaling).to(u.dtype).view(*term.B.shape, *(1,) * self.dimensions)
        return convolve(u, B)


class LoraConv1d(AdaptedConv, nn.Conv1d):
    """A convolution over a sequence, with updates."""

    plain_class = nn.Conv1d
    dimensions = 1


class LoraConv2d(AdaptedConv, nn.Conv2d):
    """A convolution over an image, with updates."""

    plain_class = nn.Conv2d
    dimensions = 2


class LoraConv3d(AdaptedConv, nn.Conv3d):
    """A convolution over a volume, with updates."""

    plain_class = nn.Conv3d
    dimensions = 3
