"""`ConvNeXt`: the convolutional networks distilled in DINOv3, with the same `Features` contract as the transformers.

Parameter names are the official DINOv3 ones, so an official backbone checkpoint loads with `strict=True`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.backbones import initialise
from workbench.backbones.config import LARGEST
from workbench.backbones.packing import block_index, check_images
from workbench.features import Features

STRIDES = (4, 8, 16, 32)
"""Pixels between neighbouring positions after each stage."""
STRIDE = STRIDES[-1]
FINAL_NORM_ALIAS = "norms.3."
"""A second name that official checkpoints carry for `norm.`, the one LayerNorm after the last stage."""


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """Architecture of a `ConvNeXt`. Raises ValueError naming the field, the value seen and the values allowed."""

    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of the four stages."""
    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks of the four stages."""
    layerscale: float = 1e-6
    """Initial gain of every residual branch."""
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    """Share of samples skipped by the last block in training; the first block skips none, in between it is linear."""
    patch_size: int | None = None
    """Evaluation only: resize all maps to one position every `patch_size` pixels; None keeps each stage's stride."""

    def __post_init__(self) -> None:
        for name in ("dims", "depths"):
            values = tuple(getattr(self, name))
            if len(values) != len(STRIDES) or not all(isinstance(value, int) and value >= 1 for value in values):
                raise ValueError(f"ConvNeXtConfig.{name} is {values}; it must be four whole numbers of at least 1.")
            object.__setattr__(self, name, values)
        if max(self.depths) > LARGEST["depth"]:
            raise ValueError(f"ConvNeXtConfig.depths is {self.depths}; none may be above {LARGEST['depth']}.")
        if not self.norm_eps > 0:
            raise ValueError(f"ConvNeXtConfig.norm_eps is {self.norm_eps}; it must be greater than 0.")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"ConvNeXtConfig.drop_path is {self.drop_path}; it must lie in [0, 1).")
        allowed = [step for step in range(1, STRIDE + 1) if STRIDE % step == 0]
        if self.patch_size is not None and self.patch_size not in allowed:
            raise ValueError(f"ConvNeXtConfig.patch_size is {self.patch_size}; it must be None or one of {allowed}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields as a plain JSON tree, the `config` of `architecture.json`."""
        fields = dataclasses.asdict(self)
        return fields | {"dims": list(self.dims), "depths": list(self.depths)}

    # ---- published sizes (DINOv3 paper, table of released models) ----

    @classmethod
    def tiny(cls, **overrides: Any) -> ConvNeXtConfig:
        """ConvNeXt-T, 27.8 M parameters."""
        return cls(**overrides)

    @classmethod
    def small(cls, **overrides: Any) -> ConvNeXtConfig:
        """ConvNeXt-S, 49.5 M parameters."""
        return cls(**(_released(96) | overrides))

    @classmethod
    def base(cls, **overrides: Any) -> ConvNeXtConfig:
        """ConvNeXt-B, 87.6 M parameters."""
        return cls(**(_released(128) | overrides))

    @classmethod
    def large(cls, **overrides: Any) -> ConvNeXtConfig:
        """ConvNeXt-L, 196.2 M parameters."""
        return cls(**(_released(192) | overrides))


def _released(width: int) -> dict[str, Any]:
    """The published sizes above the smallest: channels double at each stage, the third has 27 blocks."""
    return {"dims": (width, 2 * width, 4 * width, 8 * width), "depths": (3, 3, 27, 3)}


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gamma * mlp(norm(depthwise 7x7 convolution of x)) (ConvNeXt, arXiv 2201.03545, figure 4)."""

    def __init__(self, dim: int, *, layerscale: float, norm_eps: float) -> None:
        super().__init__()
        self.initial = layerscale
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layerscale))

    def forward(self, maps: Tensor, gain: Tensor | None = None) -> Tensor:
        """Maps [B, C, H, W] -> the same shape; `gain` [B, 1, 1, 1] multiplies the branch (stochastic depth)."""
        branch = self.norm(self.dwconv(maps).permute(0, 2, 3, 1))
        branch = self.pwconv2(F.gelu(self.pwconv1(branch))) * self.gamma
        branch = branch.permute(0, 3, 1, 2)
        return maps + (branch if gain is None else branch * gain)


class ConvNeXt(nn.Module):
    """ConvNeXt as a `Backbone`: `patches` are the last map, `cls` its mean, both after one shared LayerNorm.

    Args:
        config: the architecture.
        generator: source of the initial weights, kept as `self.generator`; None means a fresh one seeded with 0.
            Under `with torch.device("meta")` nothing is allocated or drawn (see `VisionTransformer`).

    Attributes:
        patch_size: pixels between neighbouring features: 32, or the config's `patch_size`. Image sides must be
            multiples of 32 either way.
        embed_dim: channels of the last stage. depth: stages (4); `layer` counts these.
        generator: the (CPU) torch.Generator that stochastic depth draws from. It is no part of the state dict.
    """

    def __init__(self, config: ConvNeXtConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.patch_size, self.embed_dim, self.depth = config.patch_size or STRIDE, config.dims[-1], len(STRIDES)
        self.generator: torch.Generator | None = generator or torch.Generator().manual_seed(0)
        device = torch.get_default_device()
        with torch.device("meta"):  # nothing is allocated twice or drawn from the global generator
            self._build(config)
        self.register_load_state_dict_pre_hook(_drop_norm_alias)
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights(self.generator)

    def _build(self, config: ConvNeXtConfig) -> None:
        dims, eps = config.dims, config.norm_eps
        stem = nn.Sequential(nn.Conv2d(3, dims[0], kernel_size=4, stride=4), MapNorm(dims[0], eps=eps))
        between = [
            nn.Sequential(MapNorm(below, eps=eps), nn.Conv2d(below, above, kernel_size=2, stride=2))
            for below, above in itertools.pairwise(dims)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(dim, layerscale=config.layerscale, norm_eps=eps) for _ in range(depth)))
            for dim, depth in zip(dims, config.depths, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=eps)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float = 0.02) -> None:
        """Fill every parameter: convolutions and linear layers normal(0, std) cut at +-2, biases 0, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                initialise.fill_linear(module, generator, std)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, ConvNeXtBlock):
                module.gamma.fill_(module.initial)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features:
        """Features of normalised images [B, 3, h, w] (pixels) after the last stage.

        `masks` are taken for the sake of the contract and change nothing: a convolutional network has no mask token.
        """
        return self.features(images)

    def forward_groups(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Features of several groups of crops, each [B_i, 3, h_i, w_i]; the same as one `forward` a group."""
        return [self.features(group) for group in images]

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """Features of normalised images [B, 3, h, w] after stage `layer`, on a grid of stride 4, 8, 16 or 32.

        The final norm belongs to the last stage alone: earlier stages have other channel counts and come as they are.
        With `config.patch_size`, in evaluation mode, the map of any stage is resized (bilinear, antialiased) to
        [h / patch_size, w / patch_size] before the norm; `cls` is the mean of the map before resizing.
        Raises ValueError for sides that are no multiples of 32, an unknown layer, and `attention=True`.
        """
        if attention:
            raise ValueError("a ConvNeXt has no attention weights; call features(..., attention=False).")
        index = block_index(layer, self.depth, unit="stages")
        check_images(images, None, STRIDE, unit="stride")
        maps = self._maps(images, stages=index + 1)
        cls, patches = maps.mean(dim=(2, 3)), self._resized(maps, images).permute(0, 2, 3, 1)
        if index == self.depth - 1:
            cls, patches = self.norm(cls), self.norm(patches)
        return Features(patches, cls, cls.new_zeros(len(cls), 0, cls.shape[-1]))

    def _maps(self, images: Tensor, *, stages: int) -> Tensor:
        """[B, 3, h, w] -> [B, C, H, W] after `stages` stages."""
        rates = torch.linspace(0.0, self.config.drop_path, sum(self.config.depths), device="cpu").tolist()
        maps = images.contiguous(memory_format=torch.channels_last)
        for index in range(stages):
            maps = self.downsample_layers[index](maps)
            for block in cast(nn.Sequential, self.stages[index]):
                maps = block(maps, self._gain(rates.pop(0), maps))
        return maps

    def _gain(self, rate: float, maps: Tensor) -> Tensor | None:
        """[B, 1, 1, 1]: 0 for the samples that skip a branch, 1 / (1 - rate) for the others; None for no skipping."""
        if not (self.training and rate > 0):
            return None
        if self.generator is None:
            raise ValueError("stochastic depth needs `model.generator = torch.Generator().manual_seed(seed)`.")
        drawn = torch.rand(len(maps), 1, 1, 1, generator=self.generator, device=self.generator.device)
        return ((drawn >= rate) / (1.0 - rate)).to(maps)

    def _resized(self, maps: Tensor, images: Tensor) -> Tensor:
        step = self.config.patch_size
        if step is None or self.training:
            return maps
        size = (images.shape[2] // step, images.shape[3] // step)
        return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", antialias=True)


def _drop_norm_alias(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before loading: leave out the alias of the final norm, or report it when it is something else."""
    errors: list[str] = rest[-1]
    for name in ("weight", "bias"):
        alias = state.pop(f"{prefix}{FINAL_NORM_ALIAS}{name}", None)
        norm = state.get(f"{prefix}norm.{name}")
        if alias is not None and norm is not None and not torch.equal(alias, norm):
            errors.append(f"{FINAL_NORM_ALIAS}{name} differs from norm.{name}; they are one tensor under two names.")
