"""The shared renderer in headless Chromium: the same numbers as Python, keys and pointer, text shown as text."""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page
from skimage import data

from workbench.analysis.similarity import similarity
from workbench.backbones import SyntheticBackbone
from workbench.features import Features
from workbench.images import normalize
from workbench.runs import Run
from workbench.views import page as page_module
from workbench.views.encode import encode_features
from workbench.views.page import standalone_page, without_policy
from workbench.views.similarity import best_matches
from workbench.views.steps import FeatureSteps

pytestmark = pytest.mark.browser
STATIC = Path(page_module.STATIC)
SIDE, PATCH = 96, 8


@pytest.fixture(scope="session")
def photos() -> torch.Tensor:
    """[4, 3, 96, 96] uint8: four photographs."""
    arrays = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    crops = [torch.from_numpy(array[:300, :300].copy()).permute(2, 0, 1)[None].float() for array in arrays]
    small = torch.cat([torch.nn.functional.interpolate(crop, (SIDE, SIDE), mode="area") for crop in crops])
    return small.round().to(torch.uint8)


@pytest.fixture(scope="session")
def film(photos: torch.Tensor) -> dict[int, Features]:
    """Features that change smoothly over six steps, from noise to structure."""
    generator = torch.Generator().manual_seed(0)
    final = SyntheticBackbone(PATCH, 40, 3).features(normalize(photos))
    noise = torch.randn(final.patches.shape, generator=generator)
    mix = [(100 * step, step / 5) for step in range(6)]
    return {step: final._replace(patches=final.patches * a + noise * (1 - a)) for step, a in mix}


def run_source(photos: torch.Tensor, film: dict[int, Features], caption: str = "a photo") -> FeatureSteps:
    return FeatureSteps(
        photos,
        film,
        captions=[{"en": f"{caption} {i}", "zh": f"照片 {i}"} for i in range(len(photos))],
        series={"dense/patch_knn": {step: 0.4 + step / 5000 for step in film}, caption: {step: 1.0 for step in film}},
        events=[{"step": 200, "level": "warn", "kind": "dense-peak", "text": caption}],
        run={"name": caption, "phase": "pretrain", "status": "live", "steps": 600},
    )


def show(page: Page, folder: Path, source: FeatureSteps, **state: Any) -> None:
    """Open a standalone page of the source and wait for all its steps and photos."""
    path = folder / "view.html"
    path.write_text(without_policy(standalone_page(source, **state)), encoding="utf-8")
    page.goto(path.as_uri())
    steps, images = len(source.features), len(source.images)
    page.wait_for_function(
        "([steps, images]) => { const view = document.querySelector('.dfw')?.view;"
        " return view?.frames.held.size === steps && view.stage.bitmaps.size === images && view.matches; }",
        arg=[steps, images],
    )


MODULE = "const m = await import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })));"


def run_module(page: Page, body: str, **arguments: Any) -> Any:
    """Run `body` in the page with the renderer's exports as `m` and base64 `arguments` as Uint8Arrays."""
    text = (STATIC / "renderer.js").read_text(encoding="utf-8")
    given = {name: base64.b64encode(value).decode() for name, value in arguments.items()}
    decode = """
      const bytes = (data) => Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const a = Object.fromEntries(Object.entries(given).map(([key, data]) => [key, bytes(data)]));
    """
    return page.evaluate(f"async ({{ text, given }}) => {{ {MODULE} {decode} {body} }}", {"text": text, "given": given})


SHORT = [
    *("--loop.steps", "20", "--loop.evaluate-every", "20", "--loop.probe-every", "20", "--optim.lr.warmup-steps", "5"),
    *("--data.count", "64", "--data.backgrounds", "4", "--batch.batch-size", "8", "--batch.workers", "0"),
    *("--augment.local-crops", "2", "--evaluation.suite.train-scenes", "6", "--evaluation.suite.test-scenes", "4"),
    *("--evaluation.suite.bank", "30", "--evaluation.suite.queries", "8", "--evaluation.suite.probe-iterations", "3"),
]


@pytest.fixture(scope="session")
def trained(photos: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Features of the photographs by the teacher of a short real training on scenes (seconds on one core)."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = [sys.executable, "-m", "training", "pretrain", "cpu_demo", "--run", str(folder), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [row["loss/total"] for row in Run(folder).metrics()[0]]
    assert losses[-1] < losses[0] - 0.1
    model = Run(folder).backbone("teacher")
    side = 8 * model.patch_size
    large = torch.nn.functional.interpolate(photos.float(), (side, side), mode="bilinear") / 255
    with torch.no_grad():
        return model.features(normalize(large))


def outliers(features: Features) -> Features:
    """The same with what large networks have: two channels fifty times as wide, some patches thirty times as long."""
    patches = features.patches.clone()
    patches[..., [1, patches.shape[-1] // 2]] *= 50
    patches[:, 2, 3] *= 30
    patches[1, 5] *= 30
    return features._replace(patches=patches)


def test_the_kernel_is_what_the_script_assembles() -> None:
    spec = importlib.util.spec_from_file_location("build_kernel", STATIC / "build_kernel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (STATIC / "renderer.js").read_text(encoding="utf-8")
    assert f'"{base64.b64encode(module.build()).decode()}"' in text


def test_the_module_stands_alone() -> None:
    text = (STATIC / "renderer.js").read_text(encoding="utf-8")
    assert "import " not in "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    assert "innerHTML" not in text
    assert "</script" not in text


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 1e-2), ("float16", 1e-3)])
@pytest.mark.parametrize("wasm", [True, False])
@pytest.mark.parametrize("of", ["training", "training, with outliers"])
def test_maps_equal_pythons(page: Page, trained: Features, of: str, dtype: Any, tolerance: float, wasm: bool) -> None:
    features, query = trained if of == "training" else outliers(trained), (2, 5, 1)
    _, height, width, _ = features.patches.shape
    index = (query[0] * height + query[1]) * width + query[2]
    body = f"""
      const frame = m.makeFrame(m.decodeTensors(a.data)), kernel = new m.Kernel({str(wasm).lower()});
      kernel.bind(frame);
      const cosines = Array.from(kernel.cosines({index}));
      const query = {{ image: {query[0]}, row: {query[1]}, col: {query[2]} }};
      const best = m.bestMatches(cosines, frame, query);
      return {{ cosines, best, norms: Array.from(frame.norms), used: Boolean(kernel.wasm) }};
    """
    told = run_module(page, body, data=encode_features(features, dtype))
    assert told["used"] is wasm
    expected = similarity(features.patches, query)
    torch.testing.assert_close(torch.tensor(told["cosines"]), expected.flatten(), rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.tensor(told["norms"]), features.patches.norm(dim=-1).flatten(), rtol=2e-2, atol=0)
    for mine, theirs in zip(told["best"], best_matches(features.patches, query), strict=True):
        assert theirs is not None
        assert mine["value"] == pytest.approx(theirs["similarity"], abs=tolerance)


@pytest.mark.parametrize("channels", [384, 72, 5])
def test_wasm_equals_javascript(page: Page, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    patches = torch.randn(2, 7, 9, channels, generator=generator)
    features = Features(patches, patches.mean(dim=(1, 2)), patches.new_zeros(2, 0, channels))
    body = """
      return [a.int8, a.float16].map((bytes) => {
        const frame = m.makeFrame(m.decodeTensors(bytes)), fast = new m.Kernel(true), plain = new m.Kernel(false);
        fast.bind(frame);
        plain.bind(frame);
        let worst = 0;
        for (const query of [0, 62, 63, 125]) {
          const expected = plain.cosines(query);
          fast.cosines(query).forEach((c, i) => { worst = Math.max(worst, Math.abs(c - expected[i])); });
        }
        return worst;
      });
    """
    int8, float16 = run_module(
        page, body, int8=encode_features(features, "int8"), float16=encode_features(features, "float16")
    )
    assert int8 < 1e-6
    assert float16 < 1e-5


def test_the_axis_of_cosines_reaches_down_to_the_least(page: Page) -> None:
    ticks = "return [[[], 'unit'], [[0.2, 1], 'unit'], [[0.9, -0.42, null], 'unit'], [[-0.03], 'unit'], [[-1], 'unit'],"
    told = run_module(page, f"{ticks} [[0.4], 'signed']].map((given) => m.cosineTicks(...given));")
    assert told == [[0, 1], [0, 1], [-0.5, 0, 1], [-0.1, 1], [-1, 0, 1], [-1, 0, 1]]


def test_negative_cosines_are_drawn_over_time(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    """The class token points away from every patch, so its curve lies below 0 at every step."""
    against = {step: features._replace(cls=-features.patches.mean(dim=(1, 2))) for step, features in film.items()}
    show(page, tmp_path, run_source(photos, against), selection={"image": 1, "row": 5, "col": 5})
    page.wait_for_function("document.querySelector('.dfw-mini').getAttribute('aria-label').includes('axis −')")
    label = page.locator(".dfw-mini").get_attribute("aria-label") or ""
    assert "CLS −" in label
    rows = page.evaluate(
        f"""() => {{
          const canvas = document.querySelector(".dfw-mini"), context = canvas.getContext("2d"), found = new Set();
          const wanted = document.createElement("canvas").getContext("2d");
          wanted.fillStyle = {VIEW}.colours.accent;
          wanted.fillRect(0, 0, 1, 1);
          const [r, g, b] = wanted.getImageData(0, 0, 1, 1).data;
          const {{ width, height }} = canvas, {{ data }} = context.getImageData(0, 0, width, height);
          for (let i = 0; i < data.length; i += 4) {{
            const near = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
            if (near < 12 && data[i + 3] > 200) found.add(Math.floor(i / 4 / width));
          }}
          return {{ rows: [...found], height }};
        }}"""
    )
    assert max(rows["rows"]) - min(rows["rows"]) > 0.1 * rows["height"], "a curve, not a line along the bottom"
    page.locator(".dfw-controls select").last.select_option("signed")
    page.wait_for_function("document.querySelector('.dfw-mini').getAttribute('aria-label').includes('axis −1 to 1')")


def test_the_trainers_words_are_told_in_chinese(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    source = run_source(photos, film)
    told = {
        "started": ("recipe cpu_demo, seed 7", "开始 · 配方 cpu_demo，随机种子 7"),
        "resumed": ("continued from step 300", "继续 · 从第 300 步继续"),
        "nan-skipped": ("gradient norm not finite: step 9 left weights alone", "第 9 步未更新权重"),
        "finished": ("finished at step 500 of 500", "完成"),
        "bad-image": ("a.png: truncated", "图像无法读取 · a.png: truncated"),
    }
    source.events = [{"step": 0, "level": "info", "kind": kind, "text": text} for kind, (text, _) in told.items()]
    show(page, tmp_path, source, language="zh")
    log = page.locator(".dfw-log").inner_text()
    assert all(words in log for _, words in told.values()), log
    assert not any(word in log for word in ("recipe", "continued", "weights"))


def test_decoding_reads_every_half_and_refuses_nonsense(page: Page) -> None:
    from safetensors.torch import save

    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 6e-8, 65504.0, 0.1], dtype=torch.float16)
    body = """
      const told = {}, tensors = m.decodeTensors(a.good);
      told.values = Array.from(m.toFloat32(tensors.x));
      told.shape = tensors.x.shape;
      const shifted = new Uint8Array(a.good.length + 3);
      shifted.set(a.good, 3);
      told.shifted = Array.from(m.toFloat32(m.decodeTensors(new DataView(shifted.buffer, 3)).x));
      told.errors = [a.good.slice(0, 5), a.good.slice(0, 40), a.good.slice(0, -2), a.bad].map((bytes) => {
        try { m.decodeTensors(bytes); return ""; } catch (error) { return error.message; }
      });
      return told;
    """
    told = run_module(page, body, good=save({"x": values}), bad=save({"x": values.double()}))
    assert told["values"] == values.float().tolist() == told["shifted"]
    assert told["shape"] == [7]
    assert all(told["errors"])
    assert "F64" in told["errors"][3]


def test_steps_stay_within_the_budget(page: Page) -> None:
    body = """
      const load = async (step) => ({ step, bytes: 10 });
      const frames = new m.Frames(load, { budget: 35 });
      frames.setSteps([0, 1, 2, 3, 4, 5, 6, 7]);
      for (const step of [7, 0, 4, 2]) {
        frames.want(step);
        for (let i = 0; i < 50; i++) await null;
        if (!frames.held.has(step) || frames.bytes > 35) return `step ${step}: ${[...frames.held.keys()]}`;
      }
      return frames.held.size;
    """
    assert run_module(page, body) == 3


def test_colours_are_even_and_fixed(page: Page) -> None:
    body = """
      const map = m.SEQUENTIAL, light = (i) => 0.2126 * map[3 * i] + 0.7152 * map[3 * i + 1] + 0.0722 * map[3 * i + 2];
      const rising = Array.from({ length: 255 }, (_, i) => light(i + 1) - light(i));
      const rgba = new Uint8ClampedArray(16);
      m.colourCosines([-5, 0, 1, 5], [0, 1], rgba, 200);
      return { worst: Math.min(...rising), rgba: Array.from(rgba), first: Array.from(m.SEQUENTIAL.slice(0, 3)),
        last: Array.from(m.SEQUENTIAL.slice(-3)), middle: Array.from(m.DIVERGING.slice(3 * 128, 3 * 128 + 3)) };
    """
    told = run_module(page, body)
    assert told["worst"] > -1.0  # never visibly darker for a higher cosine
    assert told["rgba"] == [*told["first"], 200, *told["first"], 200, *told["last"], 200, *told["last"], 200]
    assert max(told["middle"]) - min(told["middle"]) < 8


VIEW = "document.querySelector('.dfw').view"


def pixel(page: Page, kind: str, image: int, row: int, col: int) -> list[int]:
    """Overlay colour of a patch, as drawn."""
    find = f"{VIEW}.stage.pictures.find((p) => p.kind === '{kind}' && p.image === {image} && !p.hero).overlay"
    return page.evaluate(f"Array.from({find}.context.getImageData({col}, {row}, 1, 1).data)")


def wait_drawn(page: Page) -> None:
    page.wait_for_timeout(300)


def test_pointer_and_keys_select_patches(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film))
    selected = f"() => ({VIEW}.pinned)"
    panel = page.locator(".dfw-grid .dfw-probe").nth(1).locator(".dfw-photo").last
    box = panel.bounding_box()
    assert box is not None
    cell = box["width"] / (SIDE // PATCH)
    page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 7.5 * cell)
    page.wait_for_function(f"{VIEW}.hovered?.row === 7")
    assert page.evaluate(selected)["image"] == 0  # hovering selects nothing
    page.mouse.click(box["x"] + 3.5 * cell, box["y"] + 7.5 * cell)
    assert page.evaluate(selected) == {"image": 1, "row": 7, "col": 3}
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(selected) == {"image": 1, "row": 6, "col": 7}
    page.keyboard.press("3")
    assert page.evaluate(selected) == {"image": 2, "row": 6, "col": 7}
    page.wait_for_function("workbench.model.get('selection')?.image === 2")
    label = page.locator(".dfw-photo[tabindex='0']")
    page.wait_for_function("document.querySelector('.dfw [role=status]').textContent.includes('row 7, col 8')")
    assert "row 7, col 8" in (label.get_attribute("aria-label") or "")


def test_the_timeline_scrubs_plays_and_follows(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film), mode="pca")
    wait_drawn(page)
    last = pixel(page, "pca", 1, 4, 4)
    assert page.evaluate(f"{VIEW}.step") == 500
    page.locator(".dfw-track").focus()
    page.keyboard.press("Home")
    wait_drawn(page)
    assert page.evaluate(f"[{VIEW}.step, {VIEW}.follow]") == [0, False]
    assert pixel(page, "pca", 1, 4, 4) != last
    page.keyboard.press("]")
    assert page.evaluate(f"{VIEW}.step") == 100
    page.keyboard.press(" ")
    page.wait_for_function(f"{VIEW}.step === 500 && !{VIEW}.playing", timeout=10_000)
    wait_drawn(page)
    assert pixel(page, "pca", 1, 4, 4) == last
    box = page.locator(".dfw-track").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 400, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.evaluate(f"{VIEW}.step") == 0
    page.keyboard.press("f")
    assert page.evaluate(f"[{VIEW}.step, {VIEW}.follow]") == [500, True]
    page.wait_for_function("workbench.model.get('step') === 500")


def test_pca_colours_equal_pythons(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    from safetensors.torch import load

    from workbench.analysis.pca import Basis, project, to_rgb

    source = run_source(photos, film)
    show(page, tmp_path, source, mode="pca", dtype="float16")
    wait_drawn(page)
    tensors = load(source.basis()[1] or b"")
    basis = Basis(tensors["mean"], tensors["components"], torch.ones(3), 1.0)
    colours = to_rgb(project(basis, film[500].patches), tensors["range"]) * 255
    drawn = page.evaluate(f"Array.from({VIEW}.frames.held.get(500).rgb)")
    torch.testing.assert_close(torch.tensor(drawn).float(), colours.flatten(), rtol=0, atol=1.5)


def test_new_steps_arrive_without_losing_the_patch(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film))
    page.evaluate(f"{VIEW}.pin({{ image: 3, row: 1, col: 2 }})")
    page.evaluate(
        """() => {
          const { view } = document.querySelector(".dfw"), ask = view.invoke, later = structuredClone(view.summary);
          later.steps.push(600);
          view.invoke = async (name, message) => {
            if (name === "summary") return [later, []];
            return ask(name, message.step === 600 ? { ...message, step: 300 } : message);
          };
          workbench.model.set("revision", 1);
        }"""
    )
    page.wait_for_function(f"{VIEW}.step === 600 && {VIEW}.frames.held.has(600)")
    assert page.evaluate(f"{VIEW}.pinned") == {"image": 3, "row": 1, "col": 2}
    page.evaluate(f"{VIEW}.scrubTo(100)")
    page.evaluate("workbench.model.set('revision', 2)")
    page.wait_for_timeout(200)
    assert page.evaluate(f"{VIEW}.step") == 100


def test_live_records_leave_an_open_menu_and_the_log_alone(
    page: Page, tmp_path: Path, photos: torch.Tensor, film: Any
) -> None:
    show(page, tmp_path, run_source(photos, film))
    page.locator(".dfw-choices select").first.focus()
    page.evaluate(
        f"""() => {{
          const view = {VIEW};
          window.before = [...document.querySelectorAll(".dfw-choices select, .dfw-log li")];
          window.later = structuredClone(view.summary);
          for (const series of Object.values(later.series)) {{ series.step.push(510); series.value.push(0.5); }}
          const ask = view.invoke;
          view.invoke = async (name, message) => name === "summary" ? [structuredClone(later), []] : ask(name, message);
          workbench.model.set("revision", 1);
        }}"""
    )
    drawn = f"Object.values({VIEW}.summary.series)[0].step.at(-1) === 510"
    page.wait_for_function(drawn)
    page.wait_for_timeout(100)
    assert page.evaluate("before.every((node) => node.isConnected)")
    assert page.evaluate("document.activeElement.matches('select') && before.includes(document.activeElement)")
    page.evaluate(
        """() => {
          later.series["made/up"] = { step: [0, 500], seconds: [0, 1], value: [0, 1] };
          later.events.push({ step: 500, level: "warn", kind: "made-up", text: "something", time: "" });
          workbench.model.set("revision", 2);
        }"""
    )
    page.locator(".dfw-choices option[value='made/up']").first.wait_for(state="attached")
    page.locator(".dfw-log li", has_text="something").wait_for()


def test_playing_goes_on_past_a_step_that_cannot_be_loaded(
    page: Page, tmp_path: Path, photos: torch.Tensor, film: Any
) -> None:
    show(page, tmp_path, run_source(photos, film))
    page.evaluate(
        f"""() => {{
          const {{ frames }} = {VIEW};
          frames.load = async () => {{ throw new Error("damaged"); }};
          frames.held.delete(200);
          frames.failures.set(200, 3);
          {VIEW}.scrubTo(100);
          {VIEW}.togglePlay();
        }}"""
    )
    page.wait_for_function(f"{VIEW}.step === 500 && !{VIEW}.playing", timeout=10_000)


def test_a_very_long_curve_is_drawn(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film))
    failed = page.evaluate(
        f"""() => {{
          const view = {VIEW}, {{ series }} = view.summary, step = Array.from({{ length: 200_000 }}, (_, i) => i);
          series[view.curves.main] = {{ step, seconds: step, value: step.map((i) => i % 7) }};
          try {{ view.timeline.redraw(); }} catch (error) {{ return String(error); }}
          return null;
        }}"""
    )
    assert failed is None


def test_a_run_without_features_waits_and_then_shows_them(
    page: Page, tmp_path: Path, photos: torch.Tensor, film: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = run_source(photos, film)
    path = tmp_path / "view.html"
    invoke = "const invoke = async (name, { source, index, step }) => {"
    assert invoke in page_module._SCRIPT
    monkeypatch.setattr(page_module, "_SCRIPT", page_module._SCRIPT.replace(invoke, _WAITING))
    path.write_text(without_policy(standalone_page(source)), encoding="utf-8")
    page.goto(path.as_uri())
    page.locator(".dfw-notice", has_text="Waiting for the first features").wait_for()
    page.locator(".dfw-track").click()
    page.keyboard.press("]")
    page.evaluate("window.written = true; workbench.model.set('revision', 1)")
    page.wait_for_function(f"{VIEW}.matches && {VIEW}.step === 500")
    assert page.locator(".dfw-notice").is_hidden()


_WAITING = """const invoke = async (name, { source, index, step }) => {
  if (!window.written && name !== "summary") throw new Error(`asked for ${name} before there was anything`);
  if (!window.written) return [{ ...answers["0:summary:"][0], probes: null, steps: [] }, []];
"""
HOSTILE = "<img src=x onerror='window.pwned=1'><b>bold</b>"


def test_hostile_labels_are_text(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film, caption=HOSTILE))
    wait_drawn(page)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".dfw img").count() == 0
    assert page.locator(".dfw h2").text_content() == HOSTILE
    assert HOSTILE in (page.locator(".dfw-probe").first.text_content() or "")
    assert page.locator(f'.dfw option:text-is("{HOSTILE}")').count() == 2


@pytest.mark.parametrize("width", [1024, 1440, 1920])
def test_nothing_scrolls_sideways_and_panels_stay_in_sight(
    page: Page, tmp_path: Path, photos: torch.Tensor, film: Any, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    show(page, tmp_path, run_source(photos, film))
    wait_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [panel.bounding_box() for panel in page.locator(".dfw-pic").all()]
    timeline = page.locator(".dfw-timeline").bounding_box()
    assert timeline is not None
    assert all(box and box["y"] + box["height"] <= timeline["y"] and box["width"] >= 80 for box in boxes)


def test_language_and_theme_follow_the_model(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film), language="zh", theme="dark")
    assert "照片 0" in (page.locator(".dfw-probe").first.text_content() or "")
    assert page.locator(".dfw").get_attribute("data-theme") == "dark"
    page.evaluate("workbench.model.set('language', 'en')")
    assert "a photo 0" in (page.locator(".dfw-probe").first.text_content() or "")
    page.evaluate("workbench.model.set('theme', 'auto'); document.body.className = 'dark'")
    page.wait_for_timeout(50)
    assert page.locator(".dfw").get_attribute("data-theme") == "dark"
    page.evaluate("document.body.className = ''")
    page.wait_for_function("document.querySelector('.dfw').dataset.theme === 'light'")
    page.evaluate("workbench.close()")
    assert page.locator(".dfw").count() == 0


@pytest.mark.parametrize(
    ("run", "language", "heading"),
    [
        ({}, "en", "teacher"),
        ({"backbone": "student"}, "en", "student"),
        ({"backbone": "student"}, "zh", "学生网络"),
        ({"backbone": "vits_<b>"}, "en", "vits_<b>"),
    ],
)
def test_the_heading_names_the_backbone_that_is_shown(
    page: Page, tmp_path: Path, photos: torch.Tensor, film: Any, run: dict[str, str], language: str, heading: str
) -> None:
    source = run_source(photos, film)
    source.run = {**(source.run or {}), **run}
    show(page, tmp_path, source, language=language)
    assert (page.locator(".dfw-heading").text_content() or "").startswith(f"{heading} · ")


def test_every_control_has_a_name(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    show(page, tmp_path, run_source(photos, film))
    wait_drawn(page)
    nameless = page.evaluate("""() => Array.from(document.querySelectorAll(".dfw button, .dfw select, .dfw input"))
      .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim()))
      .map((e) => e.outerHTML)""")
    assert nameless == []
    page.keyboard.press("Tab")
    stops = page.locator(".dfw-photo[tabindex='0']").count()
    assert stops == 1


def test_images_side_by_side_without_a_run(page: Page, tmp_path: Path, photos: torch.Tensor, film: Any) -> None:
    source = FeatureSteps(photos, {0: film[500]})
    show(page, tmp_path, source, view="patches", selection={"image": 1, "row": 2, "col": 3})
    page.wait_for_function("document.querySelector('.dfw-statusline').textContent.includes('image 2, row 3, col 4')")
    assert page.locator(".dfw-timeline").count() == 0
    best, *_ = [m for m in best_matches(film[500].patches, (1, 2, 3)) if m and m["image"] == 0]
    shown = page.evaluate(f"{VIEW}.matches[0].value")
    assert shown == pytest.approx(best["similarity"], abs=1e-2)


def test_python_draws_in_the_renderers_colours(page: Page) -> None:
    from workbench.views.colours import DIVERGING, SEQUENTIAL, colour

    ours = run_module(page, "return [Array.from(m.SEQUENTIAL), Array.from(m.DIVERGING)];")
    assert ours == [SEQUENTIAL.ravel().tolist(), DIVERGING.ravel().tolist()]
    assert colour(torch.tensor([-1.0, 0.0, 1.0, 2.0]).numpy(), 0, 1).tolist() == SEQUENTIAL[[0, 0, 255, 255]].tolist()
