"""Six objectives on one base: the recipe's name decides the objective, and all else is the same for all of them.

Same scenes (those of `cpu_real`), ViT of 0.5 M parameters, seeds and 600 steps of 32 images; results in
docs/objectives.md. The contrastive ones see the two global crops, which is what they compare; the DINO ones
see four local crops more. AdamW's peak rate is 4e-3 with Sinkhorn-Knopp and 1e-3 for the others, which learn little at
four times that (docs/log.md). Below them DINO and DINOv2 at the size and with the figures of their papers.
"""

from __future__ import annotations

from dataclasses import replace

from training.config import Objectives, TrainConfig
from training.data.augment import AugmentConfig
from training.data.batch import BatchConfig
from training.data.masking import MaskConfig
from training.data.sources import FolderConfig
from training.evaluation.plan import EvaluationConfig
from training.evaluation.suite import SuiteConfig
from training.heads import EmbeddingHeadConfig, HeadConfig
from training.optim import OptimConfig
from training.phases.contrast import ContrastConfig
from training.phases.pretrain import PretrainConfig
from training.recipes.laptop_parts import cutout_scenes, laptop_crops, laptop_optim, laptop_pretrain
from training.schedules import Schedule, constant
from training.trainer import LoopConfig
from workbench.backbones import ViTConfig


def _compared(recipe: str, objective: Objectives, **changes) -> TrainConfig:
    """The common base; `changes` are what an objective cannot do without."""
    parts = {
        "data": cutout_scenes(),
        "augment": laptop_crops(),
        "batch": BatchConfig(batch_size=32, workers=1),
        "optim": laptop_optim(),
        "loop": LoopConfig(steps=600, log_every=20, probe_every=100, evaluate_every=100, save_every=100, threads=1),
    }
    return TrainConfig(recipe=recipe, objective=objective, **(parts | changes))


def _contrast(recipe: str, **changes) -> TrainConfig:
    """A contrastive objective; its heads are as wide as DINO's, and BatchNorm is where the papers have it."""
    head = EmbeddingHeadConfig(hidden=256, out=64, batch_norm=True)
    parts = {
        "backbone": ViTConfig.vit_nano(),
        "projector": head,
        "predictor": head,
        "initialisation": "fan-in",
        "temperature": 0.2,
        "momentum": constant(0.99),
    }
    return _compared(
        recipe, ContrastConfig(**(parts | changes)), augment=laptop_crops(local_crops=0), optim=_gentle(warmup=0.03)
    )


def _gentle(warmup: float, **changes) -> OptimConfig:
    """A quarter of the rate that Sinkhorn-Knopp bears, the same decay."""
    return laptop_optim(lr=Schedule(peak=1e-3, end=5e-5, warmup_steps=warmup, shape="cosine"), **changes)


def cpu_dinov1() -> TrainConfig:
    """DINO: centering and sharpening, no patch loss.

    arXiv 2104.14294. Softmax with a moving centre, prototypes of length 1 (weight-normed) that are frozen at first, no
    iBOT, no KoLeo. The learning rate rises over a fifth of the run and the teacher follows slowly (0.996, as in the
    paper): else all images gather in a few prototypes before the centre can follow. The bottleneck is the paper's 256:
    at 64, a temperature of 0.04 is twice as sharp at the start (docs/log.md). Expected: about 4 CPU-minutes on one
    thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_dinov1 --data.library PATH --run runs/dinov1
    """
    head = HeadConfig(hidden=256, bottleneck=256, prototypes=128, weight_norm=True, norm_last_layer=True)
    objective = laptop_pretrain(
        dino_head=head,
        ibot_head=head,
        centering="softmax",
        koleo_weight=0.0,
        teacher_temperature=constant(0.04),
        momentum=constant(0.996),
    )
    return _compared("cpu_dinov1", objective, optim=_gentle(warmup=0.2, freeze_last_layer_steps=0.05))


def cpu_dinov2() -> TrainConfig:
    """DINOv2: Sinkhorn-Knopp, a patch loss with a head of its own, KoLeo, weight-normed prototypes.

    arXiv 2304.07193. Prototype lengths are trained; masks are blocks of a random size in each bin. iBOT at 0.3, ramped,
    where the paper has 1 from the start: an untrained patch head smooths a narrow network (docs/log.md).
    Expected: about 4 CPU-minutes on one thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_dinov2 --data.library PATH --run runs/dinov2
    """
    head = HeadConfig(hidden=256, bottleneck=64, prototypes=128, weight_norm=True, norm_last_layer=False)
    objective = laptop_pretrain(
        dino_head=replace(head, bottleneck=96), ibot_head=head, ibot_weight=0.3, ibot_warmup_steps=0.25
    )
    return _compared("cpu_dinov2", objective, masks=MaskConfig(exact=False))


def cpu_dinov3() -> TrainConfig:
    """DINOv3's first stage: as DINOv2, with plain prototypes and masks of an exact size.

    arXiv 2508.10104. As `cpu_real` with a patch loss; iBOT at 0.3, ramped (see `cpu_dinov2`). No Gram anchoring, which
    belongs to the second stage. Expected: about 4 CPU-minutes on one thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_dinov3 --data.library PATH --run runs/dinov3
    """
    return _compared("cpu_dinov3", laptop_pretrain(ibot_weight=0.3, ibot_warmup_steps=0.25), masks=MaskConfig())


def cpu_simclr() -> TrainConfig:
    """SimCLR: every other view of the batch is a negative; no teacher.

    arXiv 2002.05709. 62 negatives a view, where the paper has thousands. The trained encoder is evaluated, as
    `student`.
    Expected: about 3 CPU-minutes on one thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_simclr --data.library PATH --run runs/simclr
    """
    return _contrast("cpu_simclr", method="simclr")


def cpu_mocov2() -> TrainConfig:
    """MoCo v2: a query finds its key among the keys of earlier batches.

    arXiv 1911.05722, 2003.04297. 256 keys, 8 batches back (the paper: 65,536): with 42 objects a longer queue is full
    of the query's own. The MLP has the BatchNorm of the other two, which the paper's has not: without it the class
    tokens of a narrow network stay too alike (docs/log.md). It is not shuffled, there being one process. The trained
    encoder is evaluated, as `student`; the momentum encoder is published as `teacher`.
    Expected: about 2 CPU-minutes on one thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_mocov2 --data.library PATH --run runs/mocov2
    """
    return _contrast("cpu_mocov2", method="moco_v2", queue_length=256)


def cpu_mocov3() -> TrainConfig:
    """MoCo v3: both views ask the momentum encoder, through a predictor; the keys of the batch are the negatives.

    arXiv 2104.02057. The patch projection is trained: `--objective.freeze-patch-embed` is the paper's cure for spikes
    of the gradient. The trained encoder is evaluated, as `student`; the momentum encoder is published as
    `teacher`. Expected: about 3 CPU-minutes on one thread; scores in docs/objectives.md.
    Command: python -m training pretrain cpu_mocov3 --data.library PATH --run runs/mocov3
    """
    head = EmbeddingHeadConfig(hidden=256, out=64, layers=3, batch_norm=True)
    return _contrast("cpu_mocov3", method="moco_v3", projector=head)


def _imagenet(epoch: int) -> dict:
    """Data, cadence and evaluation of a run on a folder of ImageNet's size; `epoch` in steps."""
    return {
        "data": FolderConfig(path="imagenet/train", short_side=512),
        "loop": LoopConfig(
            steps=100 * epoch,
            log_every=50,
            probe_every=epoch,
            evaluate_every=5 * epoch,
            save_every=3 * epoch,
            precision="bf16",
        ),
        "evaluation": EvaluationConfig(suite=SuiteConfig(size=224), probe_size=(224, 224)),
    }


def vits16_dinov1() -> TrainConfig:
    """DINO's ViT-S/16 on ImageNet-1k, the figures of the paper and its released code.

    arXiv 2104.14294. 100 epochs of batch 1024 (the paper's batch; the released command: 512 on one node, k-NN 69.3,
    linear 73.8; 800 epochs: 74.5 and 77.0). Defaults of the code where the paper leaves room: teacher temperature 0.04
    (paper: 0.04 to 0.07 over 30 epochs), prototypes of length 1 (the long ViT-S runs train the lengths:
    --objective.dino-head.no-norm-last-layer). Differs: RoPE and LayerScale in the network, stochastic depth the same
    in every block (DINO: rising to 0.1), a blur kernel of 9 pixels instead of a PIL radius.
    Command: python -m training pretrain vits16_dinov1 --data.path /data/imagenet/train --run runs/vits16-dinov1
    """
    head = HeadConfig(hidden=2048, bottleneck=256, prototypes=65536, weight_norm=True, norm_last_layer=True)
    return TrainConfig(
        recipe="vits16_dinov1",
        augment=AugmentConfig.paper_blur(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
        batch=BatchConfig(batch_size=1024, workers=10),
        objective=PretrainConfig(
            backbone=ViTConfig.vit_small(
                num_registers=0, mask_k_bias=False, norm_eps=1e-6, drop_path=0.1, rope_rescale=None
            ),
            dino_head=head,
            ibot_head=replace(head, prototypes=1),  # not trained
            ibot_weight=0.0,
            koleo_weight=0.0,
            centering="softmax",
            teacher_temperature=constant(0.04),
            momentum=Schedule(peak=0.996, end=1.0, shape="cosine"),
        ),
        optim=OptimConfig(
            lr=Schedule(peak=5e-4, end=1e-6, warmup_steps=0.1, shape="cosine"),
            lr_scaling="linear_wrt_256",
            layer_decay=1.0,
            patch_embed_lr_multiplier=1.0,
        ),
        **_imagenet(epoch=1251),
    )


def vitl16_dinov2() -> TrainConfig:
    """DINOv2's ViT-L from scratch, the figures of the released recipe (vitl14.yaml).

    arXiv 2304.07193. Global batch 3072, 625,000 steps on 96 GPUs; the paper's ViT-L/14 from scratch on ImageNet-22k:
    k-NN 82.0, linear 84.5. This version trains in one process. Where code and paper differ this is the code: KoLeo on
    both global crops (paper: the first), effective blur 0, 0.9, 0.5 (paper: 1, 0.1, 0.5; see `AugmentConfig`), iBOT
    bottleneck 256. Differs: patches of 16 pixels with local crops of 96 (yaml: 14 and 98), RoPE instead of learned
    positions, AdamW in bf16 instead of fp16.
    Command: python -m training pretrain vitl16_dinov2 --data.path /data/imagenet/train --run runs/vitl16-dinov2
    """
    head = HeadConfig(hidden=2048, bottleneck=256, prototypes=131072, weight_norm=True, norm_last_layer=False)
    base = _imagenet(epoch=1250)
    return TrainConfig(
        recipe="vitl16_dinov2",
        masks=MaskConfig(exact=False),
        batch=BatchConfig(batch_size=3072, workers=10),
        objective=PretrainConfig(
            backbone=ViTConfig.vit_large(
                ffn="swiglu",
                num_registers=0,
                mask_k_bias=False,
                norm_eps=1e-6,
                drop_path=0.4,
                rope_rescale=None,
            ),
            dino_head=replace(head, bottleneck=384),
            ibot_head=head,
            koleo_group=32,
            teacher_temperature=Schedule(start=0.04, peak=0.07, warmup_steps=0.06),
            momentum=Schedule(peak=0.994, end=1.0, shape="cosine"),
        ),
        optim=OptimConfig(
            lr=Schedule(peak=2e-4, end=1e-6, warmup_steps=0.16, shape="cosine"),
            weight_decay=Schedule(peak=0.04, end=0.2, shape="cosine"),
            lr_scaling="sqrt_wrt_1024_dinov2",
            layer_decay=1.0,
            freeze_last_layer_steps=0.002,
        ),
        **(base | {"loop": replace(base["loop"], steps=500 * 1250)}),
    )
