"""A mask of one frame carried through the frames that follow, by the similarity of their patches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from workbench.analysis.similarity import unit


def propagate(
    frames: Iterable[Tensor],
    mask: Tensor,
    *,
    context: int = 7,
    radius: float = 12.0,
    neighbours: int = 5,
    temperature: float = 0.1,
) -> Iterator[Tensor]:
    """Class shares [C, H, W] of every frame, the first being `mask` itself; each pixel of a grid sums to 1.

    `frames` gives patches [H, W, D] of one frame after another, `mask` [C, H, W] class shares of the first
    (one-hot for a hard mask). A patch takes the shares of its `neighbours` most similar patches, weighted by
    exp(cosine / `temperature`), among those within `radius` grid cells in the first frame and the `context` newest, the
    only ones kept in memory. Source: DINO, arXiv 2104.14294, section 4.2 (DAVIS), after Jabri et al. 2020; their values
    for patches of 8 pixels are the defaults. Raises ValueError for shapes that do not belong together.
    """
    if mask.dim() != 3 or context < 1 or neighbours < 1 or temperature <= 0 or radius < 0:
        raise ValueError(
            "propagate wants a mask [C, H, W], context and neighbours of 1 or more, a temperature above 0 and a radius "
            f"of 0 or more; got {tuple(mask.shape)}, {context}, {neighbours}, {temperature}, {radius}."
        )
    shares = mask.float()
    known: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    begin: tuple[Tensor, Tensor] | None = None
    near = _within(mask.shape[1], mask.shape[2], radius)
    for patches in frames:
        _check(patches, mask)
        units = unit(patches.flatten(0, 1))
        if begin is None:
            begin = units, shares.flatten(1).T
            near = near.to(units.device)
            yield shares
            continue
        sources = [begin, *known]
        shares = _carry(units, sources, near, neighbours, temperature).T.reshape(mask.shape)
        known.append((units, shares.flatten(1).T))
        yield shares


def _carry(
    units: Tensor, sources: list[tuple[Tensor, Tensor]], near: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """[N, C]: the weighted shares of the most similar patches of all `sources`, those out of reach left out."""
    cosines = torch.cat([(units @ other.T).masked_fill(~near, -torch.inf) for other, _ in sources], dim=1)
    shares = torch.cat([shares for _, shares in sources]).to(cosines)
    best, where = cosines.topk(min(neighbours, cosines.shape[1]), dim=1)
    weights = ((best - best[:, :1]) / temperature).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[..., None] * shares[where]).sum(dim=1)


def _within(height: int, width: int, radius: float) -> Tensor:
    """bool [N, N]: whether two cells of the grid lie within `radius` cells of each other; each is its own neighbour."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns), dim=-1).flatten(0, 1).double()
    return torch.cdist(places, places) <= radius


def _check(patches: Tensor, mask: Tensor) -> None:
    if patches.dim() != 3 or patches.shape[:2] != mask.shape[1:]:
        raise ValueError(
            f"every frame must be patches [H, W, D] on the grid of the mask, {tuple(mask.shape[1:])}; "
            f"got {tuple(patches.shape)}."
        )
    if not torch.isfinite(patches).all():
        raise ValueError("propagate wants finite patches; these hold NaN or infinity.")
