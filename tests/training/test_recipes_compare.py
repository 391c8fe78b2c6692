"""The compared recipes differ in their objective and its rate alone, the official ones have the official figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config import as_tree, differences
from training.phases.contrast import ContrastConfig
from training.phases.pretrain import PretrainConfig
from training.recipes import RECIPES
from training.recipes.compare import vitl16_dinov2, vits16_dinov1

COMPARED = ("cpu_dinov1", "cpu_dinov2", "cpu_dinov3", "cpu_simclr", "cpu_mocov2", "cpu_mocov3")
RATE = {"optim.lr.peak", "optim.lr.end"}
ALLOWED = {
    "cpu_dinov1": RATE | {"optim.lr.warmup_steps", "optim.freeze_last_layer_steps"},
    "cpu_dinov2": {"masks.exact"},
    "cpu_dinov3": set(),
}
"""What an objective brings along besides itself; the contrastive ones leave local crops out."""


@pytest.mark.parametrize("name", COMPARED)
def test_the_difference_is_the_objective(name: str) -> None:
    reference, config = RECIPES["cpu_real"].build(), RECIPES[name].build()
    reference = replace(reference, loop=config.loop)
    changed = {line.partition(":")[0] for line in differences(as_tree(reference), as_tree(config))}
    others = {path for path in changed if not path.startswith("objective.")} - {"recipe"}
    assert others == ALLOWED.get(name, RATE | {"augment.local_crops"})
    assert config.loop == RECIPES["cpu_dinov1"].build().loop
    assert (config.loop.steps, config.batch.batch_size) == (600, 32)


def test_one_seed_gives_all_of_them_the_same_backbone() -> None:
    networks = []
    for name in COMPARED:
        phase = RECIPES[name].build().resolve().objective.build(seed=5)
        networks.append(phase.trainable()["backbone"].state_dict())
        published = next(iter(phase.backbones().values())).state_dict()
        assert all(torch.equal(published[key], value) for key, value in networks[-1].items())
    assert all(torch.equal(other[key], value) for other in networks[1:] for key, value in networks[0].items())


def test_each_objective_has_the_parts_of_its_paper() -> None:
    one, two, three = (RECIPES[name].build().objective for name in COMPARED[:3])
    assert isinstance(one, PretrainConfig)
    assert (one.centering, one.ibot_weight, one.koleo_weight) == ("softmax", 0, 0)
    assert (one.dino_head.weight_norm, one.dino_head.norm_last_layer) == (True, True)
    for objective in (two, three):
        assert (objective.centering, objective.koleo_weight) == ("sinkhorn", 0.1)
        assert objective.ibot_weight > 0
    assert (two.dino_head.weight_norm, two.dino_head.norm_last_layer) == (True, False)
    assert not three.dino_head.weight_norm
    contrast = [RECIPES[name].build().objective for name in COMPARED[3:]]
    assert all(isinstance(objective, ContrastConfig) for objective in contrast)
    assert [objective.method for objective in contrast] == ["simclr", "moco_v2", "moco_v3"]
    assert [objective.projector.batch_norm for objective in contrast] == [True, True, True]
    assert [objective.projector.layers for objective in contrast] == [2, 2, 3]


def test_the_vits16_recipe_has_the_figures_of_dino() -> None:
    config, epoch = vits16_dinov1().resolve(), 1251
    optim, objective, last = config.optim, config.objective, config.loop.steps - 1
    assert (config.loop.steps, config.batch.batch_size) == (100 * epoch, 1024)
    assert optim.lr(10 * epoch - 1) == pytest.approx(5e-4 * 1024 / 256)
    assert optim.lr(last) == pytest.approx(1e-6, rel=0.01)
    assert (optim.weight_decay(0), optim.weight_decay(last)) == (0.04, pytest.approx(0.4, abs=1e-6))
    assert (objective.momentum(0), objective.momentum(last)) == (0.996, pytest.approx(1.0, abs=1e-9))
    assert (optim.freeze_last_layer_steps, optim.clip_norm, optim.layer_decay) == (epoch, 3.0, 1.0)
    backbone, head = objective.backbone, objective.dino_head
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads, backbone.patch_size) == (384, 12, 6, 16)
    assert (head.hidden, head.bottleneck, head.prototypes, head.layers) == (2048, 256, 65536, 3)
    assert (objective.student_temperature, objective.teacher_temperature(last)) == (0.1, 0.04)
    crops = config.augment
    assert (crops.global_size, crops.local_size, crops.local_crops) == (224, 96, 8)
    assert (crops.global_scale, crops.local_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert (crops.blur_global1, crops.blur_global2, crops.blur_local) == (1.0, 0.1, 0.5)


def test_the_vitl16_recipe_has_the_figures_of_dinov2() -> None:
    config, epoch = vitl16_dinov2().resolve(), 1250
    optim, objective, last = config.optim, config.objective, config.loop.steps - 1
    assert (config.loop.steps, config.batch.batch_size) == (500 * epoch, 3072)
    assert optim.lr(80 * epoch - 1) == pytest.approx(3.46e-4, rel=2e-3)
    assert (optim.weight_decay(0), optim.weight_decay(last)) == (0.04, pytest.approx(0.2, abs=1e-6))
    assert (objective.momentum(0), objective.momentum(last)) == (0.994, pytest.approx(1.0, abs=1e-9))
    temperature = objective.teacher_temperature
    assert (temperature(0), temperature(30 * epoch - 1), temperature(last)) == (0.04, pytest.approx(0.07), 0.07)
    assert (optim.freeze_last_layer_steps, optim.clip_norm, optim.layer_decay) == (epoch, 3.0, 1.0)
    assert (optim.betas, optim.patch_embed_lr_multiplier) == ((0.9, 0.999), 0.2)
    dino, ibot = objective.dino_head, objective.ibot_head
    assert [(h.hidden, h.bottleneck, h.prototypes) for h in (dino, ibot)] == [(2048, 384, 131072), (2048, 256, 131072)]
    assert all(head.weight_norm and not head.norm_last_layer for head in (dino, ibot))
    assert (objective.ibot_weight, objective.koleo_weight, objective.centering) == (1.0, 0.1, "sinkhorn")
    backbone = objective.backbone
    assert (backbone.embed_dim, backbone.depth, backbone.ffn, backbone.drop_path) == (1024, 24, "swiglu", 0.4)
    assert not config.masks.exact
