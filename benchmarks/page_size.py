"""How large is the HTML file of a run, and how long until it is written and until a browser holds all of it?

    python benchmarks/page_size.py [--probes 8 --steps 100] [--no-browser]

Writes a run of `probes` built-in scenes with features (made up; their bytes are as many) at `steps` steps and 20 curves
of 1,000 records, and gives it to `python -m workbench page`, int8. Two grids: 14 x 14 patches of 192 channels (a ViT-Ti
at 224 pixels), with a limit on the size, and 16 x 16 of 384 (a ViT-S at 256 pixels), printed beside the same limit and
exempt from it. A MB is 10^6 bytes. The browser is Chromium, headless.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
import tyro
from hover import chromium_page, open_view, smooth_features

from workbench.__main__ import main as workbench_command
from workbench.runs import RunWriter
from workbench.scenes import SceneConfig, Scenes, builtin_library

LIMIT = 60.0  # MB
GRIDS = {(14, 192): True, (16, 384): False}  # (patches a side, channels): whether the limit holds
PATCH_SIZE, CURVES, RECORDS = 16, 20, 1000


def write_run(path: Path, probes: int, steps: int, side: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = PATCH_SIZE * side
    scenes = Scenes(builtin_library(), SceneConfig(size=(pixels, pixels)), seed=0)
    images = [scenes[index] for index in range(probes)]
    with RunWriter.create(path, info={"phase": "pretrain", "seed": 0}, config={}) as writer:
        captions = [{"en": scene.caption_en, "zh": scene.caption_zh} for scene in images]
        writer.probe_images(torch.stack([scene.image for scene in images]), patch_size=PATCH_SIZE, captions=captions)
        for record in range(RECORDS):
            values = torch.rand(CURVES, generator=generator).tolist()
            writer.metrics(10 * record, record, {f"loss/{k}": value for k, value in enumerate(values)})
        for step in range(steps):
            writer.probe_features(10 * step, smooth_features(probes, side, channels, generator))


def main(probes: int = 8, steps: int = 100, browser: bool = True) -> None:
    kept = True
    for (side, channels), limited in GRIDS.items():
        with tempfile.TemporaryDirectory() as folder:
            run, file = Path(folder) / "run", Path(folder) / "run.html"
            write_run(run, probes, steps, side, channels)
            start = time.perf_counter()
            if workbench_command(["page", str(run), str(file), "--most-steps", str(steps)]):
                raise SystemExit(1)
            seconds = time.perf_counter() - start
            size, html = file.stat().st_size / 1e6, file.read_text(encoding="utf-8")
        verdict = "kept" if size <= LIMIT else "MISSED" if limited else "beyond it"
        kept = kept and (size <= LIMIT or not limited)
        features = 4 / 3 * probes * steps * side**2 * (channels + 4) / 1e6  # base64 of int8 rows and their scales
        print(
            f"{probes} probes x {steps} steps of {side} x {side} x {channels}: {size:.1f} MB, of which features "
            f"{features:.1f} MB; written in {seconds:.1f} s; limit {LIMIT:.0f} MB: {verdict}",
            flush=True,
        )
        if browser:
            with chromium_page() as page:
                print(f"all {steps} steps in the browser's memory after {open_view(page, html, steps):.1f} s")
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
