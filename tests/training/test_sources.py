"""Sources give the same image for the same index, cached or not, and say what is wrong with a path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from training.data.sources import Cached, FolderConfig, FolderSource, SceneImages, ScenesConfig
from workbench.scenes import FolderImages, SceneConfig, Scenes, builtin_library

SMALL_SCENES = ScenesConfig(count=12, classes=3, per_class=2, backgrounds=2, scene=SceneConfig(size=(32, 48)))


class Counting:
    """Eight 10 x 10 images (300 bytes each), and how often each was asked for."""

    def __init__(self) -> None:
        self.asked = [0] * 8

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        self.asked[index] += 1
        return torch.full((3, 10, 10), index, dtype=torch.uint8)

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        return (("lost.png", "empty"),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three readable images of different sizes and one that is not an image."""
    for number, size in enumerate([(60, 40), (30, 90), (16, 16)]):
        Image.new("RGB", size, (50 * number, 100, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "1-broken.png").write_bytes(b"<html>not found</html>")
    return tmp_path


def test_the_cache_asks_once_within_its_budget_and_changes_nothing():
    source = Counting()
    cached = Cached(source, budget=900)
    for _ in range(3):
        assert [int(cached[index][0, 0, 0]) for index in range(8)] == list(range(8))
    assert source.asked == [1, 1, 1, 3, 3, 3, 3, 3]
    assert cached.used == 900
    assert len(cached) == 8
    assert cached.bad == source.bad
    without = Cached(source, budget=0)
    assert torch.equal(without[5], cached[5])
    assert without.used == 0


def test_scene_images_are_the_scenes():
    scenes = Scenes(builtin_library(), SceneConfig(size=(32, 48)), seed=5)
    images = SceneImages(scenes, count=4)
    assert len(images) == 4
    assert images[3].shape == (3, 32, 48)
    assert images[3].dtype == torch.uint8
    assert torch.equal(images[3], Scenes(builtin_library(), SceneConfig(size=(32, 48)), seed=5)[3].image)
    assert not torch.equal(images[3], images[2])
    with pytest.raises(IndexError, match="indices run from 0 to 3"):
        images[4]
    with pytest.raises(ValueError, match="at least 1"):
        SceneImages(scenes, count=0)


def test_a_scenes_config_builds_the_same_images_every_time():
    first, second = SMALL_SCENES.build(), SMALL_SCENES.build()
    assert len(first) == 12
    assert all(torch.equal(first[index], second[index]) for index in range(12))


def test_training_scenes_hold_known_identities_only():
    config = ScenesConfig(classes=4, per_class=2, backgrounds=3)
    known, held_out = config.libraries()
    assert held_out is not None
    assert len(known.present) == 4
    assert len(known.cutouts) == 8
    assert len(known.backgrounds) == 3
    assert not {item.identity for item in known.cutouts} & {item.identity for item in held_out.cutouts}
    assert set(held_out.present) <= set(known.present)
    assert ScenesConfig(held_out=0).libraries()[1] is None


def test_a_cutout_pack_is_a_library(pack: Path):
    config = ScenesConfig(library=str(pack), count=3, classes=2, per_class=2, scene=SceneConfig(size=(32, 32)))
    source = config.build()
    assert source[2].shape == (3, 32, 32)
    assert len(config.libraries()[0].present) == 2


def test_files_of_an_unwanted_licence_take_no_part(pack: Path):
    known, held_out = ScenesConfig(library=str(pack), skip_licences=("RIGHTS UNCLEAR", "not itemised")).libraries()
    assert held_out is not None
    everything = ScenesConfig(library=str(pack)).libraries()[0]
    licences = {item.licence for library in (known, held_out) for item in library.cutouts + library.backgrounds}
    assert not [text for text in licences if text.startswith(("RIGHTS UNCLEAR", "not itemised"))]
    assert [item for item in everything.cutouts if item.licence.startswith("RIGHTS UNCLEAR")]


def test_a_folder_keeps_going_over_a_bad_file_and_names_it(folder: Path):
    source = FolderSource(FolderImages(folder))
    assert source.bad == ()
    shapes = [tuple(source[index].shape) for index in range(len(source))]
    # sorted: 0.png, 1-broken.png, 1.png, 2.png; the broken one is replaced by the next
    assert shapes == [(3, 40, 60), (3, 90, 30), (3, 90, 30), (3, 16, 16)]
    assert [Path(name).name for name, _ in source.bad] == ["1-broken.png"]


def test_short_side_only_ever_shrinks(folder: Path):
    source = FolderConfig(path=str(folder), short_side=20).build()
    assert [tuple(source[index].shape) for index in (0, 2, 3)] == [(3, 20, 30), (3, 60, 20), (3, 16, 16)]
    full = FolderConfig(path=str(folder), short_side=None).build()
    assert full[0].shape == (3, 40, 60)
    mean = source[0].float().mean((1, 2)) - full[0].float().mean((1, 2))
    assert mean.abs().max() < 1, "shrinking keeps the colour"


def test_unusable_paths_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        FolderConfig(path=str(tmp_path / "nowhere")).build()
    with pytest.raises(ValueError, match="no images"):
        FolderConfig(path=str(tmp_path)).build()
    with pytest.raises(ValueError, match="does not exist"):
        ScenesConfig(library=str(tmp_path / "nowhere")).build()
    with pytest.raises(ValueError, match="short_side is 0"):
        FolderSource(FolderImages(save_one(tmp_path)), short_side=0)


def save_one(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    return folder
