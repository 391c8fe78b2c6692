"""Initial weights of a `VisionTransformer` (official DINOv3 scheme), all draws from one given generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.backbones.blocks import KeyMaskedLinear, LayerScale
from workbench.backbones.rope import RopePositionEmbedding


@torch.no_grad()
def fill(model: nn.Module, generator: torch.Generator, *, std: float | None = 0.02) -> None:
    """Fill linear layers, the patch convolution, norms, LayerScales, RoPE periods and key-bias masks of `model`.

    Linear weights: normal(0, std), cut at +-2, biases 0; `std=None` means 0.8 / sqrt(fan-in). Patch convolution:
    weight and bias uniform within 1 / sqrt(fan-in). Norms: 1 and 0. Draws follow the order of `modules()`.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fill_linear(module, generator, std if std is not None else 0.8 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Conv2d):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                draw(parameter, generator, lambda t, bound=bound: t.uniform_(-bound, bound, generator=generator))
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, LayerScale):
            module.gamma.fill_(module.initial)
        elif isinstance(module, RopePositionEmbedding):
            module.reset_periods()


@torch.no_grad()
def fill_normal(parameter: Tensor, generator: torch.Generator, std: float) -> None:
    """Fill a tensor with normal(0, std)."""
    draw(parameter, generator, lambda t: t.normal_(0.0, std, generator=generator))


def draw(parameter: Tensor, generator: torch.Generator, sample: Callable[[Tensor], Tensor]) -> None:
    """Sample on the generator's device in float32, then copy: the same numbers whatever device the model is on."""
    parameter.copy_(sample(torch.empty(parameter.shape, device=generator.device)))


def fill_linear(layer: nn.Linear | nn.Conv2d, generator: torch.Generator, std: float) -> None:
    """Weight normal(0, std) cut at +-2, bias 0."""
    draw(layer.weight, generator, lambda t: nn.init.trunc_normal_(t, std=std, generator=generator))
    if layer.bias is not None:
        layer.bias.zero_()
    if isinstance(layer, KeyMaskedLinear):
        layer.reset_mask()
