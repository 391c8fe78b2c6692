"""The backbone that ships with the workbench: trained on pictures whose licence is stated, in under an hour of CPU."""

from __future__ import annotations

from training.config import TrainConfig
from training.data.batch import BatchConfig
from training.data.sources import ScenesConfig
from training.recipes.laptop_parts import laptop_crops, laptop_optim, laptop_pretrain
from training.schedules import Schedule, constant
from training.trainer import LoopConfig
from workbench.scenes import SceneConfig


def cpu_backbone() -> TrainConfig:
    """A small backbone for the first look: all cut-outs of a pack whose licence is stated, a calm rate, many steps.

    DINO with Sinkhorn-Knopp and KoLeo on a ViT of 0.5 M parameters, as `cpu_real`, with half its peak rate and a tenth
    of its weight decay: at a hot constant rate and high decay dense features peak and decline. A quarter of the
    identities is held out of training. Leaves out files whose rights are unclear or not itemised.
    Expected: about 35 CPU-minutes on one thread. Scores: the model card of the backbone.
    Command: python -m training pretrain cpu_backbone --data.library PACK --run runs/backbone
    """
    return TrainConfig(
        recipe="cpu_backbone",
        data=ScenesConfig(
            library="data",
            skip_licences=("RIGHTS UNCLEAR", "not itemised"),
            count=8192,
            scene=SceneConfig(objects=(1, 3)),
        ),
        augment=laptop_crops(),
        batch=BatchConfig(batch_size=32, workers=1),
        objective=laptop_pretrain(prototypes=256, momentum=Schedule(start=0.9, peak=0.99, warmup_steps=300)),
        optim=laptop_optim(
            lr=Schedule(peak=2e-3, end=1e-4, warmup_steps=200, shape="cosine"), weight_decay=constant(0.04)
        ),
        loop=LoopConfig(
            steps=6000, log_every=20, probe_every=500, evaluate_every=500, save_every=250, keep_every=1000, threads=1
        ),
    )
