"""What do features, a PCA map and a similarity map of a large photograph cost, in seconds and in memory?

    python benchmarks/large_image.py [--side 4096 --tile 512 --backbone small] [--browser]

A synthetic photograph of `side` x `side` pixels goes window by window through a network with random weights (ViT-S/16
by default; time and memory do not depend on the weights), then the exact and the sampled PCA basis, the colours, and
maps for clicked patches. Memory is the peak resident size of the process, PyTorch included.

With `--browser` the picture is then shown as one HTML file in a headless Chromium: how large the file is, the seconds
until its features are in memory, and the figures of `benchmarks/hover.py`, with the targets of its larger grid.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from workbench.analysis.pca import color_range, fit_pca, fit_pca_sampled, project, subspace_cosine, to_rgb
from workbench.analysis.similarity import UnitPatches
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.features import Features
from workbench.images import normalize
from workbench.tiles import tiled_features
from workbench.views.page import standalone_page
from workbench.views.steps import FeatureSteps


def main(
    side: int = 4096,
    tile: int = 512,
    margin: int = 64,
    backbone: Literal["small", "base", "large"] = "small",
    browser: bool = False,
) -> None:
    torch.manual_seed(0)
    config = {"small": ViTConfig.vit_small, "base": ViTConfig.vit_base, "large": ViTConfig.vit_large}[backbone]()
    network = VisionTransformer(config).eval().requires_grad_(False)
    said("network built", 0.0)
    coarse = torch.rand(1, 3, side // 32, side // 32)
    pixels = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    image = normalize((255 * pixels).to(torch.uint8))[0]
    start = time.perf_counter()
    features = tiled_features(network, image, tile=tile, margin=margin)
    rows, columns = features.grid
    said(f"features, {rows} x {columns} patches, {features.patches.shape[-1]} channels", time.perf_counter() - start)
    tokens = features.patches.flatten(0, 2)
    start = time.perf_counter()
    exact = fit_pca(tokens, accumulate=torch.float32)
    said("PCA basis, exact", time.perf_counter() - start)
    start = time.perf_counter()
    basis = fit_pca_sampled(tokens)
    said(f"PCA basis, sampled (cosine {subspace_cosine(basis, exact):.5f})", time.perf_counter() - start)
    start = time.perf_counter()
    coordinates = project(basis, features.patches)
    to_rgb(coordinates, color_range(coordinates))
    said("PCA map", time.perf_counter() - start)
    start = time.perf_counter()
    units = UnitPatches(features.patches)
    said("unit patches, once", time.perf_counter() - start)
    times = []
    for k in range(30):
        start = time.perf_counter()
        units.map((0, (37 * k) % rows, (59 * k) % columns))
        times.append(time.perf_counter() - start)
    said("similarity map of one patch, median of 30", statistics.median(times))
    if browser:
        browse(features, pixels)


def browse(features: Features, pixels: Tensor) -> None:
    """Hover over the picture [1, 3, h, w] in its standalone page; exits with 1 where a target is missed."""
    from hover import GRIDS, chromium_page, hover, open_view, report_hover  # needs Playwright

    start = time.perf_counter()
    html = standalone_page(FeatureSteps(pixels, {0: features}), view="patches")
    said(f"HTML file of {len(html) / 1e6:.1f} MB", time.perf_counter() - start)
    with chromium_page() as page:
        said("page opened, features in memory", open_view(page, html, steps=1))
        figures = hover(page.locator(".dfw"), moves=150)
        kept = report_hover(" x ".join(map(str, features.patches.shape[1:])), figures, max(GRIDS.values()))
    raise SystemExit(0 if all(kept) else 1)


def said(what: str, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:58s} {seconds:9.3f} s   peak {peak:5.2f} GB", flush=True)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
