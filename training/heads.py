"""Projection heads: tokens to logits over prototypes, one head for the DINO loss and one for iBOT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of a projection head. The defaults are those of the official ImageNet-1k ViT-L recipe."""

    hidden: int = 2048
    """Width of the inner MLP layers."""
    bottleneck: int = 256
    """Width of the L2-normalised layer before the prototypes."""
    prototypes: int = 65536
    """K, the number of prototypes."""
    layers: int = 3
    """Linear layers of the MLP, the bottleneck one included."""
    weight_norm: bool = False
    """Prototypes as length times direction (DINO, iBOT, DINOv2); DINOv3 uses a plain linear layer."""
    norm_last_layer: bool = True
    """With `weight_norm`: keep all prototype lengths at 1 (DINO) instead of training them (DINOv2)."""

    def __post_init__(self) -> None:
        for name in ("hidden", "bottleneck", "prototypes", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"HeadConfig.{name} is {getattr(self, name)}; give an integer of at least 1.")


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows are `weight_g` (length, [K, 1]) times the direction of `weight_v` [K, D]."""

    def __init__(self, in_features: int, out_features: int, *, train_lengths: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_lengths)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., K]."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=-1))


class ProjectionHead(nn.Module):
    """MLP with GELU, L2 normalisation, prototypes. Keys: mlp.{0,2,4}.{weight,bias}, last_layer.weight.

    Weights are uninitialised until `init_weights` is called. Source: DINO appendix C; DINOv3 table of heads.
    """

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [in_dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        steps: list[nn.Module] = []
        device = torch.get_default_device()  # skip_init takes the CPU when not told
        for i, (a, b) in enumerate(pairwise(widths)):
            steps += [nn.GELU()] if i else []
            steps.append(nn.utils.skip_init(nn.Linear, a, b, device=device))  # which draws no random number
        self.mlp = nn.Sequential(*steps)
        if config.weight_norm:
            self.last_layer: nn.Module = WeightNormLinear(
                config.bottleneck, config.prototypes, train_lengths=not config.norm_last_layer
            )
        else:
            self.last_layer = nn.utils.skip_init(
                nn.Linear, config.bottleneck, config.prototypes, bias=False, device=device
            )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float | None = 0.02) -> None:
        """Truncated normal weights (cut at +-2 absolute), zero biases, prototype lengths 1.

        `std=None` takes 1 / sqrt(fan in) for each layer: with 0.02 the signal dies in a head a few hundred wide.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | WeightNormLinear):
                weight = module.weight_v if isinstance(module, WeightNormLinear) else module.weight
                scale = 1 / math.sqrt(weight.shape[1]) if std is None else std
                nn.init.trunc_normal_(weight, std=scale, a=-2.0, b=2.0, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, WeightNormLinear):
                module.weight_g.fill_(1.0)

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors before the prototypes: [..., in_dim] to [..., bottleneck]."""
        x = self.mlp(x)
        return F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not divided by any temperature: [..., in_dim] to [..., K]."""
        return self.last_layer(self.embed(x))
