"""Linear segmentation probe: how much of a pixel's class one linear layer reads from a frozen patch token."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.health.bootstrap import Weighted, value_of

_IMAGES_AT_ONCE = 64


class LinearProbe(NamedTuple):
    """logits = ((x - mean) / scale) @ weight + bias."""

    mean: Tensor
    """[D]"""
    scale: Tensor
    """[D]"""
    weight: Tensor
    """[D, C]"""
    bias: Tensor
    """[C]"""

    def logits(self, patches: Tensor) -> Tensor:
        """Class scores [..., C] of `patches` [..., D]."""
        return ((patches.float() - self.mean) / self.scale) @ self.weight + self.bias


def fit_linear_probe(
    patches: Tensor, fractions: Tensor, *, iterations: int = 60, l2: float = 1e-4, balance: float = 0.5
) -> LinearProbe:
    """Class-weighted multinomial logistic regression from `patches` [I, H, W, D] to `fractions` [I, H, W, C].

    Targets are the shares of the classes in a patch, so boundary patches teach too. Channels are standardised by the
    training patches (a frozen batch norm, as in DINOv3, appendix D.1). A class weighs frequency^-balance: 0 none, 1
    as if all classes were equally large. Starts at zero and takes at most `iterations` steps of L-BFGS with strong
    Wolfe line search: no randomness. `l2` multiplies half the squared weights.
    """
    x, target = patches.flatten(0, 2).float(), fractions.flatten(0, 2).to(patches.device)
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    x = (x - mean) / scale
    target = target * _class_weights(target, balance)
    target = target / target.sum()
    weight = x.new_zeros(x.shape[1], target.shape[1], requires_grad=True)
    bias = x.new_zeros(target.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(target * F.log_softmax(x @ weight + bias, dim=1)).sum() + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def predict_pixels(probe: LinearProbe, patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of each pixel, int64 [I, h, w]: logits of `patches` [I, H, W, D] upsampled bilinearly to `size` (h, w)."""
    predicted = []
    for block in patches.split(_IMAGES_AT_ONCE):
        logits = probe.logits(block).permute(0, 3, 1, 2)
        predicted.append(F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1))
    return torch.cat(predicted)


def mean_iou(predicted: Tensor, target: Tensor, classes: int) -> float:
    """Mean intersection over union of all classes, background 0 included, in [0, 1].

    `predicted` and `target` are class indices of the same shape; pixels of all images are pooled before the division.
    Classes in neither do not count, as in torchmetrics' macro Jaccard index.
    """
    return value_of(weighted_mean_iou(predicted[None], target[None], classes), 1)


def weighted_mean_iou(predicted: Tensor, target: Tensor, classes: int) -> Weighted:
    """`mean_iou` of [I, …] as a function of image shares: pixels are pooled after weighting, the probe stays."""
    cells = (target * classes + predicted).flatten(1)
    joint = torch.stack([torch.bincount(image, minlength=classes**2) for image in cells]).double()
    joint = joint.reshape(-1, classes, classes)
    both = joint.diagonal(dim1=1, dim2=2)
    union = joint.sum(dim=1) + joint.sum(dim=2) - both
    return lambda shares: ((shares @ both) / (shares @ union)).nanmean(dim=1)


def _class_weights(target: Tensor, balance: float) -> Tensor:
    frequency = target.mean(dim=0)
    return torch.where(frequency > 0, frequency.clamp_min(1e-12) ** -balance, 0.0)
