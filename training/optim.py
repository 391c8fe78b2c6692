"""AdamW as the DINO family uses it: layer-wise learning rates, selective weight decay, clipping per sub-module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from training.schedules import LrScaling, Schedule, scaled_learning_rate, to_steps

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_INPUT_TOKENS = ("patch_embed", "cls_token", "storage_tokens", "mask_token", "pos_embed")
_NOT_DECAYED = ("norm", "gamma", "fourier_w")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedules. The defaults are those of the official ImageNet-1k ViT-L recipe."""

    lr: Schedule = field(
        default_factory=lambda: Schedule(peak=1e-3, end=1e-6, warmup_steps=0.1, shape="cosine", convention="v1")
    )
    """Learning rate before the batch-size rule."""
    weight_decay: Schedule = field(default_factory=lambda: Schedule(peak=0.04, end=0.4, shape="cosine"))
    lr_scaling: LrScaling = "sqrt_wrt_1024"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 0.9
    """Learning-rate factor from one block to the one below it; 1 switches it off."""
    patch_embed_lr_multiplier: float = 0.2
    clip_norm: float | None = 3.0
    """Largest L2 norm of the gradient of each sub-module; None does not clip."""
    freeze_last_layer_steps: int | float = 0.01
    """The prototypes of the heads have learning rate 0 for so many steps (a float below 1: fraction of the run)."""
    freeze_backbone_steps: int | float = 0
    """The backbone has learning rate 0 for so many steps (or a fraction): new heads learn on features that stay."""
    backbone_lr_multiplier: float = 1.0
    """Of the backbone's learning rate afterwards."""

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"OptimConfig.clip_norm is {self.clip_norm}; give a positive norm, or None not to clip.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"OptimConfig.layer_decay is {self.layer_decay}; it must lie in (0, 1].")
        for name in ("freeze_last_layer_steps", "freeze_backbone_steps", "backbone_lr_multiplier"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"OptimConfig.{name} is {getattr(self, name)}; it must be 0 or more.")

    def resolve(self, total_steps: int, batch_size: int) -> OptimConfig:
        """For a run of `total_steps` steps with `batch_size` images a step over all processes.

        Schedules get whole steps, the learning rate its batch-size factor; `lr_scaling` of the result is "none".
        """
        factor = scaled_learning_rate(1.0, batch_size, self.lr_scaling)
        return replace(
            self,
            lr=self.lr.scaled(factor).resolve(total_steps),
            weight_decay=self.weight_decay.resolve(total_steps),
            freeze_last_layer_steps=to_steps(self.freeze_last_layer_steps, total_steps),
            freeze_backbone_steps=to_steps(self.freeze_backbone_steps, total_steps),
            lr_scaling="none",
        )

    def rates(self, step: int) -> dict[str, float]:
        """{"lr", "weight_decay", "last_layer_lr", "backbone_lr"} of a resolved config at `step`, for `set_rates`."""
        lr = self.lr(step)
        return {
            "lr": lr,
            "weight_decay": self.weight_decay(step),
            "last_layer_lr": 0.0 if step < self.freeze_last_layer_steps else lr,
            "backbone_lr": 0.0 if step < self.freeze_backbone_steps else lr * self.backbone_lr_multiplier,
        }


def parameter_groups(
    modules: Mapping[str, nn.Module],
    *,
    depth: int,
    layer_decay: float,
    patch_embed_lr_multiplier: float,
) -> list[dict[str, Any]]:
    """Trainable parameters of all `modules`, grouped by lr multiplier, weight-decay multiplier and kind of layer.

    Each group has "params", "names" (module.parameter), "lr_multiplier", "wd_multiplier", "is_last_layer" and
    "is_backbone" (the module's name ends in "backbone"). Groups and their members come in the order in which they are
    met: the same modules give the same list. With d the `layer_decay` and L the `depth`, in modules that have blocks:
    patch embedding and class, storage and mask tokens d^(L+1), block i d^(L-i), the rest 1; other modules (heads,
    ConvNeXt) 1; a patch embedding additionally `patch_embed_lr_multiplier`. Biases, norms and LayerScale's gammas are
    not decayed; tokens are, as in the released code (DINOv2, DINOv3). Parameters shared between modules are taken once.

    Raises ValueError when a block index reaches `depth` or nothing is trainable.
    """
    groups: dict[tuple[float, float, bool, bool], dict[str, Any]] = {}
    seen: set[int] = set()
    for module_name, module in modules.items():
        named = list(module.named_parameters())
        layered = any(_BLOCK.search(name) for name, _ in named)
        for name, parameter in named:
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            lr = lr_multiplier(name, depth=depth, layer_decay=layer_decay) if layered else 1.0
            lr *= patch_embed_lr_multiplier if "patch_embed" in name else 1.0
            key = (lr, wd_multiplier(name), "last_layer" in name, module_name.endswith("backbone"))
            fresh = {"params": [], "names": [], **dict(zip(_KEYS, key, strict=True))}
            group = groups.setdefault(key, fresh)
            group["params"].append(parameter)
            group["names"].append(f"{module_name}.{name}")
    if not groups:
        raise ValueError(f"no trainable parameter in {', '.join(modules) or 'no modules'}; unfreeze at least one.")
    return list(groups.values())


_KEYS = ("lr_multiplier", "wd_multiplier", "is_last_layer", "is_backbone")


def lr_multiplier(name: str, *, depth: int, layer_decay: float) -> float:
    """Layer-decay factor of parameter `name` of a vision transformer with `depth` blocks (see `parameter_groups`)."""
    block = _BLOCK.search(name)
    if block:
        index = int(block.group(1))
        if index >= depth:
            raise ValueError(f"{name} belongs to block {index}, but depth is {depth}; pass the depth of this backbone.")
        return layer_decay ** (depth - index)
    if any(token in name for token in _INPUT_TOKENS):
        return layer_decay ** (depth + 1)
    return 1.0


def wd_multiplier(name: str) -> float:
    """0 for biases, norms and LayerScale's gammas, by name as in the released code; 1 for all else."""
    return 0.0 if name.endswith("bias") or any(part in name for part in _NOT_DECAYED) else 1.0


def build_optimizer(modules: Mapping[str, nn.Module], config: OptimConfig, depth: int) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups` of `modules`; all rates are 0 until `set_rates` is called."""
    groups = parameter_groups(
        modules,
        depth=depth,
        layer_decay=config.layer_decay,
        patch_embed_lr_multiplier=config.patch_embed_lr_multiplier,
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    weight_decay: float,
    last_layer_lr: float,
    backbone_lr: float | None = None,
) -> None:
    """Set each group's learning rate and weight decay, times its multipliers.

    Prototypes take `last_layer_lr`, the backbone `backbone_lr` (None: `lr`).
    """
    backbone_lr = lr if backbone_lr is None else backbone_lr
    for group in optimizer.param_groups:
        own = backbone_lr if group["is_backbone"] else last_layer_lr if group["is_last_layer"] else lr
        group["lr"] = own * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip_gradients(modules: Mapping[str, nn.Module], max_norm: float | None) -> dict[str, Tensor]:
    """Scale the gradients of each module so that its L2 norm is at most `max_norm`; None leaves them alone.

    Returns each module's norm before clipping, as a tensor on the device of the gradients (reading it waits for the
    device), 0 when it has no gradients. A NaN or infinite gradient makes its module's norm not finite, and clipping
    such gradients makes them NaN: ask `all_finite` before the optimizer's step.
    """
    norms: dict[str, Tensor] = {}
    for name, module in modules.items():
        parameters = [p for p in module.parameters() if p.grad is not None]
        norms[name] = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None and not math.isinf(max_norm) and parameters:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norms[name])
    return norms


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether all given scalars (losses, gradient norms) are finite, with one wait for the device."""
    numbers = [value.detach().float().reshape(()) for value in values]
    if not numbers:
        return True
    return bool(torch.isfinite(torch.stack([n.to(numbers[0].device) for n in numbers])).all())
