"""Four diseases of dense features told apart on one image, each with a number, a verdict and its picture.

They look alike in a similarity map and need different cures: high-norm tokens (registers), outlier dimensions (the
final norm, or leaving channels out), positional bias (taking the code out), lost locality (Gram anchoring). They are
looked for in this order, and each is looked for in what the ones before it left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.analysis.gram import gram_matrix
from workbench.analysis.health.cosines import far_pairs, grid_distance, locality_of
from workbench.analysis.health.outliers import channel_energies, outlier_channels
from workbench.analysis.similarity import unit

State = Literal["present", "absent", "undecided"]


class Scale(NamedTuple):
    """What a number means; higher is sicker. Between `well` and `sick` it is left open."""

    best: float
    well: float
    sick: float
    worst: float

    def read(self, value: float) -> tuple[State, float]:
        """(state, margin): 0 at the limit that decides, 1 at `worst` or beyond, -1 at `best`; 0 while undecided."""
        if value >= self.sick:
            return "present", min(1.0, (value - self.sick) / (self.worst - self.sick))
        if value <= self.well:
            return "absent", -min(1.0, (self.well - value) / (self.well - self.best))
        return "undecided", 0.0


NORM = Scale(1.0, 1.5, 2.0, 10.0)
"""Largest norm over the median one. Healthy runs: up to 1.2; artefacts are about ten times as long (Darcet et al.)."""
CHANNELS = Scale(0.0, 0.4, 0.5, 1.0)
"""Share of the squared length owned by outlier channels: from a half on, a similarity map shows them. Healthy: 0.34."""
POSITION = Scale(0.0, 0.4, 0.5, 1.0)
"""Share of an image's variance that the code of noise images explains."""
POSITION_ALONE = Scale(0.0, 0.4, 0.95, 1.0)
"""Share of an image's variance that rows and columns explain: where they explain little, no code made of them explains
half; where they explain much, the picture may have a gradient (healthy: up to 0.85)."""
LOCALITY = Scale(0.0, 0.4, 0.5, 1.0)
"""Share of the healthy locality, or of the healthy spread, that is gone."""
LOCALITY_ALONE = Scale(0.0, 0.75, math.inf, math.inf)
"""1 - locality: a healthy network reaches 0.99 on a picture of fine texture, so alone a high value decides nothing."""
WASHED_ALONE = Scale(0.0, 0.97, 0.995, 1.0)
"""Far cosine: networks at random initialisation reach 0.98."""
_JUDGED_BELOW = 0.9
"""Share of position above which too little is left to judge locality by."""
_MORE_ROWS_COLUMNS = 0.15
"""Rows and columns may explain so much more than in healthy features before a code of position is suspected."""
_LOCAL_ENOUGH = 0.1
"""Least locality of healthy features that can be lost."""


@dataclass(frozen=True, kw_only=True)
class Disease:
    """What is looked for."""

    key: str
    en: str
    zh: str
    number: str
    """What the verdict's value is."""
    picture: str
    """What the verdict's picture shows."""
    source: str


DISEASES: tuple[Disease, ...] = (
    Disease(
        key="high-norm-tokens",
        en="high-norm tokens",
        zh="高范数图块",
        number="largest patch norm over the median norm",
        picture="norm of each patch over the median norm",
        source="Darcet et al. 2024 (registers)",
    ),
    Disease(
        key="outlier-dimensions",
        en="outlier dimensions",
        zh="离群维度",
        number="share of the squared length that outlier channels own",
        picture="cosine with the query patch, without those channels; `before` is with them",
        source="Kovaleva et al. 2021; Sun et al. 2024 (massive activations)",
    ),
    Disease(
        key="positional-bias",
        en="positional bias",
        zh="位置偏差",
        number="share of the variance within the image that position explains",
        picture="cosine of each patch, less the image's mean, with what position predicts there",
        source="least squares on features of noise images; without them two-way analysis of variance",
    ),
    Disease(
        key="lost-locality",
        en="lost locality",
        zh="局部性丧失",
        number="share of the healthy locality or spread that is gone; alone 1 - locality, or the far cosine",
        picture="how much more alike each patch is to its neighbours than to far patches",
        source="DINOv3, section 4.1 and figure 3; Moran 1950",
    ),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """One disease on one image."""

    disease: str
    """Key of `DISEASES`."""
    state: State
    value: float
    threshold: float
    """The value from which on the disease is present; infinite where this image alone cannot tell."""
    margin: float
    """How clear the verdict is, -1 (plainly absent) to 1 (plainly present), 0 when undecided. Not a probability."""
    numbers: Mapping[str, float]
    """What the value was made from."""
    picture: Tensor
    """[H, W], row 0 at the top."""
    range: tuple[float, float]
    """Fixed colour range of the picture, the same for every image and step."""
    before: Tensor | None = None
    """[H, W], the picture to compare with."""


class _Image(NamedTuple):
    """One image without what was found so far."""

    units: Tensor  # [H, W, D'] unit patches
    kept: Tensor  # [H, W] bool: patches that are no outliers


def diagnose(
    patches: Tensor,
    *,
    healthy: Tensor | None = None,
    noise: Tensor | None = None,
    query: tuple[int, int] | None = None,
) -> dict[str, Verdict]:
    """The verdicts on one image's `patches` [H, W, D], by disease.

    `healthy` [H, W, E] are patches of the same image from a network or step known to be good, `noise` [B, H, W, D]
    those of images of random pixels from the network under test (8 are enough). Without `healthy`, only images washed
    out into one colour are told: features without order may show a fine texture rightly, and stay `undecided`. Without
    `noise`, a picture with a gradient looks like positional bias, and stays `undecided` over a wide range.

    `query` (row, column) is the patch of the similarity map, by default the one in the middle. Raises ValueError for
    other shapes, values that are not finite, or a grid below 2 x 2.
    """
    _check(patches, healthy, noise, query)
    tokens, kept = _high_norm(patches)
    channels, keep = _outlier_dimensions(patches, kept, query)
    image = _Image(unit(patches[..., keep]), kept)
    position, rest = _positional_bias(image, None if noise is None else noise[..., keep])
    sound = None if healthy is None else _sound(healthy)
    found = (tokens, channels, position, _lost_locality(image, rest, position, sound, coded=noise is not None))
    return {verdict.disease: verdict for verdict in found}


# --- one disease each --------------------------------------------------------------------------------------------


def _high_norm(patches: Tensor) -> tuple[Verdict, Tensor]:
    """The verdict, and which patches are no outliers: bool [H, W]."""
    norms = patches.double().norm(dim=-1)
    ratio = norms / norms.median().clamp_min(1e-12)
    strange = ratio >= NORM.sick
    numbers = {"outliers": float(strange.sum()), "share": strange.double().mean().item()}
    return _verdict("high-norm-tokens", NORM, ratio.max().item(), numbers, ratio, (0.0, 2 * NORM.sick)), ~strange


def _outlier_dimensions(patches: Tensor, kept: Tensor, query: tuple[int, int] | None) -> tuple[Verdict, Tensor]:
    """The verdict, and which channels are no outliers: bool [D]; all of them when the disease is not there."""
    energy = channel_energies(patches[kept][None, None])[0]
    strange = outlier_channels(energy)
    row, column = _middle(kept) if query is None else query
    with_all, without = (unit(x) @ unit(x)[row, column] for x in (patches, patches[..., ~strange]))
    share = torch.where(strange, energy, 0.0).sum().item()
    numbers = {"channels": float(strange.sum()), "largest": energy.max().item()}
    verdict = _verdict("outlier-dimensions", CHANNELS, share, numbers, without, (-1.0, 1.0), before=with_all)
    return verdict, ~strange if verdict.state == "present" else torch.ones_like(strange)


def _positional_bias(image: _Image, noise: Tensor | None) -> tuple[Verdict, Tensor]:
    """The verdict, and the unit patches [H, W, D'] less the part that a code explains when it is there."""
    mean = image.units[image.kept].mean(dim=0)
    deviation = torch.where(image.kept[..., None], image.units - mean, 0.0).double()
    if noise is None:
        fitted, share = _rows_and_columns(deviation)
        return _position_verdict(POSITION_ALONE, share, deviation, fitted, 0.0), image.units
    code = unit(noise).double()
    code = code.mean(dim=0)[image.kept].mean(dim=0).neg() + code.mean(dim=0)
    code = torch.where(image.kept[..., None], code, 0.0)
    along, length = (deviation * code).sum(), code.square().sum().clamp_min(1e-12)
    share = (along.square() / length / deviation.square().sum().clamp_min(1e-12)).item()
    fitted = along / length * code
    verdict = _position_verdict(POSITION, share, deviation, fitted, code.square().sum(dim=-1).mean().sqrt().item())
    return verdict, (image.units - fitted.float() if verdict.state == "present" else image.units)


def _position_verdict(scale: Scale, share: float, deviation: Tensor, fitted: Tensor, code: float) -> Verdict:
    picture = (unit(deviation) * unit(fitted)).sum(dim=-1)
    return _verdict("positional-bias", scale, share, {"code_length": code}, picture, (-1.0, 1.0))


def _rows_and_columns(deviation: Tensor) -> tuple[Tensor, float]:
    """Additive effects of row and column in `deviation` [H, W, D], and their share of the variance, less chance."""
    height, width = deviation.shape[:2]
    centred = deviation - deviation.mean(dim=(0, 1))
    fitted = centred.mean(dim=0, keepdim=True) + centred.mean(dim=1, keepdim=True)
    total = centred.square().sum() / (height * width - 1)
    left = (centred - fitted).square().sum() / ((height - 1) * (width - 1))
    return fitted, max(0.0, (1 - left / total).item()) if total > 1e-12 else 0.0


def _lost_locality(
    image: _Image, rest: Tensor, position: Verdict, sound: dict[str, float] | None, *, coded: bool
) -> Verdict:
    """Noise where there was order, or one colour where there were several; `sound` is how it should be."""
    numbers, picture = _near_and_far(image.units, image.kept)
    biased = position.state == "present"
    if biased and coded and position.value < _JUDGED_BELOW:
        without, picture = _near_and_far(rest, image.kept)
        numbers = {**without, "far": numbers["far"], "near": numbers["near"]}
    scale, value = _against(numbers, sound) if sound is not None else _alone(numbers)
    if sound is not None:
        numbers |= {f"healthy_{name}": number for name, number in sound.items()}
    verdict = _verdict("lost-locality", scale, value, numbers, picture, (-1.0, 1.0))
    usual = sound["rows_columns"] + _MORE_ROWS_COLUMNS if sound is not None else POSITION_ALONE.well
    hiding = position.value > (_JUDGED_BELOW if coded else usual)  # a code of position is local: it hides what is under
    return _undecided(verdict) if hiding and verdict.state == "absent" else verdict


def _near_and_far(units: Tensor, kept: Tensor) -> tuple[dict[str, float], Tensor]:
    """Cosines near and far and the locality of one image, and the locality of each patch [H, W]; outliers left out."""
    height, width = kept.shape
    cosines = gram_matrix(units.flatten(0, 1)[None].double())[0]
    pairs = (kept.flatten()[:, None] & kept.flatten()).to(cosines.device)
    near_pairs = pairs & ((grid_distance(height, width) - 1).abs() < 1e-4).to(pairs.device)
    apart = pairs & far_pairs(height, width).to(pairs.device)
    near, far = ((cosines * mask).sum() / mask.sum() for mask in (near_pairs, apart))
    own = ((cosines * mask).sum(dim=1) / mask.sum(dim=1) for mask in (near_pairs, apart))
    by_patch = locality_of(*own).nan_to_num(0.0).clamp(-1, 1).reshape(height, width)
    local = locality_of(near, far).nan_to_num(0.0).item()
    return {"near": near.item(), "far": far.item(), "locality": local}, by_patch


def _sound(healthy: Tensor) -> dict[str, float]:
    """How near, far, local and bound to rows and columns the healthy features are, their own outliers left out."""
    _, kept = _high_norm(healthy)
    _, keep = _outlier_dimensions(healthy, kept, None)
    image = _Image(unit(healthy[..., keep]), kept)
    return {**_near_and_far(*image)[0], "rows_columns": _positional_bias(image, None)[0].value}


def _against(numbers: Mapping[str, float], sound: Mapping[str, float]) -> tuple[Scale, float]:
    """Lost share of the healthy locality or spread, whichever is more."""
    lost = [1 - (1 - numbers["far"]) / max(1 - sound["far"], 1e-6)]
    if sound["locality"] >= _LOCAL_ENOUGH:
        lost.append(1 - numbers["locality"] / sound["locality"])
    return LOCALITY, min(1.0, max(0.0, *lost))


def _alone(numbers: Mapping[str, float]) -> tuple[Scale, float]:
    """Washed out into one colour, or else without order."""
    if numbers["far"] > WASHED_ALONE.well:
        return WASHED_ALONE, numbers["far"]
    return LOCALITY_ALONE, 1 - numbers["locality"]


# --- parts -------------------------------------------------------------------------------------------------------


def _verdict(
    disease: str,
    scale: Scale,
    value: float,
    numbers: Mapping[str, float],
    picture: Tensor,
    limits: tuple[float, float],
    before: Tensor | None = None,
) -> Verdict:
    state, margin = scale.read(value)
    return Verdict(
        disease=disease,
        state=state,
        value=value,
        threshold=scale.sick,
        margin=margin,
        numbers=numbers,
        picture=picture.float(),
        range=limits,
        before=before,
    )


def _undecided(verdict: Verdict) -> Verdict:
    return Verdict(**{**vars(verdict), "state": "undecided", "margin": 0.0})


def _middle(kept: Tensor) -> tuple[int, int]:
    """The patch nearest the middle of the grid that is no outlier: (row, column)."""
    rows, columns = torch.nonzero(kept, as_tuple=True)
    middle = torch.tensor(kept.shape, device=kept.device) / 2 - 0.5
    nearest = int(((rows - middle[0]).square() + (columns - middle[1]).square()).argmin())
    return int(rows[nearest]), int(columns[nearest])


def _check(patches: Tensor, healthy: Tensor | None, noise: Tensor | None, query: tuple[int, int] | None) -> None:
    if patches.dim() != 3 or min(patches.shape[:2]) < 2:
        raise ValueError(f"diagnose wants patches [H >= 2, W >= 2, D] of one image, got {tuple(patches.shape)}.")
    grid = patches.shape[:2]
    if healthy is not None and (healthy.dim() != 3 or healthy.shape[:2] != grid):
        raise ValueError(f"healthy patches must lie on the grid {tuple(grid)}, got {tuple(healthy.shape)}.")
    if noise is not None and (noise.dim() != 4 or noise.shape[1:] != patches.shape or not len(noise)):
        raise ValueError(
            f"noise must be patches [B, H, W, D] of the same network, D and grid as in {tuple(patches.shape)}, "
            f"got {tuple(noise.shape)}."
        )
    if query is not None and not all(0 <= index < size for index, size in zip(query, grid, strict=True)):
        raise ValueError(f"query {query} is not a patch; (row, column) must lie in {tuple(grid)}, from 0.")
    if not all(bool(torch.isfinite(x).all()) for x in (patches, healthy, noise) if x is not None):
        raise ValueError("diagnose wants finite patches; these hold NaN or infinity.")
