"""`load_backbone`: any backbone from one line of text. Stands above both runs and backbones, so it can open either."""

from __future__ import annotations

import torch
from torch import nn

from workbench.backbones.load import SPEC_FORMS, describe_forms, load_standalone
from workbench.features import Backbone
from workbench.runs import load_run_backbone

RUN_FORM = {"run:PATH[@step=N][:role]": "a network of a run directory (default: the one it evaluates, last step)"}


def load_backbone(spec: str, *, device: torch.device | str = "cpu") -> Backbone:
    """A backbone in evaluation mode on `device`, from a spec such as `synthetic` or `run:runs/demo@step=500:teacher`.

    Its parameters ask for no gradients. Nothing is downloaded and no code in a file is run. Raises ValueError for an
    unknown spec, listing the valid forms.
    """
    kind = spec.partition(":")[0]
    if kind == "run":
        return _frozen(load_run_backbone(spec), device)
    if kind not in {form.partition(":")[0] for form in SPEC_FORMS}:
        raise ValueError(f"unknown backbone spec {spec!r}; valid forms:\n{describe_forms(RUN_FORM | SPEC_FORMS)}")
    return _frozen(load_standalone(spec, device=device), device)


def _frozen(backbone: Backbone, device: torch.device | str) -> Backbone:
    """`backbone` itself; a network is moved, put in evaluation mode and asked for no gradients."""
    return backbone.to(device).eval().requires_grad_(False) if isinstance(backbone, nn.Module) else backbone
