"""Reading anything, refusing the rest with a reason; sizes, normalisation, PNG."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.images import (
    IMAGENET_MEAN,
    ImageError,
    denormalize,
    encode_mask_png,
    encode_png,
    list_images,
    normalize,
    open_rgba,
    read_image,
    resize_to_patches,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT\x78\x9c"


def photo(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def test_rgb_is_read_exactly_from_path_and_bytes(tmp_path: Path) -> None:
    data = encoded(photo())
    (tmp_path / "a.png").write_bytes(data)
    expected = torch.from_numpy(np.array(photo())).permute(2, 0, 1)
    assert torch.equal(read_image(data), expected)
    assert torch.equal(read_image(tmp_path / "a.png"), expected)
    assert read_image(data).is_contiguous()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_plain_modes_become_rgb(mode: str, kind: str) -> None:
    source = photo().convert(mode)
    image = read_image(encoded(source, kind))
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.uint8
    wanted = torch.from_numpy(np.array(source.convert("RGB"))).permute(2, 0, 1).int()
    assert (image.int() - wanted).abs().float().mean() < (12 if kind == "GIF" else 1)  # GIF quantises


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    image = read_image(encoded(red, "JPEG", quality=95)).float()
    assert image[0].mean() > 220
    assert image[1:].mean() < 40


@pytest.mark.parametrize(("kind", "value", "wanted"), [("PNG", 65535, 255), ("PNG", 0x8000, 128), ("TIFF", 300, 1)])
def test_16_bit_grey_keeps_its_high_byte(kind: str, value: int, wanted: int) -> None:
    image = read_image(encoded(Image.fromarray(np.full((5, 7), value, np.uint16)), kind))
    assert image.shape == (3, 5, 7)
    assert image.unique().tolist() == [wanted]


def test_float_and_32_bit_tiff() -> None:
    unit = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    assert read_image(encoded(Image.fromarray(unit), "TIFF"))[0, 0].tolist() == [0, 128, 255, 0]
    wide = np.array([[0, 1 << 20]], np.int32)
    assert read_image(encoded(Image.fromarray(wide), "TIFF"))[0, 0].tolist() == [0, 255]


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    rgba.putpixel((1, 2), (200, 0, 0, 255))
    image = read_image(encoded(rgba))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 2, 1].tolist() == [200, 0, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    image = read_image(encoded(palette, transparency=0))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 1, 1].tolist() == [0, 255, 0]
    grey = Image.merge("LA", [Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)])
    assert read_image(encoded(grey)).unique().tolist() == [255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image.shape == (3, 6, 8)
    assert image[:, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Marked corner: orientation 6 (rotate 90 clockwise) moves the stored bottom-left to the top-left, and so on."""
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:5, :5] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(Image.fromarray(stored), "PNG", exif=exif))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert image.shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))
    assert image[0, corner[0], corner[1]] == 255
    assert int((image[0] == 255).sum()) == 25


def test_size_limit_is_checked_before_decoding() -> None:
    """The header claims sizes, the pixels are not there: only the header can have been looked at."""
    with pytest.raises(ImageError, match=r"9000 x 9000 = 81000000 pixels.*limit of 50000000.*max_pixels"):
        read_image(png_header(9000, 9000))
    with pytest.raises(ImageError, match=r"limit"):
        read_image(png_header(2_000_000_000, 2_000_000_000))
    with pytest.raises(ImageError, match=r"limit of 100\b"):
        read_image(encoded(photo()), max_pixels=100)
    assert read_image(encoded(photo()), max_pixels=2400).shape == (3, 40, 60)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_truncated_files_are_refused_or_read_but_never_crash(kind: str) -> None:
    data = encoded(photo(200, 300), kind)
    messages = []
    for length in (0, 1, 10, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        try:
            read_image(data[:length])
        except ImageError as error:
            messages.append(str(error))
    assert len(messages) >= 5
    assert all("image bytes" in message for message in messages)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_raise_anything_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "WEBP", "TIFF", "GIF")[seed % 5]
    data = bytearray(encoded(photo(), kind))
    for position in rng.integers(0, len(data), 8):
        data[position] = int(rng.integers(256))
    with contextlib.suppress(ImageError):
        assert read_image(bytes(data), max_pixels=1_000_000).shape[0] == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.png", b"hello, I am text", "not an image"),
        ("empty.jpg", b"", "not an image"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        ("no-data.png", png_header(10, 10), "damaged"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    assert name in str(caught.value)


def test_missing_file_and_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_open_rgba_keeps_alpha_and_wants_it() -> None:
    rgba = Image.new("RGBA", (5, 4), (10, 20, 30, 40))
    cutout = open_rgba(encoded(rgba))
    assert cutout.shape == (4, 4, 5)
    assert cutout[:, 0, 0].tolist() == [10, 20, 30, 40]
    with pytest.raises(ImageError, match="no alpha channel"):
        open_rgba(encoded(photo()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("sides", "options", "wanted"),
    [
        ((40, 60), {}, (40, 64)),
        ((37, 91), {}, (40, 88)),
        ((3, 100), {}, (8, 104)),
        ((40, 60), {"short_side": 32}, (32, 48)),
        ((300, 100), {"short_side": 20}, (64, 24)),
        ((41, 33), {"size": (16, 64)}, (16, 64)),
    ],
)
def test_resize_gives_whole_patches(
    dtype: torch.dtype, sides: tuple[int, int], options: dict, wanted: tuple[int, int]
) -> None:
    image = (torch.rand(3, *sides) * 255).to(dtype)
    resized = resize_to_patches(image, 8, **options)
    assert resized.shape == (3, *wanted)
    assert resized.dtype == dtype
    assert resize_to_patches(image[None].repeat(2, 1, 1, 1), 8, **options).shape == (2, 3, *wanted)
    assert torch.equal(resize_to_patches(resized, 8), resized)


def test_resize_is_antialiased_and_stays_in_range() -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = resize_to_patches(stripes, 16, size=(16, 16)).float()
    assert (small - 127.5).abs().max() < 12  # aliasing would keep black or white
    step = torch.zeros(3, 16, 16)
    step[:, :, 8:] = 1
    large = resize_to_patches(step, 16, size=(64, 64))
    assert 0 <= float(large.min()) <= float(large.max()) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (10, 16)}, "multiples of patch_size 8"),
        ({"size": (0, 16)}, "multiples of patch_size 8"),
        ({"size": (16, 16), "short_side": 16}, "not both"),
        ({"short_side": 0}, "short_side"),
    ],
)
def test_resize_refuses(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resize_to_patches(torch.zeros(3, 20, 20), 8, **options)


def test_normalize_is_the_formula_and_inverts() -> None:
    image = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    channels = [(image[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)]
    wanted = torch.stack(channels, dim=1).float()
    assert torch.allclose(normalize(image, mean, std), wanted, atol=1e-6)
    assert torch.allclose(normalize(image.float() / 255, mean, std), wanted, atol=1e-6)
    assert torch.allclose(denormalize(wanted, mean, std), image.float() / 255, atol=1e-6)
    assert normalize(torch.tensor(IMAGENET_MEAN).view(3, 1, 1)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="3 values"):
        normalize(torch.zeros(1, 4, 4))


def test_png_round_trips() -> None:
    image = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)
    assert torch.equal(read_image(encode_png(image)), image)
    for top in (3, 255, 256, 65535):
        mask = torch.randint(0, top + 1, (6, 9))
        mask[0, 0] = top
        with Image.open(io.BytesIO(encode_mask_png(mask))) as decoded:
            assert np.array_equal(np.array(decoded).astype(np.int64), mask.numpy())
            assert decoded.mode == ("L" if top <= 255 else "I;16")


@pytest.mark.parametrize("mask", [torch.zeros(3, 3), torch.full((3, 3), -1), torch.full((3, 3), 70000)])
def test_mask_png_refuses(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        encode_mask_png(mask)
    with pytest.raises(ValueError, match="uint8"):
        encode_png(torch.zeros(3, 4, 4))


def test_list_images_is_recursive_sorted_and_clear(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/c.webp", "notes.txt", ".hidden/x.png", ".y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/c.webp", "a/z.jpg", "b.PNG"]
    with pytest.raises(ImageError, match="does not exist"):
        list_images(tmp_path / "absent")
    with pytest.raises(ImageError, match="is a file"):
        list_images(tmp_path / "b.PNG")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ImageError, match=r"contains no images.*\.jpg"):
        list_images(tmp_path / "bare")
