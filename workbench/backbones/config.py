"""`ViTConfig`: everything that shapes a vision transformer, and the published sizes by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

LARGEST = {"depth": 1000, "embed_dim": 2**18}
"""Bounds far above any network, so that a record of unknown origin cannot ask for endless work before it is refused."""


def swiglu_hidden(embed_dim: int, ratio: float = 4.0, align: int = 8) -> int:
    """Hidden width of a SwiGLU FFN: floor(2/3 floor(dim ratio)), rounded up to a multiple of `align` (DINOv2, DINOv3).

    The factor 2/3 keeps its three matrices as large as the two of an MLP of the same ratio (Shazeer, 2020).
    """
    hidden = int(embed_dim * ratio) * 2 // 3
    return -(-hidden // align) * align


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of a `VisionTransformer` (DINOv3 family); sizes in tokens' channels unless said otherwise.

    `ffn_hidden=None` is resolved on construction, so a config always records a number; pass `ffn_hidden=None` again
    when `dataclasses.replace` changes `embed_dim` or `ffn`.
    Raises ValueError naming the field, the value seen and the values allowed.
    """

    patch_size: int = 16
    """Side of a square patch, pixels."""
    embed_dim: int = 384
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    ffn: Literal["mlp", "swiglu"] = "mlp"
    ffn_hidden: int | None = None
    """Hidden width of the FFN; None means 4 x embed_dim (mlp) or `swiglu_hidden(embed_dim)` (swiglu)."""
    num_registers: int = 0
    """Register tokens ("storage tokens" in DINOv3), between the class token and the patches."""
    qkv_bias: bool = True
    mask_k_bias: bool = False
    """Hold the key third of the qkv bias at zero; without effect when `qkv_bias` is false."""
    layerscale: float = 1e-5
    """Initial gamma of LayerScale; 0 leaves LayerScale out."""
    norm_eps: float = 1e-5
    local_cls_norm: bool = False
    """A norm of their own for class token and registers of local crops, in training only (DINOv3 7B)."""
    drop_path: float = 0.0
    """Share of samples skipped by each residual branch in training, the same in every block."""
    rope_base: float = 100.0
    rope_coords: Literal["separate", "min", "max"] = "separate"
    """What patch centres are divided by: each side by itself, or both by the shorter or longer side."""
    rope_shift: float | None = None
    """Training: add U(-s, s) to the coordinates, one draw an axis."""
    rope_jitter: float | None = None
    """Training: multiply the coordinates by exp U(-ln j, ln j), one draw an axis; j >= 1."""
    rope_rescale: float | None = None
    """Training: multiply both axes by one exp U(-ln r, ln r); r >= 1."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_sizes()
        self._check_rates()
        if self.ffn_hidden is None:
            hidden = 4 * self.embed_dim if self.ffn == "mlp" else swiglu_hidden(self.embed_dim)
            object.__setattr__(self, "ffn_hidden", hidden)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens ahead of the patches: the class token and the registers."""
        return 1 + self.num_registers

    def _check_choices(self) -> None:
        for name, allowed in (("ffn", ("mlp", "swiglu")), ("rope_coords", ("separate", "min", "max"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"ViTConfig.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}.")

    def _check_sizes(self) -> None:
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "ffn_hidden"):
            value = getattr(self, name)
            if value is None and name == "ffn_hidden":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ViTConfig.{name} is {value!r}; it must be a whole number of at least 1.")
            if value > LARGEST.get(name, value):
                raise ValueError(f"ViTConfig.{name} is {value}; it must be at most {LARGEST[name]}.")
        if not isinstance(self.num_registers, int) or self.num_registers < 0:
            raise ValueError(f"ViTConfig.num_registers is {self.num_registers!r}; it must be 0 or a positive number.")
        if self.embed_dim % self.num_heads:
            divisors = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % (4 * n) == 0]
            raise ValueError(
                f"ViTConfig.embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; "
                f"head counts that work here: {divisors}."
            )
        if self.head_dim % 4:
            raise ValueError(
                f"ViTConfig: embed_dim {self.embed_dim} / num_heads {self.num_heads} gives heads of {self.head_dim} "
                "channels; axial RoPE needs a multiple of 4. Change embed_dim or num_heads."
            )

    def _check_rates(self) -> None:
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"ViTConfig.drop_path is {self.drop_path}; it must lie in [0, 1).")
        if not 0.0 <= self.layerscale < math.inf:
            raise ValueError(f"ViTConfig.layerscale is {self.layerscale}; it must be 0 (none) or a number above it.")
        for name in ("norm_eps", "rope_base"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ViTConfig.{name} is {getattr(self, name)}; it must be greater than 0.")
        for name, least in (("rope_shift", 0.0), ("rope_jitter", 1.0), ("rope_rescale", 1.0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"ViTConfig.{name} is {value}; it must be None or at least {least:g}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields as a plain JSON tree, the `config` of `architecture.json`."""
        return dataclasses.asdict(self)

    # ---- published sizes (DINOv3 paper, table of released models): patch 16, four registers, RoPE rescale 2 ----

    @classmethod
    def vit_small(cls, **overrides: Any) -> ViTConfig:
        """ViT-S/16, 21.6 M parameters."""
        return cls(**(_released(384, 12, 6) | overrides))

    @classmethod
    def vit_small_plus(cls, **overrides: Any) -> ViTConfig:
        """ViT-S+/16 (SwiGLU), 28.7 M parameters."""
        return cls(**(_released(384, 12, 6) | {"ffn": "swiglu", "ffn_hidden": 1536} | overrides))

    @classmethod
    def vit_base(cls, **overrides: Any) -> ViTConfig:
        """ViT-B/16, 85.7 M parameters."""
        return cls(**(_released(768, 12, 12) | overrides))

    @classmethod
    def vit_large(cls, **overrides: Any) -> ViTConfig:
        """ViT-L/16, 303 M parameters."""
        return cls(**(_released(1024, 24, 16) | overrides))

    @classmethod
    def vit_large_plus(cls, **overrides: Any) -> ViTConfig:
        """ViT-L+/16 (SwiGLU), 404 M parameters."""
        return cls(**(_released(1024, 24, 16) | {"ffn": "swiglu", "ffn_hidden": 4096} | overrides))

    @classmethod
    def vit_huge_plus(cls, **overrides: Any) -> ViTConfig:
        """ViT-H+/16 (SwiGLU), 841 M parameters."""
        return cls(**(_released(1280, 32, 20) | {"ffn": "swiglu", "ffn_hidden": 5120} | overrides))

    @classmethod
    def vit_7b(cls, **overrides: Any) -> ViTConfig:
        """ViT-7B/16 (SwiGLU, no qkv bias, a norm of its own for local crops), 6.716 B parameters."""
        own = {"ffn": "swiglu", "ffn_hidden": 8192, "qkv_bias": False, "mask_k_bias": False, "local_cls_norm": True}
        return cls(**(_released(4096, 40, 32) | own | overrides))

    # ---- laptop sizes: trained from scratch on small pictures; LayerScale starts large enough to learn at once ----

    @classmethod
    def vit_nano(cls, **overrides: Any) -> ViTConfig:
        """96 channels, 4 blocks, patch 8: 0.46 M parameters, for two CPU cores."""
        return cls(**({"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "layerscale": 0.5} | overrides))

    @classmethod
    def vit_micro(cls, **overrides: Any) -> ViTConfig:
        """128 channels, 6 blocks, patch 8: 1.2 M parameters."""
        return cls(**({"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "layerscale": 0.5} | overrides))

    @classmethod
    def vit_tiny(cls, **overrides: Any) -> ViTConfig:
        """ViT-Ti/16 (DeiT's size): 192 channels, 12 blocks, 5.5 M parameters; LayerScale 0.1 as CaiT at this depth."""
        return cls(**({"embed_dim": 192, "depth": 12, "num_heads": 3, "layerscale": 0.1} | overrides))


def _released(embed_dim: int, depth: int, num_heads: int) -> dict[str, Any]:
    """What all released DINOv3 vision transformers share."""
    shared = {"num_registers": 4, "mask_k_bias": True, "rope_rescale": 2.0}
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads} | shared
