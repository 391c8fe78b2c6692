"""The evaluations a run writes while it trains: built once from labelled scenes, then called with any backbone.

Each value comes with its standard error, over the images that were tested, under its name and ":se".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from training.data.augment import AugmentConfig, MultiCrop
from training.evaluation.knn import (
    AMBIGUOUS,
    PatchSample,
    Voting,
    at_boundary,
    balanced_sample,
    class_fractions,
    patch_labels,
    weighted_global_knn,
    weighted_patch_knn,
)
from training.evaluation.segmentation import fit_linear_probe, predict_pixels, weighted_mean_iou
from workbench.analysis.health import ERROR_SUFFIX, dense_health_with_errors, position_code, with_error_names
from workbench.analysis.health.bootstrap import Weighted, resampled_shares, standard_error, value_of
from workbench.features import Backbone, Features
from workbench.images import normalize


class LabelledScene(Protocol):
    """What the suite needs of a scene (`workbench.scenes.Scene` has it)."""

    @property
    def image(self) -> Tensor:
        """uint8 [3, h, w] RGB."""
        ...

    @property
    def classes(self) -> Tensor:
        """int64 [h, w], 0 is the background."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """Class of each object; the first one names a single-object scene."""
        ...


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """How much is evaluated and how."""

    train_scenes: int = 250
    """Labelled scenes the probe and the patch k-NN learn from."""
    test_scenes: int = 150
    """Scenes both are tested on, and dense health is measured on."""
    bank: int = 1000
    """Single-object images that vote in the global k-NN."""
    queries: int = 500
    """Single-object images it is tested on."""
    size: int = 64
    """Pixels, side of the scenes."""
    seed: int = 0
    """Of the scenes and of the choice of patches."""
    batch_size: int = 64
    """Images a backbone sees at once."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Of the votes, exp(cosine / temperature)."""
    patches_per_class: int = 200
    """Most patches of a class in the patch k-NN's bank, and among its queries."""
    purity: float = 0.75
    """Share of a patch that its class must fill to take part in the patch k-NN."""
    probe_iterations: int = 60
    """Most steps of the linear probe's L-BFGS."""
    probe_l2: float = 1e-4
    """Weight decay of the linear probe."""
    probe_balance: float = 0.5
    """Class weights of the linear probe are frequency to minus this power."""
    noise_images: int = 4
    """Images of random pixels whose features show what position adds."""
    lidar_images: int = 24
    """Test scenes that LiDAR sees augmented views of, an image-level gauge; 0 or 1 leaves it out."""
    lidar_views: int = 3
    """Views of each."""
    resamples: int = 200
    """Resamples of images for standard errors."""

    def __post_init__(self) -> None:
        counts = ("train_scenes", "test_scenes", "bank", "queries", "size", "batch_size", "k", "patches_per_class")
        lowest = dict.fromkeys((*counts, "probe_iterations", "noise_images"), 1)
        for name, least in (lowest | {"lidar_images": 0, "lidar_views": 2, "resamples": 2}).items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"SuiteConfig.{name} is {getattr(self, name)}; give a whole number of at least {least}."
                )
        if self.temperature <= 0 or not 0 < self.purity <= 1:
            raise ValueError(
                f"SuiteConfig.temperature is {self.temperature} and purity {self.purity}; the temperature must be "
                "above 0 and the purity in (0, 1]."
            )


class Suite:
    """Labelled scenes, stacked once. Calling it yields (name, value) with the names of docs/run-format.md."""

    def __init__(
        self,
        train: Sequence[LabelledScene],
        test: Sequence[LabelledScene],
        bank: Sequence[LabelledScene],
        queries: Sequence[LabelledScene],
        *,
        classes: int,
        patch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        config: SuiteConfig | None = None,
    ) -> None:
        """`train` and `test` are scenes of several objects, `bank` and `queries` scenes of a single one.

        `classes` counts the class indices, background 0 included. `mean` and `std` normalise pixels in [0, 1]. The
        patches that take part are chosen here, from the config's seed, the same for every backbone.
        """
        self.config = config or SuiteConfig()
        self.classes, self.patch_size = classes, patch_size
        self._mean, self._std = tuple(mean), tuple(std)
        self._voting = Voting(self.config.k, self.config.temperature, classes)
        self._train, self._test = _stack(train, "train"), _stack(test, "test")
        self._bank, self._queries = _stack(bank, "bank"), _stack(queries, "queries")
        self._bank_labels, self._query_labels = (
            torch.tensor([scene.labels[0] for scene in scenes]) for scenes in (bank, queries)
        )
        self._test_classes = torch.stack([scene.classes for scene in test])
        train_classes = torch.stack([scene.classes for scene in train])
        _check(self._train, train_classes, patch_size, classes)
        _check(self._test, self._test_classes, patch_size, classes)
        self._fractions = class_fractions(train_classes, patch_size, classes)
        generator = torch.Generator().manual_seed(self.config.seed)
        test_fractions = class_fractions(self._test_classes, patch_size, classes)
        labels = patch_labels(test_fractions, self.config.purity)
        self._train_sample = self._sample(patch_labels(self._fractions, self.config.purity), generator)
        self._test_sample = self._sample(labels, generator)
        boundary = torch.where(at_boundary(test_fractions), labels, AMBIGUOUS)
        self._boundary_sample = self._sample(boundary, generator)
        shape = (self.config.noise_images, *self._test.shape[1:])
        self._noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        self._views = self._augmented(self._test[: self.config.lidar_images], generator)

    def __call__(self, backbone: Backbone, *, quick: bool = False) -> Iterator[tuple[str, float]]:
        """Evaluate `backbone`, frozen and in evaluation mode, and yield each value as it is known.

        `quick` leaves out the linear probe and the single-object images. The backbone's training flags are as before
        whenever a value is yielded. Raises ValueError when its patch size is another one.
        """
        if backbone.patch_size != self.patch_size:
            raise ValueError(
                f"this suite was built for patch size {self.patch_size}, the backbone has {backbone.patch_size}; "
                "build a suite for it."
            )
        test = self._encode(backbone, self._test)
        yield from self._health(backbone, test, views=not quick).items()
        train = self._encode(backbone, self._train)
        for name, sample in (("dense/patch_knn", self._test_sample), ("dense/boundary_knn", self._boundary_sample)):
            accuracy = weighted_patch_knn(train.patches, self._train_sample, test.patches, sample, self._voting)
            yield from self._with_error(name, accuracy, len(self._test))
        if quick:
            return
        yield from self._with_error(
            "dense/linear_miou", self._linear_miou(train.patches, test.patches), len(self._test)
        )
        bank, queries = self._encode(backbone, self._bank).cls, self._encode(backbone, self._queries).cls
        accuracy = weighted_global_knn(bank, self._bank_labels, queries, self._query_labels, self._voting)
        yield from self._with_error("global/knn", accuracy, len(queries))

    def _health(self, backbone: Backbone, test: Features, *, views: bool) -> dict[str, float]:
        """The gauges that need no labels and their standard errors; `views` adds LiDAR."""
        code = position_code(self._encode(backbone, self._noise).patches)
        tokens = None
        if views and len(self._views) > 1:
            cls = self._encode(backbone, self._views.flatten(0, 1)).cls
            tokens = cls.unflatten(0, self._views.shape[:2])
        config = self.config
        return with_error_names(
            dense_health_with_errors(test, code=code, views=tokens, resamples=config.resamples, seed=config.seed)
        )

    def _with_error(self, name: str, score: Weighted, images: int) -> Iterator[tuple[str, float]]:
        yield name, value_of(score, images)
        generator = torch.Generator().manual_seed(self.config.seed)
        yield name + ERROR_SUFFIX, standard_error(score, resampled_shares(images, self.config.resamples, generator))

    def _sample(self, labels: Tensor, generator: torch.Generator) -> PatchSample:
        return balanced_sample(labels, self.config.patches_per_class, self.classes, generator)

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Square augmented views uint8 [I, V, 3, s, s] of `images` [I, 3, h, w], s their shorter side."""
        size, views = min(images.shape[2:]), self.config.lidar_views
        if not len(images):
            return images.new_empty(0, views, 3, size, size)
        pixels = AugmentConfig(
            global_size=size, global_crops=views, local_crops=0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
        crops = MultiCrop(pixels)(list(images), generator).globals_.mul(255).round().clamp(0, 255).to(torch.uint8)
        return crops.unflatten(0, (views, len(images))).transpose(0, 1)

    @torch.no_grad()
    def _encode(self, backbone: Backbone, images: Tensor) -> Features:
        """Features of uint8 `images` [I, 3, h, w], in blocks, on the backbone's device, without attention."""
        device = _device_of(backbone)
        parts = []
        with _Frozen(backbone):
            for block in images.split(self.config.batch_size):
                parts.append(backbone.features(normalize(block.to(device), self._mean, self._std)))
        patches, cls, registers = (torch.cat([part[i].float() for part in parts]) for i in range(3))
        return Features(patches, cls, registers)

    def _linear_miou(self, train: Tensor, test: Tensor) -> Weighted:
        probe = fit_linear_probe(
            train,
            self._fractions,
            iterations=self.config.probe_iterations,
            l2=self.config.probe_l2,
            balance=self.config.probe_balance,
        )
        height, width = self._test_classes.shape[1:]
        predicted = predict_pixels(probe, test, (height, width)).cpu()
        return weighted_mean_iou(predicted, self._test_classes, self.classes)


class _Frozen:
    """Evaluation mode for the length of a `with`; each submodule's own training flag comes back."""

    def __init__(self, backbone: Backbone) -> None:
        self._module = backbone if isinstance(backbone, nn.Module) else nn.Module()
        self._flags: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> None:
        self._flags = [(module, module.training) for module in self._module.modules()]
        self._module.eval()

    def __exit__(self, *exception: object) -> None:
        for module, training in self._flags:
            module.training = training


def _device_of(backbone: Backbone) -> torch.device:
    parameter = next(backbone.parameters(), None) if isinstance(backbone, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _stack(scenes: Sequence[LabelledScene], name: str) -> Tensor:
    if not len(scenes):
        raise ValueError(f"the suite got no {name} scenes; give at least one.")
    return torch.stack([scene.image for scene in scenes])


def _check(images: Tensor, classes: Tensor, patch_size: int, count: int) -> None:
    height, width = images.shape[2:]
    if height % patch_size or width % patch_size or classes.shape[1:] != images.shape[2:]:
        raise ValueError(
            f"scenes are {height} x {width} pixels with labels {tuple(classes.shape[1:])}; "
            f"both must agree and be multiples of patch size {patch_size}."
        )
    if classes.max() >= count:
        raise ValueError(f"scenes hold class {classes.max().item()}, but classes is {count} (background included).")
