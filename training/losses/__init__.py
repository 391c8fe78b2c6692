"""Self-supervised losses as pure functions: tensors in, one scalar out. They know no config, model or device.

Every loss computes in float32 (float64 when given float64), whatever the autocast state and the input dtype.
"""

from __future__ import annotations

from training.losses.centering import softmax_center, update_center
from training.losses.contrastive import clip_loss, info_nce_loss, nt_xent_loss
from training.losses.cross_entropy import PrototypeLogits
from training.losses.dino import dino_loss
from training.losses.dse import dse_loss
from training.losses.gram import gram_loss
from training.losses.ibot import ibot_loss
from training.losses.koleo import koleo_loss
from training.losses.sinkhorn import sinkhorn_knopp

__all__ = [
    "PrototypeLogits",
    "clip_loss",
    "dino_loss",
    "dse_loss",
    "gram_loss",
    "ibot_loss",
    "info_nce_loss",
    "koleo_loss",
    "nt_xent_loss",
    "sinkhorn_knopp",
    "softmax_center",
    "update_center",
]
