"""The mean of the weights of several networks, as a folder that `load_backbone("hf:FOLDER")` and transformers open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workbench.backbones import ConvNeXt, Network, VisionTransformer, architecture_of
from workbench.backbones.architecture import network_with_weights
from workbench.export import Export, check_target, write_export
from workbench.loading import load_backbone
from workbench.model_card import Origin
from workbench.origin import origin_of

TRAINING_ONLY = ("drop_path", "rope_shift", "rope_jitter", "rope_rescale")
"""Fields of a config that change no inference: a fork may set them anew, and the mean takes those of the first."""
_STEPS = re.compile(r"(?P<before>run:.+@step=)(?P<steps>\d{1,18}(?:,\d{1,18})+)(?P<after>(?::.+)?)", re.DOTALL)


def average_backbones(specs: Sequence[str], folder: str | Path, *, overwrite: bool = False) -> Export:
    """Write the mean of the weights of the networks that `specs` name as a folder for transformers, with a card.

    "run:PATH@step=A,B,C[:role]" stands for three of them. The folder appears whole or not at all. Raises ValueError for
    fewer than two networks, for networks that cannot be averaged (see `mean_network`), for inputs normalised in
    different ways, and for a folder that `export_backbone` would refuse.
    """
    names = expand_steps(specs)
    if len(names) < 2:
        raise ValueError(
            f"{', '.join(names) or 'nothing'} is no two networks; name several, or run:PATH@step=A,B,C for several "
            "steps of one run."
        )
    check_target(Path(folder).resolve(), overwrite)
    network = mean_network({name: _ours(name) for name in names})
    return write_export(network, folder, _origin(names), f"mean of {len(names)} networks", overwrite=overwrite)


def expand_steps(specs: Sequence[str]) -> list[str]:
    """`specs` with each "run:PATH@step=A,B[:role]" replaced by one spec a step, without repetitions."""
    names: list[str] = []
    for spec in specs:
        found = _STEPS.fullmatch(spec)
        steps = found["steps"].split(",") if found else []
        names += [f"{found['before']}{step}{found['after']}" for step in steps] if found else [spec]
    return list(dict.fromkeys(names))


def mean_network(networks: Mapping[str, Network]) -> Network:
    """The network whose every weight is the mean over `networks` (name -> network), added up in float64.

    In evaluation mode, float32, sharing no memory with them. Makes sense for checkpoints of one training, or of
    trainings that were forked from it: their weights lie in one valley. Raises ValueError, with the names, for
    architectures that differ, constants (RoPE periods, masks of biases) that differ, and weights that are not finite.
    Source: Izmailov et al. 2018 (arXiv 1803.05407); equal weights.
    """
    (first, reference), *others = networks.items()
    for name, network in others:
        _check_alike(first, reference, name, network)
    constants = {name for name, _ in reference.named_buffers()}
    states = {name: network.state_dict() for name, network in networks.items()}
    mean = {}
    for key in states[first]:
        parts = {name: state[key] for name, state in states.items()}
        mean[key] = _shared(key, parts) if key in constants else _mean(key, parts)
    return network_with_weights(reference.config, mean)


def _ours(spec: str) -> Network:
    network = load_backbone(spec)
    if not isinstance(network, VisionTransformer | ConvNeXt):
        raise ValueError(
            f"{spec} is a {type(network).__name__}; only VisionTransformer and ConvNeXt are averaged. "
            "Name steps of runs, exports of them, or DINOv3 weights."
        )
    return network


def _check_alike(first: str, reference: Network, name: str, network: Network) -> None:
    ours, theirs = architecture_of(reference), architecture_of(network)
    if ours["class"] != theirs["class"]:
        raise ValueError(
            f"{first} is a {ours['class']}, {name} a {theirs['class']}; only networks of one kind average."
        )
    different = [
        f"{field} {value!r} and {theirs['config'][field]!r}"
        for field, value in ours["config"].items()
        if value != theirs["config"][field] and field not in TRAINING_ONLY
    ]
    if different:
        raise ValueError(
            f"{first} and {name} are no checkpoints of one network; they differ in {', '.join(different)}."
        )


def _mean(key: str, parts: Mapping[str, Tensor]) -> Tensor:
    for name, tensor in parts.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has weights that are not finite ({key}); leave that checkpoint out.")
    total = torch.zeros_like(next(iter(parts.values())), dtype=torch.float64)
    for tensor in parts.values():
        total += tensor
    return (total / len(parts)).float()


def _shared(key: str, parts: Mapping[str, Tensor]) -> Tensor:
    (first, reference), *others = parts.items()
    for name, tensor in others:
        if not torch.allclose(reference, tensor, rtol=1e-6, atol=0, equal_nan=True):
            raise ValueError(
                f"{first} and {name} have other constants ({key}), as when one was saved in half precision; "
                "average weights that were saved alike."
            )
    return reference.clone()


def _origin(names: Sequence[str]) -> Origin:
    """What the card says of the mean: where each part comes from, and the terms of them all."""
    origins = [origin_of(name) for name in names]
    inputs = {(tuple(origin.mean), tuple(origin.std)) for origin, _ in origins}
    if len(inputs) > 1:
        shown = "; ".join(f"mean {list(mean)}, deviation {list(std)}" for mean, std in sorted(inputs))
        raise ValueError(f"the networks take inputs that are normalised in different ways ({shown}); do not mix them.")
    facts: dict[str, object] = {"weights": f"mean of {len(names)} networks, all counting alike"}
    facts |= {f"part {number}": title for number, (_, title) in enumerate(origins, start=1)}
    ((mean, std),) = inputs
    terms = "\n\n".join(dict.fromkeys(origin.terms for origin, _ in origins))
    notes = list(dict.fromkeys(note for origin, _ in origins for note in origin.notes))
    return Origin(facts=facts, mean=mean, std=std, terms=terms, notes=notes)
