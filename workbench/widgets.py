"""Jupyter hosts of the shared renderer: the same ES module as everywhere, fed by anywidget commands.

Features, and the renderer itself, are pulled by the browser and are no widget state, so a saved notebook stays a few
kilobytes, with or without the state of its widgets.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
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
from workbench.views.comparison import Comparison
from workbench.views.payloads import PayloadSource, answer
from workbench.views.similarity import SimilarityView

STATIC = Path(__file__).parent / "static"

_LOADER = """\
// Takes the shared renderer from the kernel, once a page, and hands the cell over to it.
const pages = (globalThis.denseFeatureWorkbench ??= new Map());

async function fetched(experimental) {
  const [, [script, style]] = await experimental.invoke("module", {}, { signal: AbortSignal.timeout(120000) });
  const sheet = document.createElement("style");
  sheet.textContent = new TextDecoder().decode(style);
  document.head.append(sheet);
  return import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
}

export default {
  async render({ model, el, experimental }) {
    const digest = model.get("renderer");
    if (!pages.has(digest)) pages.set(digest, fetched(experimental));
    try {
      const { default: renderer } = await pages.get(digest);
      return renderer.render({ model, el, experimental });
    } catch (error) {
      pages.delete(digest);
      el.textContent = `Run the cell to show this. 运行该单元格即可显示。(${error?.message ?? error})`;
    }
  },
};
"""


class RendererWidget(anywidget.AnyWidget):
    """Base of all widgets: any `PayloadSource`, shown by `static/renderer.js`.

    Traits, both ways: `selection` {"image", "row", "col"} from 0, `step`, `mode` ("both", "pca", "similarity",
    "image"), `language` ("en", "zh"), `theme` ("auto", "light", "dark"), `dtype` ("int8", "float16": how features
    travel). Increase `revision` when the source has changed.
    """

    _esm = _LOADER
    renderer = traitlets.Unicode().tag(sync=True)

    view = traitlets.Enum(["run", "gram", "patches", "compare"], "run").tag(sync=True)
    selection = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    step = traitlets.Int(allow_none=True, default_value=None).tag(sync=True)
    mode = traitlets.Enum(["both", "pca", "similarity", "image"], "both").tag(sync=True)
    language = traitlets.Enum(["en", "zh"], "en").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)
    dtype = traitlets.Enum(["int8", "float16"], "int8").tag(sync=True)
    revision = traitlets.Int(0).tag(sync=True)

    def __init__(self, source: PayloadSource | Comparison, **traits: Any) -> None:
        self.source = source
        digest = hashlib.sha256(b"".join(self._files())).hexdigest()
        super().__init__(**{"renderer": digest, **traits})

    @staticmethod
    def _files() -> list[bytes]:
        return [(STATIC / name).read_bytes() for name in ("renderer.js", "renderer.css")]

    @command
    def module(self, message: Any, buffers: list[bytes]) -> tuple[Any, list[bytes]]:
        """The page asks for the renderer: its module and its style sheet."""
        return {}, self._files()

    def _answer(self, name: str, message: Any) -> tuple[Any, list[bytes]]:
        if isinstance(self.source, Comparison):
            return self.source.answer(name, message or {})
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
        assert not isinstance(self.source, Comparison)
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


class GramView(RunView):
    """The Gram matrix of an image over training steps: `GramView(RunSource("runs/demo"))`, or a `FeatureSteps`.

    Traits beside those of all widgets: `anchor`, the step that others are subtracted from (None: the first), `order`
    ("raster", "alike") of rows and columns, `reach` (0.25, 0.5, 1) of the difference's colours. Setting `view` to "run"
    shows the pictures in its place.
    """

    view = traitlets.Enum(["gram", "run"], "gram").tag(sync=True)
    anchor = traitlets.Int(allow_none=True, default_value=None).tag(sync=True)
    order = traitlets.Enum(["raster", "alike"], "raster").tag(sync=True)
    reach = traitlets.Enum([0.25, 0.5, 1], 0.5).tag(sync=True)


class CompareView(RendererWidget):
    """The same images in the eyes of several backbones, layers or steps, one row each; one click asks all of them.

    `CompareView(images, features)`, with `features` {name: Features of the images}, of any grids and widths; see
    `workbench.compare.features_by_backbone` and `features_by_layer`. `selection` also has "source", the number of the
    row, from 0. `select()` tells the selected place in every row's own grid.
    """

    view = traitlets.Enum(["compare"], "compare").tag(sync=True)
    sources = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self, images: Tensor, features: Mapping[str, Features], *, captions: list[Any] | None = None, **traits: Any
    ) -> None:
        self.comparison = Comparison(images, features, captions)
        height, width = next(iter(self.comparison.features.values())).grid
        middle = {"source": 0, "image": 0, "row": height // 2, "col": width // 2}
        super().__init__(self.comparison, **{"sources": self.comparison.names, "selection": middle, **traits})

    def select(self) -> dict[str, dict[str, int]]:
        """{name: {"image", "row", "col"}} of the current selection."""
        assert self.selection is not None
        return self.comparison.select(self.selection)


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
