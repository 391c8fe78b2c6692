"""What the recipes for two CPU cores share: scenes, crops, the DINO objective on a narrow ViT, the optimizer."""

from __future__ import annotations

from typing import Any

from training.data.augment import AugmentConfig
from training.data.sources import ScenesConfig
from training.heads import HeadConfig
from training.optim import OptimConfig
from training.phases.pretrain import PretrainConfig
from training.schedules import Schedule, constant
from workbench.backbones import ViTConfig
from workbench.scenes import SceneConfig


def cutout_scenes() -> ScenesConfig:
    """4,000 scenes of a pack of labelled cut-outs (`--data.library PATH`), reduced to 42 objects of 14 categories."""
    return ScenesConfig(
        library="data", classes=14, per_class=3, backgrounds=15, count=4000, scene=SceneConfig(objects=(1, 2))
    )


def laptop_crops(**changes) -> AugmentConfig:
    """Crops for scenes of 112 pixels on a CPU: as small as 8-pixel patches allow, with DINO's colour jitter."""
    crops = {
        "global_size": 48,
        "local_size": 24,
        "local_crops": 4,
        "global_scale": (0.4, 1.0),
        "local_scale": (0.1, 0.4),
        "blur_global2": 0.1,
        "blur_local": 0.1,
        "solarize": 0.0,
    }
    return AugmentConfig(**(crops | changes))


def laptop_networks(prototypes: int = 128) -> dict[str, Any]:
    """DINO and KoLeo on a narrow ViT. No iBOT: it costs time and brought nothing by step 500 (docs/log.md)."""
    head = HeadConfig(hidden=256, bottleneck=64, prototypes=prototypes)
    return {
        "backbone": ViTConfig.vit_nano(),
        "dino_head": head,
        "ibot_head": head,
        "initialisation": "fan-in",
        "ibot_weight": 0.0,
        "koleo_weight": 0.1,
        "teacher_temperature": constant(0.03),
        "momentum": laptop_momentum(),
    }


def laptop_pretrain(prototypes: int = 128, **changes) -> PretrainConfig:
    """`laptop_networks` as an objective, with `changes` to its fields."""
    return PretrainConfig(**(laptop_networks(prototypes) | changes))


def laptop_momentum() -> Schedule:
    """EMA of the teacher in a short run: it follows closely at first and averages over about 100 steps later."""
    return Schedule(start=0.9, peak=0.99, warmup_steps=0.05)


def laptop_optim(**changes) -> OptimConfig:
    """AdamW for a narrow ViT and 32 images a step."""
    parts = {
        "lr": Schedule(peak=4e-3, end=2e-4, warmup_steps=0.03, shape="cosine"),
        "weight_decay": constant(0.4),
        "lr_scaling": "none",
        "betas": (0.9, 0.99),
        "layer_decay": 1.0,
        "patch_embed_lr_multiplier": 1.0,
        "freeze_last_layer_steps": 0,
    }
    return OptimConfig(**(parts | changes))
