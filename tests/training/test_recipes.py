"""Every recipe builds and is listed; the official one has the official figures, and its shape trains, scaled down."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from training.__main__ import main
from training.config import TrainConfig, as_tree, differences
from training.data.batch import Batch
from training.data.sources import ScenesConfig
from training.heads import HeadConfig
from training.launch import launch
from training.phases.phase import StepLosses
from training.phases.pretrain import Pretrain, PretrainConfig
from training.recipes import RECIPES, vitl16_im1k
from workbench.runs import Run

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def photos(folder: Path, side: int = 72) -> Path:
    """A folder tree of square cuttings (pixels) from the photographs in the scikit-image wheel."""
    for name in PHOTOS:
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").reduce(2)
        (folder / name).mkdir(parents=True)
        for left in range(0, picture.width - side, side):
            picture.crop((left, 40, left + side, 40 + side)).save(folder / name / f"{left:03d}.png")
    return folder


def scaled_down(path: Path, steps: int = 30) -> TrainConfig:
    """`vitl16_im1k` with its structure and its schedules, every size small, and RoPE rescale at work."""
    full = vitl16_im1k()
    head = HeadConfig(hidden=64, bottleneck=32, prototypes=128)
    backbone = replace(full.objective.backbone, embed_dim=48, depth=3, num_heads=3, ffn_hidden=96, rope_rescale=2.0)
    suite = replace(full.evaluation.suite, train_scenes=6, test_scenes=4, bank=30, queries=8, size=64)
    return replace(
        full,
        data=replace(full.data, path=str(path)),
        augment=replace(full.augment, global_size=64, local_size=32),
        batch=replace(full.batch, batch_size=8, workers=0),
        objective=replace(full.objective, backbone=backbone, dino_head=head, ibot_head=head, koleo_group=4),
        optim=replace(full.optim, freeze_last_layer_steps=1),
        evaluation=replace(full.evaluation, suite=replace(suite, probe_iterations=3), probes=4, probe_size=(64, 64)),
        loop=replace(
            full.loop, steps=steps, log_every=1, probe_every=15, evaluate_every=30, save_every=15, precision="fp32"
        ),
    )


def fixed_loss(losses: Callable[..., StepLosses], phase: Pretrain, batch: Batch) -> dict[str, float]:
    """The losses of `phase` on `batch` as at step 0, with nothing drawn at random."""
    phase.student.eval()
    with torch.no_grad():
        return {name: float(value) for name, value in losses(phase, batch, 0).record.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_resolves_and_survives_json(name: str):
    recipe = RECIPES[name]
    config = recipe.build()
    assert (config.recipe, config.objective.phase) == (name, recipe.phase)
    resolved = config.resolve()
    assert resolved.resolve() == resolved, "resolving twice must not scale twice"
    tree = as_tree(resolved)
    assert differences(json.loads(json.dumps(tree, allow_nan=False)), tree) == []
    for step in (0, 1, resolved.loop.steps // 2, resolved.loop.steps - 1):
        rates = resolved.optim.rates(step)
        assert all(math.isfinite(value) and value >= 0 for value in rates.values())
        assert 0 <= resolved.objective.momentum(step) <= 1
        if isinstance(resolved.objective, PretrainConfig):
            assert resolved.objective.teacher_temperature(step) > 0
    assert recipe.summary
    assert f"python -m training {recipe.phase} {name}" in (recipe.build.__doc__ or "")


@pytest.mark.parametrize("name", RECIPES)
def test_the_crops_of_every_recipe_are_whole_patches(name: str):
    stream = RECIPES[name].build().resolve().stream(ScenesConfig(count=1).build())  # refuses sizes that do not fit
    assert all(side > 0 for grid in stream.grids for side in grid)


def test_help_lists_every_recipe():
    text = subprocess.run(
        [sys.executable, "-m", "training", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    for recipe in RECIPES.values():
        assert recipe.name in text
        assert recipe.summary in text


def test_the_vitl16_recipe_has_the_official_figures():
    """DINOv3's vitl_im1k_lin834.yaml and the defaults under it; 100 epochs of 1250 iterations."""
    config, epoch = vitl16_im1k().resolve(), 1250
    optim, pretrain, last = config.optim, config.objective, config.loop.steps - 1
    assert (config.loop.steps, config.batch.batch_size) == (100 * epoch, 2048)
    assert optim.lr(10 * epoch - 1) == pytest.approx(5.66e-3, rel=1e-3)
    assert optim.lr(0) == 0
    assert optim.lr(last) == pytest.approx(1e-6, rel=0.01)
    assert optim.weight_decay(0) == 0.04
    assert optim.weight_decay(last) == pytest.approx(0.4, abs=1e-6)
    assert pretrain.momentum(0) == 0.992
    assert pretrain.momentum(last) == pytest.approx(1.0, abs=1e-9)
    assert pretrain.teacher_temperature(0) == 0.04
    assert [pretrain.teacher_temperature(step) for step in (30 * epoch - 1, last)] == pytest.approx([0.07, 0.07])
    assert optim.rates(epoch - 1)["last_layer_lr"] == 0
    assert optim.rates(epoch)["last_layer_lr"] == optim.lr(epoch) > 0
    assert (optim.betas, optim.layer_decay, optim.clip_norm) == ((0.9, 0.999), 0.9, 3.0)
    assert optim.patch_embed_lr_multiplier == 0.2
    for head in (pretrain.dino_head, pretrain.ibot_head):
        assert (head.hidden, head.bottleneck, head.prototypes, head.layers) == (2048, 256, 65536, 3)
        assert not head.weight_norm
    backbone = pretrain.backbone
    sizes = (backbone.embed_dim, backbone.depth, backbone.num_heads, backbone.ffn_hidden, backbone.patch_size)
    assert sizes == (1024, 24, 16, 4096, 16)
    assert (backbone.drop_path, backbone.norm_eps, backbone.layerscale) == (0.3, 1e-6, 1e-5)
    assert (backbone.rope_rescale, backbone.num_registers, backbone.mask_k_bias) == (None, 0, False)
    assert pretrain.koleo_group == 64
    assert (optim.lr.warmup_steps, pretrain.teacher_temperature.warmup_steps) == (12_500, 37_500)
    assert optim.freeze_last_layer_steps == 1250
    assert (pretrain.dino_weight, pretrain.ibot_weight, pretrain.koleo_weight) == (1.0, 1.0, 0.1)
    assert (pretrain.centering, pretrain.student_temperature, pretrain.initialisation) == ("sinkhorn", 0.1, "official")
    crops = config.augment
    assert (crops.global_size, crops.local_size, crops.global_crops, crops.local_crops) == (224, 96, 2, 8)
    assert (crops.global_scale, crops.local_scale, crops.flip) == ((0.32, 1.0), (0.05, 0.32), 0.5)
    assert (config.masks.probability, config.masks.ratio) == (0.5, (0.1, 0.5))


def test_fewer_steps_shorten_the_schedules_of_the_vitl16_recipe():
    full = vitl16_im1k()
    short = replace(full, loop=replace(full.loop, steps=1000)).resolve()
    assert (short.optim.lr.warmup_steps, short.objective.teacher_temperature.warmup_steps) == (100, 300)
    assert short.optim.freeze_last_layer_steps == 10


def test_thirty_steps_of_the_vitl16_recipe_scaled_down(tmp_path: Path, monkeypatch):
    """Real photographs, every part at work: both heads, KoLeo, masks, stochastic depth, RoPE rescale; losses fall."""
    drawn, seen = [], []
    original = Pretrain.losses

    def losses(self, batch, step):
        before = self.network_generator.get_state()
        outcome = original(self, batch, step)
        seen.append((self, batch))
        drawn.append(not torch.equal(before, self.network_generator.get_state()))
        return outcome

    monkeypatch.setattr(Pretrain, "losses", losses)
    config = scaled_down(photos(tmp_path / "photos"))
    assert config.objective.backbone.drop_path == 0.3
    assert config.optim.resolve(30, 8).lr(5) == pytest.approx(1e-3 * 4 * math.sqrt(8 / 1024), rel=0.2)
    assert launch(config, tmp_path / "run") == 0
    run = Run(tmp_path / "run")
    rows, _ = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, 31))
    for name in ("loss/total", "loss/dino", "loss/ibot", "loss/koleo", "gradient_norm/backbone"):
        values = [row[name] for row in rows]
        assert all(value is not None and math.isfinite(value) for value in values), name
    resolved, (trained, batch) = config.resolve(), seen[0]
    untrained = Pretrain(resolved.objective, seed=resolved.seed)
    before, after = (fixed_loss(original, phase, batch) for phase in (untrained, trained))
    falls = {"loss/total": 0.8, "loss/dino": 0.008, "loss/ibot": 0.005}  # half of 1.49, 0.0166 and 0.0113 as measured
    assert {name: before[name] - after[name] > least for name, least in falls.items()} == dict.fromkeys(falls, True)
    for name in ("backbone", "dino_head", "ibot_head"):
        assert all(row[f"gradient_norm/{name}"] > 0 for row in rows), name
    assert rows[0]["rate/last_layer_lr"] == 0
    assert rows[1]["rate/last_layer_lr"] == rows[1]["rate/lr"] > 0
    assert rows[-1]["teacher/momentum"] > rows[0]["teacher/momentum"]
    assert all(drawn), "stochastic depth and RoPE rescale draw at every step"
    first, last = run.backbone(step=0).state_dict(), run.backbone(step=30).state_dict()
    assert {name for name in first if torch.equal(first[name], last[name])} == {"rope_embed.periods"}
    assert [event["kind"] for event in run.events()[0]].count("nan-skipped") == 0


def test_a_folder_with_broken_files_trains_and_names_them_once(tmp_path: Path):
    folder = photos(tmp_path / "photos")
    good = sorted(folder.rglob("*.png"))
    truncated, empty, text, huge = (folder / name for name in ("torn.png", "empty.jpg", "words.png", "rocket/torn.png"))
    for path in (truncated, huge):
        path.write_bytes(good[0].read_bytes()[:700])
    empty.touch()
    text.write_text("not an image")
    broken = {str(path) for path in (truncated, empty, text, huge)}
    config = scaled_down(folder, steps=12)
    config = replace(config, loop=replace(config.loop, log_every=4, save_every=4))
    assert launch(config, tmp_path / "run") == 0
    events = [event for event in Run(tmp_path / "run").events()[0] if event["kind"] == "bad-image"]
    named = [event["text"].partition(": ")[0] for event in events]
    assert all(event["text"].count(name) == 1 for event, name in zip(events, named, strict=True)), "the path once"
    counts = [row.get("data/bad_images", 0) for row in Run(tmp_path / "run").metrics()[0]]
    assert counts == sorted(counts)
    assert counts[-1] == len(broken)
    assert set(named) == broken
    assert len(named) == len(broken), "each one once"
    assert min(event["step"] for event in events) < 12, "said while training, not only at its end"
    assert Run(tmp_path / "run").probe_images().images.shape == (4, 3, 64, 64)
    assert launch(config, tmp_path / "run") == 0
    again = [event for event in Run(tmp_path / "run").events()[0] if event["kind"] == "bad-image"]
    assert len(again) == len(broken), "a resume does not repeat them"


def test_make_pipeline_chains_three_runs_each_forked_from_the_last_step_of_the_one_before(capsys):
    command = ["make", "-n", "-o", "setup", "pipeline", "STEPS=35"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    stages = [line.split(" -m training ")[1].split() for line in printed.replace("\\\n", " ").splitlines()[:3]]
    runs, trees = [words[words.index("--run") + 1] for words in stages], []
    for words in stages:
        assert main([*words, "--print-config"]) == 0
        trees.append(json.loads(capsys.readouterr().out))
    assert [(words[0], tree["loop"]["steps"]) for words, tree in zip(stages, trees, strict=True)] == [
        ("pretrain", 35),
        ("anchor", 35),
        ("adapt", 35),
    ]
    assert [tree["start"]["fork"] for tree in trees] == ["", f"run:{runs[0]}@step=35", f"run:{runs[1]}@step=35"]
    networks = [{key: tree["objective"][key] for key in ("backbone", "dino_head", "ibot_head")} for tree in trees]
    assert networks[0] == networks[1] == networks[2]
