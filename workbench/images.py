"""Pictures in and out: bounded reading, resizing to whole patches, normalisation, PNG.

Images are RGB tensors [3, h, w] (h, w in pixels); row 0 is the top, column 0 the left side.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2",
)  # fmt: skip

# Formats that only ever decode pixels: no EPS or PDF, which would start an interpreter.
Image.init()
_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN  # Pillow may be built without some
)


class ImageError(ValueError):
    """An image, or a folder of images, that cannot be used. The text says what, the limit, and how to fix it."""


def read_image(source: str | os.PathLike[str] | bytes, *, max_pixels: int = 50_000_000) -> Tensor:
    """Read one image file (or its bytes) as uint8 [3, h, w], RGB.

    The size is taken from the header and checked against `max_pixels` (pixels) before anything is decoded. The EXIF
    orientation is applied; palette, grey, CMYK, 16-bit and float images become 8-bit RGB; transparency is laid on
    white; of an animation the first frame is read. Float images are taken as [0, 1] if they fit, else as [0, 255].

    Errors: `ImageError` for a missing, unreadable, truncated, oversized or unknown file.
    """
    image, name = _open_checked(source, max_pixels)
    try:
        with image:
            image.load()
            pixels = _to_rgb(_upright(image))
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, struct.error, zlib.error, …
        raise ImageError(
            f"{name}: the image data cannot be decoded ({_reason(error)}). "
            "The file is damaged or only partly copied: copy it again or remove it."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def open_rgba(source: str | os.PathLike[str] | bytes, *, max_pixels: int = 50_000_000) -> Tensor:
    """Read an image that carries transparency as uint8 [4, h, w]: RGB and straight (not premultiplied) alpha.

    Errors: `ImageError` as in `read_image`, and for an image without an alpha channel.
    """
    image, name = _open_checked(source, max_pixels)
    with image:
        if not _has_alpha(image):
            raise ImageError(
                f"{name}: mode {image.mode} has no alpha channel; a cut-out needs one. Save it as RGBA PNG or WebP."
            )
        try:
            image.load()
            pixels = np.array(_upright(image).convert("RGBA"))
        except Exception as error:
            raise ImageError(
                f"{name}: the image data cannot be decoded ({_reason(error)}). Copy the file again or remove it."
            ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def resize_to_patches(
    image: Tensor, patch_size: int, *, short_side: int | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Resize [..., 3, h, w] with antialiased bicubic so that both sides are whole multiples of `patch_size` pixels.

    With `size=(h, w)` exactly to that size; with `short_side` so that the short side is nearest to it and the aspect
    ratio is kept as well as whole patches allow; with neither to the nearest whole patches. uint8 stays uint8.
    """
    if image.ndim not in (3, 4):
        raise ValueError(f"image must be [3, h, w] or [B, 3, h, w], got shape {list(image.shape)}.")
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1 pixel, got {patch_size}.")
    target = _patch_aligned_size(image.shape[-2:], patch_size, short_side, size)
    if tuple(image.shape[-2:]) == target:
        return image
    batch = image if image.ndim == 4 else image[None]
    resized = F.interpolate(batch, size=target, mode="bicubic", antialias=True, align_corners=False)
    if resized.is_floating_point():
        resized = resized.clamp(float(image.min()), float(image.max()))  # bicubic overshoots
    return resized if image.ndim == 4 else resized[0]


def normalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """(x - mean) / std per channel, float32 [..., 3, h, w]; uint8 is first divided by 255, floats must be in [0, 1]."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return (pixels - _channels(mean, "mean", pixels)) / _channels(std, "std", pixels)


def denormalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Inverse of `normalize`: float32 [..., 3, h, w], clamped to [0, 1]."""
    pixels = images.float()
    return (pixels * _channels(std, "std", pixels) + _channels(mean, "mean", pixels)).clamp(0, 1)


def encode_png(image: Tensor) -> bytes:
    """PNG bytes of an RGB image uint8 [3, h, w]."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"encode_png wants uint8 [3, h, w], got {image.dtype} {list(image.shape)}.")
    return _png(Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy(), "RGB"))


def encode_mask_png(mask: Tensor) -> bytes:
    """PNG bytes of an integer mask [h, w]: 8-bit grey if every value is at most 255, else 16-bit (at most 65535)."""
    if mask.ndim != 2 or mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"encode_mask_png wants integers [h, w], got {mask.dtype} {list(mask.shape)}.")
    values = mask.cpu().numpy().astype(np.int64)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"mask values must lie in [0, 65535], got [{low}, {high}]. Map 'ignore' to a class first.")
    return _png(Image.fromarray(values.astype(np.uint8 if high <= 255 else np.uint16)))


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image file under `folder`, recursively, by extension (any case), in sorted order; hidden ones left out.

    Errors: `ImageError` for a missing folder, a file in its place, or a folder without images.
    """
    root = Path(folder)
    if not root.exists():
        raise ImageError(f"Image folder {root} does not exist. Check the path, or make it and put images in it.")
    if not root.is_dir():
        raise ImageError(f"{root} is a file, not a folder of images. Give the folder that contains it.")
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not found:
        raise ImageError(
            f"Image folder {root} contains no images. Extensions looked for, in sub-folders too: "
            f"{' '.join(IMAGE_EXTENSIONS)}."
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _open_checked(source: str | os.PathLike[str] | bytes, max_pixels: int) -> tuple[Image.Image, str]:
    """Open lazily and check the header's size; (undecoded image, name for messages)."""
    name = "image bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and Path(source).is_dir():
        raise ImageError(f"{name} is a folder, not an image. Give one file, or use a folder source.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below, by our own limit
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file. Check the path.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_reason(error)} The limit here is {max_pixels} pixels. Make it smaller.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image that can be read, or its header is damaged. Formats: {', '.join(_FORMATS)}."
        ) from error
    except Exception as error:
        raise ImageError(f"{name}: cannot be opened ({_reason(error)}). Check that the file is whole.") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ImageError(
            f"{name}: {width} x {height} = {width * height} pixels, more than the limit of {max_pixels}. "
            "Make the image smaller, or raise max_pixels."
        )
    return image, name


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block is no reason to lose the picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3] of a decoded image of any mode."""
    if image.mode.startswith(("I", "F")):
        grey = _to_8_bit(np.asarray(image), image.mode)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if _has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, image).convert("RGB"))
    return np.array(image.convert("RGB"))


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8 [h, w] of a 16-bit, 32-bit or float grey image."""
    if mode == "F":
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        unit = finite.size == 0 or (finite.min() >= 0 and finite.max() <= 1)
        return np.clip(np.rint(finite * (255 if unit else 1)), 0, 255).astype(np.uint8)
    wide = values.astype(np.int64).clip(min=0)
    top = int(wide.max()) if wide.size else 0
    if mode.startswith("I;16") or 255 < top <= 65535:
        return (wide.clip(max=65535) >> 8).astype(np.uint8)
    return (wide if top <= 255 else wide * 255 // top).astype(np.uint8)


def _patch_aligned_size(
    sides: Sequence[int], patch_size: int, short_side: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    """(h, w) in pixels, both multiples of patch_size."""
    height, width = sides
    if size is not None:
        if short_side is not None:
            raise ValueError(f"Give size or short_side, not both (got size={size}, short_side={short_side}).")
        if min(size) < patch_size or size[0] % patch_size or size[1] % patch_size:
            raise ValueError(f"size {tuple(size)} must be positive multiples of patch_size {patch_size}.")
        return int(size[0]), int(size[1])
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}.")
    scale = 1.0 if short_side is None else short_side / min(height, width)

    def aligned(side: int) -> int:
        return max(1, math.floor(side * scale / patch_size + 0.5)) * patch_size

    return aligned(height), aligned(width)


def _channels(values: Sequence[float], name: str, like: Tensor) -> Tensor:
    if len(values) != 3 or like.ndim < 3 or like.shape[-3] != 3:
        raise ValueError(f"{name} needs 3 values for images [..., 3, h, w]; got {len(values)} for {list(like.shape)}.")
    return torch.tensor(list(values), dtype=torch.float32, device=like.device).view(3, 1, 1)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
