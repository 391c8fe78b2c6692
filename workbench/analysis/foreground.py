"""Which patches show the object: from the first principal component, or from a few labelled images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.pca import Basis, fit_pca, project


class Foreground(NamedTuple):
    """One split of the patches of some images in two."""

    mask: Tensor
    """bool [B, H, W], row 0 at the top."""
    component: Tensor
    """[B, H, W], coordinate along the first principal component of all patches, turned so that the object is high."""
    threshold: float
    """The mask is where `component` exceeds it."""


def foreground_by_pca(patches: Tensor) -> Foreground:
    """The object in `patches` [B, H, W, D] by the first principal component of all of them, cut by Otsu's threshold.

    Which side is the object no component says: the side that holds the smaller share of the images' border patches is
    taken. Works where one kind of thing stands before one kind of background; look at the mask. Constant features give
    an empty mask. Source: DINOv2, section 7.5 (first component thresholded); Otsu 1979, by scikit-image. Raises
    ValueError for another shape or values that are not finite.
    """
    _check(patches)
    from skimage.filters import threshold_otsu

    basis = fit_pca(patches.flatten(0, 2), 1)
    component = project(basis, patches)[..., 0]
    spread = float(basis.variance[0])
    if spread <= 1e-12 * max(1.0, float(patches.float().square().mean())):
        return Foreground(torch.zeros_like(component, dtype=torch.bool), component, float(component.max()))
    threshold = float(threshold_otsu(component.cpu().numpy()))
    high = component > threshold
    edge = torch.ones_like(high)
    edge[:, 1:-1, 1:-1] = False
    if high[edge].float().mean() > (~high)[edge].float().mean():
        return Foreground(component <= threshold, -component, -threshold)
    return Foreground(high, component, threshold)


class ForegroundClassifier:
    """A linear classifier of object against background, fitted on patches of a few images with masks.

    Logistic regression on patch tokens as they are, with inverse regularisation C of 0.1, by scikit-learn. Source: the
    foreground classifier of DINOv3's PCA figures (nine images with masks).

    Args:
        patches: [B, H, W, D], of the labelled images.
        coverage: [B, H, W] in [0, 1], share of the object in each patch; above 0 is object, as there.
    """

    def __init__(self, patches: Tensor, coverage: Tensor, *, inverse_regularisation: float = 0.1) -> None:
        from sklearn.linear_model import LogisticRegression

        _check(patches)
        labels = coverage > 0
        if labels.shape != patches.shape[:3] or labels.all() or not labels.any():
            raise ValueError(
                f"coverage {tuple(coverage.shape)} must be [B, H, W] of patches {tuple(patches.shape)} and hold both "
                "object and background."
            )
        model = LogisticRegression(C=inverse_regularisation, max_iter=1000)
        model.fit(patches.flatten(0, 2).float().cpu().numpy(), labels.flatten().cpu().numpy())
        self.weight = torch.from_numpy(np.ravel(model.coef_)).float()
        self.bias = np.ravel(model.intercept_).item()

    def __call__(self, patches: Tensor) -> Tensor:
        """Probability [B, H, W] in [0, 1] that a patch of `patches` [B, H, W, D] shows the object, 3 x 3 median."""
        if patches.dim() != 4 or patches.shape[3] != len(self.weight):
            raise ValueError(f"patches {tuple(patches.shape)} must be [B, H, W, {len(self.weight)}].")
        scores = torch.sigmoid(patches.float() @ self.weight.to(patches.device) + self.bias)
        padded = F.pad(scores[:, None], (1, 1, 1, 1), mode="replicate")
        return F.unfold(padded, 3).reshape(len(scores), 9, *scores.shape[1:]).median(dim=1).values


def fit_pca_inside(patches: Tensor, mask: Tensor, components: int = 3) -> Basis:
    """Principal components of the patches [B, H, W, D] where `mask` [B, H, W] is true: colours of the object's parts.

    Raises ValueError where fewer than two patches are inside.
    """
    if mask.shape != patches.shape[:-1]:
        raise ValueError(f"mask {tuple(mask.shape)} must be [B, H, W] of patches {tuple(patches.shape)}.")
    if mask.sum() < 2:
        raise ValueError(f"{int(mask.sum())} patches are foreground; a basis needs 2 or more.")
    return fit_pca(patches[mask], components)


def _check(patches: Tensor) -> None:
    if patches.dim() != 4 or patches.shape[:3].numel() < 2:
        raise ValueError(f"foreground is found in patches [B, H, W, D], 2 or more, got {tuple(patches.shape)}.")
    if not torch.isfinite(patches).all():
        raise ValueError("foreground is found in finite patches; these hold NaN or infinity.")
