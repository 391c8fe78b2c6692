"""Networks that turn images into `Features`: our own, adapters for those of others, and a weightless fake."""

from workbench.backbones.architecture import Network, architecture_of, network_from_architecture
from workbench.backbones.convnext import ConvNeXt, ConvNeXtConfig
from workbench.backbones.load import load_standalone
from workbench.backbones.synthetic import SyntheticBackbone
from workbench.backbones.vit import VisionTransformer, ViTConfig

__all__ = [
    "ConvNeXt",
    "ConvNeXtConfig",
    "Network",
    "SyntheticBackbone",
    "ViTConfig",
    "VisionTransformer",
    "architecture_of",
    "load_standalone",
    "network_from_architecture",
]
