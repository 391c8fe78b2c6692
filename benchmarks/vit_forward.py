"""Is our ViT-S/16 forward as fast as timm's and transformers'?  python benchmarks/vit_forward.py --seconds 60

Same weights' shapes, same input, float32, no gradients; the three models take turns, so a busy machine slows all alike.
Reported: process CPU time (median over rounds) and its ratio to ours; above 1 means slower than ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import timm
import torch
import tyro
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from workbench.backbones import VisionTransformer, ViTConfig


def models() -> dict[str, Callable[[torch.Tensor], object]]:
    """ViT-S/16 with four registers, three times, in evaluation mode."""
    ours = VisionTransformer(ViTConfig.vit_small()).eval()
    theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=0).eval()
    config = DINOv3ViTConfig(num_register_tokens=4)
    hugging_face = DINOv3ViTModel(config).eval()
    return {"ours": ours, "timm": theirs.forward_features, "transformers": hugging_face}


def interleaved(calls: dict[str, Callable[[torch.Tensor], object]], images: torch.Tensor, seconds: float) -> dict:
    """CPU seconds of every call of every model, taking turns for about `seconds`, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < 3:
        for name, call in calls.items():
            start = time.process_time()
            call(images)
            times[name].append(time.process_time() - start)
    return times


@torch.inference_mode()
def main(seconds: float = 60.0, threads: int = 1, size: int = 224, batches: tuple[int, ...] = (8, 1)) -> None:
    """Print one line a model and batch size.

    Args:
        seconds: time for all batch sizes together.
        threads: torch threads. size: image side, pixels.
    """
    torch.set_num_threads(threads)
    calls = models()
    print(f"torch {torch.__version__}, {threads} thread(s), {size} px, float32; CPU ms an image, median [best]")
    for batch in batches:
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        times = interleaved(calls, images, seconds / len(batches))
        ours = statistics.median(times["ours"])
        for name, values in times.items():
            middle, best = (1000 * value / batch for value in (statistics.median(values), min(values)))
            ratio = statistics.median(values) / ours
            print(f"B={batch}  {name:<13} {middle:7.1f} [{best:7.1f}]   {ratio:5.2f} x ours   {len(values)} rounds")


if __name__ == "__main__":
    tyro.cli(main)
