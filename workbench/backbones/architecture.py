"""Networks of ours from what `architecture.json` records, and the record of a network."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.convnext import ConvNeXt, ConvNeXtConfig
from workbench.backbones.vit import VisionTransformer, ViTConfig

Network = VisionTransformer | ConvNeXt
NetworkConfig = ViTConfig | ConvNeXtConfig

CONFIGS: dict[str, type[NetworkConfig]] = {"VisionTransformer": ViTConfig, "ConvNeXt": ConvNeXtConfig}
"""Name of a network's class -> class of its config."""


def network_of(config: NetworkConfig) -> Network:
    """The network that `config` describes, with fresh weights (see the networks on `torch.device("meta")`)."""
    return ConvNeXt(config) if isinstance(config, ConvNeXtConfig) else VisionTransformer(config)


def network_with_weights(config: NetworkConfig, state: Mapping[str, Tensor]) -> Network:
    """The network that `config` describes, in evaluation mode, holding the tensors of `state` themselves in float32.

    Raises RuntimeError naming every tensor that is missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = network_of(config)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    return network.eval()


def architecture_of(model: Network) -> dict[str, Any]:
    """What `architecture.json` records: class name and every field of the config, as a plain JSON tree."""
    return {"class": type(model).__name__, "config": model.config.to_dict()}


def network_from_architecture(architecture: Mapping[str, Any]) -> Network:
    """Build the network that `architecture_of` recorded, with fresh weights.

    Raises ValueError for another class, a missing part, or a field the config does not have (naming the nearest).
    """
    kind = architecture.get("class")
    if not isinstance(kind, str) or kind not in CONFIGS:
        allowed = " or ".join(map(repr, CONFIGS))
        raise ValueError(f"architecture has class {kind!r}; allowed: {allowed}.")
    owner, config = CONFIGS[kind], architecture.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(f"architecture has config {config!r}; expected a mapping of {owner.__name__} fields.")
    known = [field.name for field in dataclasses.fields(owner)]
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ValueError(f"{owner.__name__} has no field {name!r}; nearest: {', '.join(near)}.")
    return network_of(owner(**config))
