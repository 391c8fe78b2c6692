"""Principal components of patch tokens as colours: exact, deterministic, and steady from one step to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

_ROWS_AT_ONCE = 2_048
_PERCENTILE_SAMPLE = 1_000_000


class Basis(NamedTuple):
    """An affine subspace of feature space: `project` maps a token to its C coordinates in it."""

    mean: Tensor
    """[D]"""
    components: Tensor
    """[C, D], orthonormal rows."""
    variance: Tensor
    """[C], variance of the fitted tokens along each component (N - 1 in the denominator), falling after `fit_pca`."""
    total_variance: float
    """Sum of the variances of all D channels; variance.sum() / total_variance is the share that colours show."""


def fit_pca(tokens: Tensor, components: int = 3, *, accumulate: torch.dtype = torch.float64) -> Basis:
    """Principal components of `tokens` [N, D], exact, from the covariance matrix; the basis is float32.

    `accumulate` is the type in which the covariance is summed: float64, or float32 for speed on large N. The sign of a
    component is fixed so that its entry of largest magnitude is positive. Constant tokens give variance 0 and some
    orthonormal components, so that projections are 0. For many images fit one basis on all of them jointly: a basis an
    image hides a loss of detail. Source: DINOv3, section 6.1.1 (PCA maps). Raises ValueError for fewer than two
    tokens, more components than channels, or values that are not finite.
    """
    if tokens.dim() != 2 or len(tokens) < 2:
        raise ValueError(f"fit_pca wants tokens [N, D] with N of 2 or more, got shape {tuple(tokens.shape)}.")
    channels = tokens.shape[1]
    if not 1 <= components <= channels:
        raise ValueError(f"{components} components asked of {channels} channels; choose 1 to {channels}.")
    mean, covariance = _moments(tokens, accumulate)
    if not torch.isfinite(covariance).all():
        raise ValueError("fit_pca wants finite tokens; these hold NaN, infinity or values too large to square.")
    values, vectors = _largest(covariance, components)
    return Basis(
        mean=mean.float(),
        components=_fix_signs(vectors.T).float(),
        variance=values.clamp_min(0).float(),
        total_variance=covariance.diagonal().sum().item(),
    )


def fit_pca_sampled(
    tokens: Tensor, components: int = 3, *, sample: int = 16_384, generator: torch.Generator | None = None
) -> Basis:
    """As `fit_pca`, on `sample` tokens of `tokens` [N, D], drawn without replacement; exact where N is not larger.

    For live pictures of large grids: the subspace of the strong components is met closely, weak ones less. `generator`
    (on the CPU) draws; without one the sample is evenly spaced, and the same every time. The mean, the variances and
    the total are those of the sample.
    """
    if sample < 2:
        raise ValueError(f"a sample of {sample} tokens; 2 or more are needed.")
    if len(tokens) <= sample:
        return fit_pca(tokens, components)
    if generator is None:
        chosen = torch.arange(sample) * len(tokens) // sample
    else:
        chosen = torch.randperm(len(tokens), generator=generator)[:sample]
    return fit_pca(tokens[chosen.to(tokens.device)], components, accumulate=torch.float32)


def refit_pca(tokens: Tensor, start: Basis, *, rounds: int = 2) -> Basis:
    """Principal components of `tokens` [N, D], warm-started: as many as `start` has, and turned to its colours.

    For a film of features that move little from one picture to the next: block power iteration from the components of
    `start` with as many random directions beside them, `rounds` times, without the D x D covariance.
    The nearer `start`, the nearer to `fit_pca`; from nowhere it needs more rounds. The mean, the variances and the
    total are those of `tokens`. Source: subspace iteration with Rayleigh-Ritz (Halko et al. 2011, section 4.5); the
    rotation as `align_basis`. Raises ValueError for another width, fewer than two tokens or no rounds, or values that
    are not finite.
    """
    components, channels = start.components.shape
    if tokens.dim() != 2 or len(tokens) < 2 or tokens.shape[1] != channels or rounds < 1:
        raise ValueError(
            f"refit_pca wants tokens [N, {channels}] with N of 2 or more and 1 round or more, got "
            f"{tuple(tokens.shape)} and {rounds}."
        )
    mean = tokens.float().mean(dim=0)
    extra = torch.randn(channels, min(components, channels - components), generator=torch.Generator().manual_seed(0))
    directions, total, products = torch.cat([start.components.T, extra], dim=1).to(mean), 0.0, mean
    for _ in range(rounds + 1):
        directions = torch.linalg.qr(directions).Q
        products, total = torch.zeros_like(directions), 0.0
        for block in tokens.split(_ROWS_AT_ONCE):
            centred = block.float() - mean
            products += centred.T @ (centred @ directions)
            total += centred.flatten().dot(centred.flatten()).item()
        if not math.isfinite(total):
            raise ValueError("refit_pca wants finite tokens; these hold NaN, infinity or values too large to square.")
        before, directions = directions, products
    within = (before.double().T @ products.double()) / (len(tokens) - 1)
    values, vectors = torch.linalg.eigh((within + within.T) / 2)
    top = (before.double() @ vectors).T.flip(0)[:components].float()
    variance = values.flip(0)[:components].clamp_min(0).float()
    return align_basis(Basis(mean, _fix_signs(top), variance, total / (len(tokens) - 1)), start)


def choose(basis: Basis, components: Sequence[int]) -> Basis:
    """The `components` of `basis` in the order given, counted from 0: which three to show as red, green and blue.

    Raises ValueError for one that is not there, one named twice, or none.
    """
    have = len(basis.components)
    if not components or len(set(components)) != len(components) or not all(0 <= one < have for one in components):
        raise ValueError(f"components {list(components)} of a basis of {have}; name different ones of 0 to {have - 1}.")
    return basis._replace(components=basis.components[list(components)], variance=basis.variance[list(components)])


def explained(basis: Basis) -> list[float]:
    """Share of the total variance along each component, in [0, 1]; all 0 for constant tokens."""
    return (basis.variance.double() / max(basis.total_variance, 1e-12)).tolist()


def basis_drift(bases: Sequence[Basis]) -> list[float]:
    """Degrees in [0, 90] between each basis and the one before it: the largest principal angle of their subspaces.

    For bases fitted at successive steps: 0 where colours mean the same, 90 where a direction of one is foreign to the
    other. Only one shared basis makes colours comparable over steps that drift far. Empty for fewer than two. Source:
    Bjoerck and Golub 1973. Raises ValueError for other shapes.
    """
    return [math.degrees(math.acos(subspace_cosine(a, b))) for a, b in itertools.pairwise(bases)]


def subspace_cosine(a: Basis, b: Basis) -> float:
    """Cosine of the largest principal angle between two subspaces of as many components: 1 where they are the same.

    Source: Bjoerck and Golub 1973. Raises ValueError for other shapes.
    """
    if a.components.shape != b.components.shape:
        raise ValueError(f"cannot compare {tuple(a.components.shape)} with {tuple(b.components.shape)} components.")
    return torch.linalg.svdvals(a.components.double() @ b.components.double().T).min().clamp(0, 1).item()


def align_basis(basis: Basis, reference: Basis) -> Basis:
    """`basis` rotated within its own subspace to lie as near to `reference` as it can, so that colours do not flip.

    The subspace, the mean and the total variance stay; the components are no longer sorted by variance, and `variance`
    tells the variance along each. Source: orthogonal Procrustes problem (Schoenemann 1966).
    """
    if basis.components.shape != reference.components.shape:
        raise ValueError(
            f"cannot align components {tuple(basis.components.shape)} to {tuple(reference.components.shape)}; "
            "both need the same channels and the same number of components."
        )
    components = basis.components.double()
    left, _, right = torch.linalg.svd(reference.components.to(components) @ components.T)
    return _rotated(basis, left @ right)


def align_to_coordinates(basis: Basis, tokens: Tensor, coordinates: Tensor) -> Basis:
    """`basis` rotated within its own subspace so that `tokens` [N, D] project near to `coordinates` [N, C].

    For two feature spaces of any widths that describe the same N patches: their colours come as close as a rotation
    brings them, scale apart. Source: orthogonal Procrustes problem (Schoenemann 1966). Raises ValueError for other
    shapes or values that are not finite.
    """
    projected = project(basis, tokens).double()
    wanted = coordinates.to(projected)
    if projected.shape != wanted.shape or projected.dim() != 2:
        raise ValueError(f"coordinates are {tuple(projected.shape)} here, got {tuple(wanted.shape)}.")
    if not (torch.isfinite(projected).all() and torch.isfinite(wanted).all()):
        raise ValueError("align_to_coordinates wants finite tokens and coordinates; these hold NaN or infinity.")
    left, _, right = torch.linalg.svd((wanted - wanted.mean(0)).T @ (projected - projected.mean(0)))
    return _rotated(basis, left @ right)


def project(basis: Basis, tokens: Tensor) -> Tensor:
    """Coordinates [..., C] of `tokens` [..., D] along the components, relative to the mean."""
    if tokens.shape[-1] != len(basis.mean):
        raise ValueError(f"these tokens have {tokens.shape[-1]} channels, the basis {len(basis.mean)}.")
    return (tokens.float() - basis.mean.to(tokens.device)) @ basis.components.to(tokens.device).T


def color_range(projected: Tensor, *, low: float = 1.0, high: float = 99.0) -> Tensor:
    """Range [C, 2] (low, high) of each coordinate of `projected` [..., C] between two percentiles (of 100).

    Percentiles keep one odd patch from washing out all the others. Above a million tokens an even subset is taken.
    """
    rows = projected.flatten(0, -2).float()
    if not len(rows) or not 0 <= low < high <= 100:
        raise ValueError(
            f"color_range wants a token or more and percentiles 0 <= low < high <= 100, got {len(rows)}, {low}, {high}."
        )
    rows = rows[:: -(-len(rows) // _PERCENTILE_SAMPLE)]
    bounds = torch.tensor([low / 100, high / 100], dtype=rows.dtype, device=rows.device)
    return torch.quantile(rows, bounds, dim=0).T.contiguous()


def to_rgb(projected: Tensor, limits: Tensor) -> Tensor:
    """Colours [..., C] in [0, 1] of `projected` [..., C], linear between the `limits` [C, 2] and cut off outside.

    A coordinate whose limits coincide (constant features) is a middle grey, 0.5.
    """
    low, high = limits.to(projected.device).unbind(dim=-1)
    span = high - low
    scaled = (projected.float() - low) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(span > 0, scaled, torch.full_like(scaled, 0.5)).clamp(0, 1)


def _moments(tokens: Tensor, accumulate: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] in float64; products of blocks of rows are summed in `accumulate`.

    Rows are centred by a mean in float32 before they are multiplied, and what is left of the mean is taken out after:
    no large numbers cancel, and the rows are read twice, not copied into float64.
    """
    near = tokens.float().mean(dim=0)
    if tokens.device.type == "cpu":
        total, products = _sums_on_cpu(tokens.detach(), near.detach(), accumulate)
    else:
        total = torch.zeros(tokens.shape[1], dtype=torch.float64, device=tokens.device)
        products = torch.zeros(*[tokens.shape[1]] * 2, dtype=torch.float64, device=tokens.device)
        for block in tokens.split(_ROWS_AT_ONCE):
            centred = (block - near).to(accumulate)
            total += centred.sum(dim=0)
            products += centred.T @ centred
    shift = total / len(tokens)
    covariance = (products - len(tokens) * torch.outer(shift, shift)) / (len(tokens) - 1)
    return near.double() + shift, covariance


def _sums_on_cpu(tokens: Tensor, near: Tensor, accumulate: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums [D] and products [D, D] of `tokens` less `near`, float64, by BLAS's syrk: half the work of a product.

    All BLAS is SciPy's here: the waiting threads of two libraries (NumPy brings one of its own) halve the speed.
    """
    kind, channels = np.float32 if accumulate == torch.float32 else np.float64, tokens.shape[1]
    (syrk,) = scipy.linalg.get_blas_funcs(("syrk",), dtype=kind)
    total, products = np.zeros(channels), np.zeros((channels, channels), kind, order="F")
    room, middle = np.empty((min(_ROWS_AT_ONCE, len(tokens)), channels), kind), near.numpy()
    for block in tokens.split(_ROWS_AT_ONCE):
        rows = block.numpy() if block.dtype in (torch.float32, torch.float64) else block.float().numpy()
        centred = np.subtract(rows, middle, out=room[: len(rows)], casting="same_kind")
        total += centred.sum(axis=0)
        products = syrk(1.0, centred.T, beta=1.0, c=products, overwrite_c=True)
    whole = np.triu(products) + np.triu(products, 1).T
    return torch.from_numpy(total), torch.from_numpy(whole).double()


def _largest(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, falling, and eigenvectors [D, count]; on the CPU SciPy finds only these."""
    size = len(covariance)
    if covariance.device.type != "cpu":
        values, vectors = torch.linalg.eigh(covariance)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    found = scipy.linalg.eigh(covariance.numpy(), subset_by_index=(size - count, size - 1))
    values, vectors = (torch.from_numpy(array) for array in found)
    return values.flip(0), vectors.flip(1)


def _rotated(basis: Basis, rotation: Tensor) -> Basis:
    """`rotation` [C, C], orthogonal, applied within the subspace; `variance` told along the new components."""
    variance = (rotation.square() * basis.variance.to(rotation)).sum(dim=1)
    return basis._replace(components=(rotation @ basis.components.double()).float(), variance=variance.float())


def _fix_signs(components: Tensor) -> Tensor:
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0).to(components)
