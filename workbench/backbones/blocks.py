"""Transformer blocks over a packed batch: the tokens of all images of all crop groups as rows of one matrix.

Norms, linear layers and residuals do not care which image a token belongs to, so they run once over [N, D] whatever
mixture of image sizes is packed; only attention splits the rows into its groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.backbones.config import ViTConfig
from workbench.backbones.rope import Rotation, rotate


class Group(NamedTuple):
    """A run of rows in the packed matrix: `batch` images of `tokens` tokens each, image after image."""

    batch: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


class Kept(NamedTuple):
    """The share of a packed batch that one residual branch is computed on (batch-subset stochastic depth)."""

    rows: Tensor
    """[M] int64: kept rows of the packed matrix."""
    scale: Tensor
    """[M, 1]: images over images kept, for each row's group; makes the branch unbiased."""


class KeyMaskedLinear(nn.Linear):
    """A qkv projection whose bias is held at zero in its key third (a key bias shifts all logits of a query alike)."""

    bias_mask: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("bias_mask", torch.empty(out_features))
        self.reset_mask()
        self.register_load_state_dict_pre_hook(_check_mask)

    def reset_mask(self) -> None:
        """Ones for queries and values, zeros for keys."""
        self.bias_mask.fill_(1.0).chunk(3)[1].zero_()

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias * self.bias_mask)


def _check_mask(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Before loading: report a mask that is not the constant it must be, such as one saved before it was set."""
    errors: list[str] = rest[-1]
    mask = state.get(f"{prefix}bias_mask")
    if not isinstance(mask, Tensor) or mask.is_meta or mask.shape != module.bias_mask.shape:
        return  # a shape that does not fit is told by the loading itself
    query, key, value = mask.chunk(3)
    if not (query == 1).all() or (key != 0).any() or not (value == 1).all():
        errors.append(f"{prefix}bias_mask must be 1 for queries and values and 0 for keys; this one is something else.")


class Attention(nn.Module):
    """Multi-head self-attention within each image, queries and keys rotated by RoPE."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        masked = config.qkv_bias and config.mask_k_bias
        self.qkv = KeyMaskedLinear(dim, 3 * dim) if masked else nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, groups: list[Group], rotation: Rotation) -> Tensor:
        """Attention over packed tokens [N, D]; `rotation` holds one row a token ([N, 1, 1, head_dim])."""
        query, key, value = self._project(tokens, rotation)
        if len(groups) == 1:
            return self.proj(self._attend(query, key, value, groups[0]))
        sizes = [group.rows for group in groups]
        parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), groups, strict=True)
        return self.proj(torch.cat([self._attend(*part) for part in parts]))

    def weights(self, tokens: Tensor, group: Group, rotation: Rotation) -> Tensor:
        """Softmax attention weights [B, heads, T, T] of one group of packed tokens, in float32; rows sum to 1."""
        query, key, _ = self._project(tokens, rotation)
        query, key = (self._by_image(part, group).float() for part in (query, key))
        return (query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(dim=-1)

    def _project(self, tokens: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [N, heads, head_dim]."""
        qkv = self.qkv(tokens).view(-1, 3, self.num_heads, self.head_dim)
        query_key, value = qkv.split((2, 1), dim=1)
        query, key = rotate(query_key, rotation).unbind(1)
        return query, key, value.squeeze(1)

    def _by_image(self, part: Tensor, group: Group) -> Tensor:
        return part.view(group.batch, group.tokens, self.num_heads, self.head_dim).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
        query, key, value = (self._by_image(part, group) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(group.rows, -1)


class Mlp(nn.Module):
    """Linear, GELU (exact, erf), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x) (Shazeer, 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (CaiT)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class Block(nn.Module):
    """Pre-norm block: x + ls1(attn(norm1 x)), then x + ls2(mlp(norm2 x))."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, config.ffn_hidden
        assert hidden is not None
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim, config.layerscale) if config.layerscale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, hidden) if config.ffn == "mlp" else SwiGLU(dim, hidden)
        self.ls2 = LayerScale(dim, config.layerscale) if config.layerscale else nn.Identity()

    def forward(
        self, tokens: Tensor, groups: list[Group], rotation: Rotation, kept: tuple[Kept, Kept] | None = None
    ) -> Tensor:
        """Packed tokens [N, D] -> [N, D].

        With `kept` (one subset for attention, one for the FFN), each branch sees only its kept rows; `groups` and
        `rotation` then describe the kept rows.
        """
        if kept is None:
            tokens = add_branch(tokens, self.attn(self.norm1(tokens), groups, rotation), self.ls1)
            return add_branch(tokens, self.mlp(self.norm2(tokens)), self.ls2)
        for_attention, for_ffn = kept
        branch = self.attn(self.norm1(tokens.index_select(0, for_attention.rows)), groups, rotation)
        tokens = add_to_rows(tokens, self.ls1(branch), for_attention)
        branch = self.mlp(self.norm2(tokens.index_select(0, for_ffn.rows)))
        return add_to_rows(tokens, self.ls2(branch), for_ffn)


def add_branch(tokens: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
    """tokens + scale(branch), LayerScale and sum in one operation."""
    if isinstance(scale, LayerScale):
        return torch.addcmul(tokens, branch, scale.gamma)
    return tokens + branch


def add_to_rows(tokens: Tensor, branch: Tensor, kept: Kept) -> Tensor:
    """Add a branch computed on the kept rows, scaled up for the rows left out."""
    return tokens.index_add(0, kept.rows, (branch * kept.scale).to(tokens.dtype))
