"""The config tree: each part is defined in the file of what it configures; here they are put together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from training.data.augment import AugmentConfig, MultiCrop
from training.data.batch import BatchConfig, BatchStream
from training.data.masking import MaskConfig
from training.data.mixing import ResolutionMix
from training.data.sources import FolderConfig, ImageSource, ScenesConfig
from training.evaluation.plan import EvaluationConfig
from training.optim import OptimConfig
from training.phases.anchor import AdaptConfig, AnchorConfig
from training.phases.contrast import ContrastConfig
from training.phases.pretrain import PretrainConfig
from training.start import StartConfig
from training.trainer import LoopConfig

Objectives = AdaptConfig | AnchorConfig | PretrainConfig | ContrastConfig
"""What `TrainConfig.objective` may hold."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run."""

    recipe: str = ""
    """Name of the recipe this started from."""
    seed: int = 0
    """Fixes initial weights, order, crops, masks, stochastic depth and RoPE augmentation."""
    data: ScenesConfig | FolderConfig = field(default_factory=ScenesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    resolutions: ResolutionMix = field(default_factory=ResolutionMix)
    masks: MaskConfig = field(default_factory=MaskConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    objective: Objectives = field(default_factory=PretrainConfig)
    """Networks and losses; its class decides the phase."""
    start: StartConfig = field(default_factory=StartConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def resolve(self) -> TrainConfig:
        """Fractions become steps, the learning rate gets its batch-size factor, one seed reaches every part.

        Raises ValueError when parts do not fit together.
        """
        steps = self.loop.steps
        if self.batch.seed not in (0, self.seed):
            raise ValueError(f"batch.seed is {self.batch.seed}, but the run's seed is {self.seed}; set --seed alone.")
        crops = self.augment.global_crops + self.augment.local_crops
        if crops < 2:
            raise ValueError(f"augment has {crops} crop of each image, with none to compare it to; add local_crops.")
        views = (self.augment.global_crops, self.augment.local_crops)
        if isinstance(self.objective, ContrastConfig) and views != (2, 0):
            raise ValueError(
                f"augment has {views[0]} global and {views[1]} local crops; {self.objective.method} compares 2 global "
                "crops of each image: set --augment.global-crops 2 --augment.local-crops 0."
            )
        gram = any(variant.gram_size for variant in self.resolutions.variants(self.augment))
        if gram and not self.objective.references:
            raise ValueError("Gram crops are cut, but no Gram teacher would see them; set augment.gram_size to None.")
        return replace(
            self,
            batch=replace(self.batch, seed=self.seed),
            objective=self.objective.resolve(steps, self.batch.batch_size),
            optim=self.optim.resolve(steps, self.batch.batch_size),
        )

    def stream(self, source: ImageSource) -> BatchStream:
        """Batches of `source`; masks are drawn only if the objective uses them."""
        masks, patch_size = self.masks if self.objective.masked else None, self.objective.backbone.patch_size
        return BatchStream(source, MultiCrop(self.augment), masks, patch_size, self.batch, mix=self.resolutions)


def as_tree(config: TrainConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and numbers: the content of config.json."""
    return _plain(asdict(config))


def config_from_tree(tree: dict[str, Any], phase: str) -> TrainConfig:
    """The config whose `as_tree` is `tree`, of a run of `phase` (some objectives differ in nothing else).

    A field that the tree lacks has its default: the tree is of an older version. Raises ValueError for a field that
    this version does not know and for values that fit no part.
    """
    try:
        return cast(TrainConfig, _built(TrainConfig, tree, phase))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"this config is none of this version: {error}") from error


def _built(kind: Any, value: Any, phase: str) -> Any:
    """`value`, of a tree, as what the annotation `kind` asks for."""
    if get_origin(kind) in (Union, UnionType):
        options = get_args(kind)
        if value is None and NoneType in options:
            return None
        if not isinstance(value, dict):
            return next((_built(o, value, phase) for o in options if get_origin(o) is tuple), value)
        parts = [option for option in options if is_dataclass(option) and set(value) <= _names(option)]
        named = [part for part in parts if getattr(part, "phase", phase) == phase]
        return _built(min(named or parts or options, key=lambda part: len(_names(part) - set(value))), value, phase)
    if is_dataclass(kind):
        if unknown := sorted(set(value) - _names(kind)):
            raise ValueError(f"this version has no field {unknown[0]!r} in {cast(type, kind).__name__}.")
        hints = get_type_hints(kind)
        return cast(Any, kind)(**{name: _built(hints[name], item, phase) for name, item in value.items()})
    if get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1:] == (...,) else inner
        return tuple(_built(one, item, phase) for one, item in zip(kinds, value, strict=True))
    return value


def _names(kind: Any) -> set[str]:
    return {item.name for item in fields(kind)} if is_dataclass(kind) else set()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """ "path: old -> new" for every leaf that differs between two trees."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
