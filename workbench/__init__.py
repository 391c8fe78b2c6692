"""Dense Feature Workbench: features, runs and pictures of self-supervised vision backbones.

The public names below are imported when first asked for, so that `import workbench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.features import Backbone, Features
    from workbench.images import read_image
    from workbench.loading import load_backbone
    from workbench.runs import Run, list_runs

__version__ = "0.1.0"
__all__ = ["Backbone", "Features", "Run", "list_runs", "load_backbone", "read_image"]

_HOMES = {
    "Backbone": "workbench.features",
    "Features": "workbench.features",
    "Run": "workbench.runs",
    "list_runs": "workbench.runs",
    "load_backbone": "workbench.loading",
    "read_image": "workbench.images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
