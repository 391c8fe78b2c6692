"""Is the multi-crop augmentation faster than the same transforms in torchvision v2, sample by sample?

Rounds of the three pipelines take turns on one thread, so that load on the machine hits all alike; the best round
counts, in CPU time of the process. Photographs are decoded beforehand.

    python benchmarks/augment.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.v2 as v2
from PIL import Image
from torch import Tensor

from training.data.augment import AugmentConfig, MultiCrop, blur_kernel
from training.data.sources import ScenesConfig
from workbench.scenes import SceneConfig

ROUNDS = 4
CASES = {
    "112 px -> 2 x 48 + 4 x 24, batch 32": (112, 32, AugmentConfig(global_size=48, local_size=24, local_crops=4)),
    "512 px -> 2 x 224 + 8 x 96, batch 8": (512, 8, AugmentConfig()),
}


def torchvision_view(
    config: AugmentConfig, size: int, scale: tuple[float, float], blur: float, solarize: float
) -> v2.Transform:
    """One view of the official recipe, from a PIL image or a uint8 tensor to a normalised float tensor."""
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    kernel = blur_kernel(config, size)
    sigma = tuple(value * kernel / config.blur_kernel for value in config.blur_sigma)
    crop = v2.RandomResizedCrop(size, scale, config.aspect, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose(
        [
            crop,
            v2.RandomHorizontalFlip(config.flip),
            v2.RandomApply([jitter], config.jitter),
            v2.RandomGrayscale(config.grayscale),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma)], blur),
            v2.RandomSolarize(128, solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.mean, config.std),
        ]
    )


def torchvision_crops(config: AugmentConfig) -> Callable[[list], tuple[Tensor, ...]]:
    """Crop-major global and local crops of a list of images."""
    globals_ = [
        torchvision_view(config, config.global_size, config.global_scale, config.blur_global1, 0.0),
        torchvision_view(config, config.global_size, config.global_scale, config.blur_global2, config.solarize),
    ]
    local = torchvision_view(config, config.local_size, config.local_scale, config.blur_local, 0.0)
    locals_ = [local] * config.local_crops
    return lambda images: tuple(
        torch.stack([view(image) for view in views for image in images]) for views in (globals_, locals_)
    )


def measure(pipelines: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best CPU seconds of each pipeline, in rounds that take turns."""
    best = dict.fromkeys(pipelines, float("inf"))
    for number in range(ROUNDS + 1):  # the first round only warms up
        for name, run in pipelines.items():
            began = time.process_time()
            run()
            seconds = time.process_time() - began
            best[name] = min(best[name], seconds) if number else best[name]
    return best


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for title, (size, batch, config) in CASES.items():
        source = ScenesConfig(count=batch, scene=SceneConfig(size=(size, size), background_contrast=(1, 1))).build()
        tensors = [source[index] for index in range(batch)]
        photos = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in tensors]
        multicrop, theirs, generator = MultiCrop(config), torchvision_crops(config), torch.Generator().manual_seed(0)
        best = measure(
            {
                "MultiCrop": lambda: multicrop(tensors, generator),  # noqa: B023
                "torchvision on tensors": lambda: theirs(tensors),  # noqa: B023
                "torchvision on PIL": lambda: theirs(photos),  # noqa: B023
            }
        )
        print(title)
        for name, seconds in best.items():
            ratio = seconds / best["MultiCrop"]
            print(f"  {name:24s} {1000 * seconds / batch:7.2f} ms/image {ratio:6.2f} x the time of MultiCrop")


if __name__ == "__main__":
    main()
