"""Jupyter hosts of the shared renderer: the same ES module as everywhere, fed by anywidget commands.

Features are pulled by the browser and are no widget state, so a saved notebook stays a few kilobytes.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread
from typing import Any

import anywidget
import torch
import traitlets
from anywidget.experimental import command
from torch import Tensor

from workbench.features import Backbone, Features
from workbench.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from workbench.views.payloads import PayloadSource, answer
from workbench.views.similarity import SimilarityView

STATIC = Path(__file__).parent / "static"


class RendererWidget(anywidget.AnyWidget):
    """Base of all widgets: any `PayloadSource`, shown by `static/renderer.js`.

    Traits, both ways: `selection` {"image", "row", "col"} from 0, `step`, `mode` ("both", "pca", "similarity",
    "image"), `language` ("en", "zh"), `theme` ("auto", "light", "dark"), `dtype` ("int8", "float16": how features
    travel). Increase `revision` when the source has changed.
    """

    _esm = STATIC / "renderer.js"
    _css = STATIC / "renderer.css"

    view = traitlets.Enum(["run", "patches"], "run").tag(sync=True)
    selection = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    step = traitlets.Int(allow_none=True, default_value=None).tag(sync=True)
    mode = traitlets.Enum(["both", "pca", "similarity", "image"], "both").tag(sync=True)
    language = traitlets.Enum(["en", "zh"], "en").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)
    dtype = traitlets.Enum(["int8", "float16"], "int8").tag(sync=True)
    revision = traitlets.Int(0).tag(sync=True)

    def __init__(self, source: PayloadSource, **traits: Any) -> None:
        self.source = source
        super().__init__(**traits)

    def _answer(self, name: str, message: Any) -> tuple[Any, list[bytes]]:
        return answer(self.source, name, message or {})

    @command
    def summary(self, message: Any, buffers: list[bytes]) -> tuple[Any, list[bytes]]:
        """The renderer asks for everything small."""
        return self._answer("summary", message)

    @command
    def image(self, message: Any, buffers: list[bytes]) -> tuple[Any, list[bytes]]:
        """The renderer asks for a picture."""
        return self._answer("image", message)

    @command
    def probes(self, message: Any, buffers: list[bytes]) -> tuple[Any, list[bytes]]:
        """The renderer asks for the features of a step."""
        return self._answer("probes", message)

    @command
    def basis(self, message: Any, buffers: list[bytes]) -> tuple[Any, list[bytes]]:
        """The renderer asks for the PCA basis."""
        return self._answer("basis", message)


class RunView(RendererWidget):
    """Features over training steps with a timeline: `RunView(RunSource("runs/demo"))`, or a `FeatureSteps`."""

    view = traitlets.Enum(["run"], "run").tag(sync=True)

    def follow(self, seconds: float = 2.0) -> Thread:
        """Look every `seconds` for new steps, records and states, in a daemon thread, and show them as they come.

        The thread ends when the run no longer trains, cannot be read any more, or the widget was closed.
        """
        thread = Thread(target=self._follow, args=(seconds,), daemon=True)
        thread.start()
        return thread

    def _follow(self, seconds: float) -> None:
        known: Any = None
        while self.comm is not None:
            try:
                summary = self.source.summary()
            except (OSError, ValueError):
                return
            counts = {name: len(columns["step"]) for name, columns in summary["series"].items()}
            now = (summary["steps"], summary["run"], counts, len(summary["events"]))
            if known is not None and now != known:
                self.set_trait("revision", int(self.revision) + 1)
            known = now
            if not summary["run"] or summary["run"].get("status") != "live":
                return
            time.sleep(seconds)


class PatchView(RendererWidget):
    """Images side by side; a click or the arrow keys select a patch, and its similarity to all others is shown.

    `PatchView(images, features=…)` or `PatchView(images, backbone=…)`. Images are [I, 3, h, w], uint8 or float in
    [0, 1]; a backbone sees them normalised with `mean` and `std` (of channels, ImageNet's unless told otherwise).
    `select()` gives the numbers of the current selection.
    """

    view = traitlets.Enum(["patches"], "patches").tag(sync=True)

    def __init__(
        self,
        images: Tensor,
        features: Features | None = None,
        *,
        backbone: Backbone | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        captions: list[Any] | None = None,
        **traits: Any,
    ) -> None:
        if (features is None) == (backbone is None):
            raise ValueError("PatchView(images, …) wants either features= or backbone=, one of them.")
        if features is None:
            assert backbone is not None
            with torch.no_grad():
                features = backbone.features(normalize(images, mean, std))
        self.similarity = SimilarityView(features, images, captions)
        super().__init__(self.similarity, **{"selection": dict(self.similarity.selection), **traits})

    def select(self) -> dict[str, Any]:
        """The selected patch with its norm, its cosine to CLS and its best match on every image."""
        assert self.selection is not None
        return self.similarity.select(self.selection)
