"""Features, bases and pictures as bytes for the renderer: safetensors and PNG, both closed and documented formats."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor

from workbench.analysis.pca import Basis
from workbench.analysis.similarity import dequantize_rows, quantize_rows
from workbench.features import Features
from workbench.images import encode_png

Transport = Literal["int8", "float16"]


def encode_features(features: Features, dtype: Transport = "int8") -> bytes:
    """Patch and class tokens of I images as a safetensors file.

    "int8": `patches` I8 [I, H, W, D] and `patches.scale` F32 [I, H, W]; cosines between patches move by about 1e-3,
    at most 1e-2. "float16": `patches` F16. Both: `cls` F16 [I, D]. float16 overflow (beyond 65 504) is a ValueError,
    as is another dtype.
    """
    if dtype not in get_args(Transport):
        raise ValueError(f"features travel as {' or '.join(get_args(Transport))}, not {dtype!r}.")
    patches = features.patches.detach().cpu()
    tensors = {"cls": _half(features.cls.detach().cpu(), "class tokens")}
    if dtype == "int8":
        tensors["patches"], tensors["patches.scale"] = quantize_rows(patches)
    else:
        tensors["patches"] = _half(patches, "patches")
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def decode_features(data: bytes) -> tuple[Tensor, Tensor]:
    """What `encode_features` wrote, as float32: patches [I, H, W, D] and class tokens [I, D]."""
    tensors = load(data)
    patches, scale = tensors["patches"], tensors.get("patches.scale")
    return patches.float() if scale is None else dequantize_rows(patches, scale), tensors["cls"].float()


def encode_basis(basis: Basis, limits: Tensor) -> bytes:
    """A three-component basis and its colour `limits` [3, 2] (low, high): `mean` [D], `components` [3, D], `range`."""
    if basis.components.shape[0] != 3 or limits.shape != (3, 2):
        raise ValueError(
            f"colours need 3 components and limits [3, 2], got {basis.components.shape[0]} and {tuple(limits.shape)}."
        )
    tensors = {"mean": basis.mean, "components": basis.components, "range": limits}
    return save({name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()})


def encode_image(image: Tensor) -> bytes:
    """A picture [3, h, w], uint8 or float in [0, 1], as PNG bytes."""
    if image.is_floating_point():
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return encode_png(image)


def _half(tensor: Tensor, what: str) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"{what} hold NaN, infinity or values beyond 65504, which float16 cannot carry.")
    return half
