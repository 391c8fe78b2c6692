"""Networks that turn images into `Features`: our `VisionTransformer`, adapters for others, and a weightless fake."""

from workbench.backbones.load import architecture_of, load_standalone, vision_transformer_from_architecture
from workbench.backbones.synthetic import SyntheticBackbone
from workbench.backbones.vit import VisionTransformer, ViTConfig

__all__ = [
    "SyntheticBackbone",
    "ViTConfig",
    "VisionTransformer",
    "architecture_of",
    "load_standalone",
    "vision_transformer_from_architecture",
]
