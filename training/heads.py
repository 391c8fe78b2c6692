"""Heads: tokens to logits over prototypes (DINO, iBOT), or to the vectors that contrast compares (SimCLR, MoCo)."""

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

    @property
    def weight(self) -> Tensor:
        """The rows, [K, D]."""
        return self.weight_g * F.normalize(self.weight_v, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., K]."""
        return F.linear(x, self.weight)


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

    def prototypes(self) -> Tensor:
        """The matrix [K, bottleneck] that unit vectors are multiplied with; gradients flow into the weights."""
        return self.last_layer.weight  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not divided by any temperature: [..., in_dim] to [..., K]."""
        return self.last_layer(self.embed(x))


@dataclass(frozen=True, kw_only=True)
class EmbeddingHeadConfig:
    """Sizes of an MLP with ReLU between its layers. The defaults are MoCo v2's projection head."""

    hidden: int = 2048
    """Width of the inner layers."""
    out: int = 128
    """Width of the vectors that are compared."""
    layers: int = 2
    """Linear layers."""
    batch_norm: bool = False
    """BatchNorm after every layer, the last one without scale and shift, and no biases (MoCo v3)."""

    def __post_init__(self) -> None:
        for name in ("hidden", "out", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"EmbeddingHeadConfig.{name} is {getattr(self, name)}; give at least 1.")


class EmbeddingHead(nn.Module):
    """MLP of a contrastive objective. Keys: mlp.linear{i}.{weight,bias}, mlp.norm{i}.{weight,bias}.

    BatchNorm always uses the statistics of the batch at hand and keeps none: heads are never evaluated, and a step
    that is skipped leaves nothing behind. Weights are uninitialised until `init_weights` is called.
    Source: SimCLR section 2.1; MoCo v2 section 2; MoCo v3 section 3.
    """

    def __init__(self, in_dim: int, config: EmbeddingHeadConfig) -> None:
        super().__init__()
        widths = [in_dim, *[config.hidden] * (config.layers - 1), config.out]
        self.mlp = nn.Sequential()
        for i, (a, b) in enumerate(pairwise(widths)):
            last = i == config.layers - 1
            self.mlp.add_module(f"linear{i}", nn.utils.skip_init(nn.Linear, a, b, bias=not config.batch_norm))
            if config.batch_norm:
                self.mlp.add_module(f"norm{i}", nn.BatchNorm1d(b, affine=not last, track_running_stats=False))
            if not last:
                self.mlp.add_module(f"relu{i}", nn.ReLU())

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float | None = 0.02) -> None:
        """Truncated normal weights (cut at +-2 absolute), zero biases; BatchNorm starts at scale 1, shift 0.

        `std=None` takes sqrt(2 / fan in) for each layer, which keeps the signal's size through ReLU (He et al. 2015).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scale = math.sqrt(2 / module.weight.shape[1]) if std is None else std
                nn.init.trunc_normal_(module.weight, std=scale, a=-2.0, b=2.0, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] to [B, out], not normalised. With BatchNorm, B >= 2 (torch raises ValueError below)."""
        return self.mlp(x)
