"""A film of a run: its probe images' PCA and similarity maps, step after step, as GIF, WebP or MP4."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from workbench.analysis.pca import color_range, fit_pca, project, to_rgb
from workbench.analysis.similarity import similarity
from workbench.plain_files import check_new
from workbench.run_source import provenance, sample_tokens, spread
from workbench.runs import Run
from workbench.views.colours import colour
from workbench.views.sheet import Sheet, sheet_image

FORMATS = (".gif", ".webp", ".mp4")
MOST_IMAGES = 6


def film(
    run: Run,
    out: Path,
    *,
    images: int = 4,
    at: tuple[float, float] = (0.5, 0.5),
    most_steps: int = 60,
    seconds: float = 0.4,
) -> int:
    """Write a film of `run` to the new file `out`; returns how many steps it shows.

    A frame a step: of each of the first `images` probe images the PCA map and the cosine to its patch at `at` (x, y in
    [0, 1]), under one basis and one colour range for all steps, so that a change of colour is a change of features.
    The provenance is the comment of a GIF or an MP4 and the XMP entry of a WebP. Raises ValueError for a run without
    features, another format, or steps of different grids; ImportError where .mp4 needs PyAV.
    """
    check_new(out, FORMATS)
    if not 1 <= images <= MOST_IMAGES or most_steps < 2 or seconds <= 0 or not all(0 <= place <= 1 for place in at):
        raise ValueError(f"a film shows 1 to {MOST_IMAGES} images, 2 steps or more, a time and a place in 0 to 1.")
    if out.suffix == ".mp4":
        _av()
    steps = spread(run.probe_steps(), most_steps)
    if not steps:
        raise ValueError(f"{run.path} has no probe features (yet); they come with its first evaluation.")
    frames = _frames(run, steps, images, at)
    about = json.dumps({**provenance(run), "steps": steps, "at": list(at)})
    if out.suffix == ".mp4":
        _write_mp4(frames, out, seconds, about)
    else:
        _write_animation(frames, out, seconds, about)
    return len(steps)


def _frames(run: Run, steps: Sequence[int], images: int, at: tuple[float, float]) -> list[Image.Image]:
    tokens = sample_tokens(run, spread(list(steps)))
    basis = fit_pca(tokens)
    limits = color_range(project(basis, tokens))
    probes = run.probe_images().images[:images]
    pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in probes]
    captions = run.probe_images().captions or [{"en": f"probe {i}"} for i in range(len(pictures))]
    frames = []
    for step in steps:
        patches = run.probe_features(step).patches[: len(pictures)].float()
        if patches.shape[-1] != tokens.shape[1]:
            raise ValueError(f"{run.path} has features of another width at step {step}; a film needs one.")
        row, column = (
            min(int(place * size), size - 1) for place, size in zip(at[::-1], patches.shape[1:3], strict=True)
        )
        pca = (255 * to_rgb(project(basis, patches), limits)).round().to(torch.uint8).numpy()
        cosines = [
            colour(similarity(patches[i : i + 1], (0, row, column))[0].numpy(), 0, 1) for i in range(len(pictures))
        ]
        rows = [
            ("images", pictures),
            ("PCA, one basis for all steps", list(pca)),
            ("cosine to the red patch, 0 to 1", cosines),
        ]
        place = ((column + 0.5) / patches.shape[2], (row + 0.5) / patches.shape[1])
        marks = [(0, i, *place) for i in range(len(pictures))]
        names = [caption.get("en", "") for caption in captions[: len(pictures)]]
        frames.append(sheet_image(Sheet(names, rows, {}, f"{run.name}, step {step}", marks)))
    return frames


def _write_animation(frames: Sequence[Image.Image], out: Path, seconds: float, about: str) -> None:
    """The last step stays for five times as long."""
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(5000 * seconds)]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    with out.open("xb") as file:
        if out.suffix == ".gif":
            small = [frame.quantize(200, dither=Image.Dither.NONE) for frame in frames]
            small[0].save(file, "GIF", **{**more, "append_images": small[1:]}, optimize=True, comment=about.encode())
        else:
            frames[0].save(file, "WEBP", **more, quality=85, method=4, xmp=about.encode())


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise ImportError(
            "an .mp4 is written by PyAV, which is not here. Install it (pip install 'dense-feature-workbench[video]'), "
            "or choose .gif or .webp."
        ) from None


def _write_mp4(frames: Sequence[Image.Image], out: Path, seconds: float, about: str) -> None:
    """H.264, sides even as it wants them; each step is held for `seconds`, the last for five times as long."""
    width, height = (side // 2 * 2 for side in frames[0].size)
    with _av().open(str(out), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["comment"] = about
        stream = container.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(frames):
            held = max(1, round(10 * seconds * (5 if number == len(frames) - 1 else 1)))
            pixels = np.asarray(frame)[:height, :width]
            for _ in range(held):
                container.mux(stream.encode(_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        container.mux(stream.encode())
