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

    Nothing is allocated for a tensor that does not fit. Raises RuntimeError naming every tensor that is missing, left
    over or of another shape, or the first that holds no plain real numbers.
    """
    with torch.device("meta"):
        network = network_of(config)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    ready = {}
    for name, tensor in state.items():
        _check_plain(name, tensor)
        ready[name] = tensor.float() if tensor.shape == shapes.get(name, tensor.shape) else tensor
    network.load_state_dict(ready, strict=True, assign=True)
    return network.eval()


def _check_plain(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise RuntimeError(f"{name} is a {type(tensor).__name__}, not a tensor.")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.is_floating_point():
        raise RuntimeError(
            f"{name} is a tensor of {tensor.dtype} ({tensor.layout}, {tensor.device}), not of plain floats."
        )


def architecture_of(model: Network) -> dict[str, Any]:
    """What `architecture.json` records: class name and every field of the config, as a plain JSON tree."""
    return {"class": type(model).__name__, "config": model.config.to_dict()}


def network_from_architecture(architecture: Mapping[str, Any]) -> Network:
    """Build the network that `architecture_of` recorded, with fresh weights. Raises as `config_from_architecture`."""
    return network_of(config_from_architecture(architecture))


def config_from_architecture(architecture: Mapping[str, Any]) -> NetworkConfig:
    """The config that `architecture_of` recorded.

    Raises ValueError for another class, a missing part, a field the config does not have (naming the nearest), and
    values that it does not allow.
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
    try:
        return owner(**config)
    except TypeError as error:  # a field of another type, such as a text where a number belongs
        raise ValueError(f"architecture has a field of {owner.__name__} that is no such value: {error}.") from None
