"""Labelled scenes for any machine: cut-outs on photographs with exact masks, captions, depth order and motion."""

from workbench.scenes.builtin import builtin_library
from workbench.scenes.folder import folder_library
from workbench.scenes.folder_images import FolderImages
from workbench.scenes.library import Background, ClassName, Cutout, Library
from workbench.scenes.scene import Scene, SceneConfig, ScenePair
from workbench.scenes.scenes import Scenes

__all__ = [
    "Background",
    "ClassName",
    "Cutout",
    "FolderImages",
    "Library",
    "Scene",
    "SceneConfig",
    "ScenePair",
    "Scenes",
    "builtin_library",
    "folder_library",
]
