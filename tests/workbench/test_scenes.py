"""Scenes: deterministic, exact masks, exact motion; libraries: split by identity, stable classes, clear errors."""

from __future__ import annotations

import csv
import hashlib
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.images import ImageError, encode_png
from workbench.scenes import (
    Background,
    ClassName,
    Cutout,
    FolderImages,
    Library,
    Scene,
    SceneConfig,
    Scenes,
    builtin_library,
    folder_library,
)
from workbench.scenes.shapes import SHAPES, shape_alpha

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
PLAIN = SceneConfig(light=0.0, background_contrast=(0.0, 0.0))


@dataclass(frozen=True)
class FlatShape:
    """A cut-out of one colour."""

    shape: str
    colour: tuple[int, int, int]

    def __call__(self) -> Tensor:
        alpha = torch.from_numpy(shape_alpha(self.shape, 96, 1))
        return torch.cat([torch.tensor(self.colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 96, 96), alpha[None]])


@dataclass(frozen=True)
class MarkedSquare:
    """A blue square with one red spot right of and above its centre."""

    def __call__(self) -> Tensor:
        pixels = torch.zeros(4, 96, 96, dtype=torch.uint8)
        pixels[2:] = 255
        pixels[:3, 24:36, 60:72] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
        return pixels


@dataclass(frozen=True)
class Flat:
    """A background of one grey, or with one white spot in the middle."""

    spot: bool = False

    def __call__(self) -> Tensor:
        pixels = torch.zeros(3, 200, 300, dtype=torch.uint8)
        if self.spot:
            pixels[:, 92:108, 142:158] = 255
        return pixels


def flat_library(cutouts: dict[str, object], spot: bool = False) -> Library:
    made = [
        Cutout(load=load, name=name, class_index=i, label=name, label_zh=name, category=name, identity=name)  # type: ignore[arg-type]
        for i, (name, load) in enumerate(cutouts.items(), start=1)
    ]
    ground = Background(load=Flat(spot), name="flat", label="flat", label_zh="平", category="flat", identity="flat")
    classes = (ClassName("background", "背景"), *(ClassName(item.label, item.label_zh) for item in made))
    return Library(name="flat", classes=classes, cutouts=tuple(made), backgrounds=(ground,))


@pytest.fixture(scope="module")
def builtin() -> Library:
    return builtin_library()


@pytest.fixture(scope="module")
def coloured() -> Library:
    shapes = ("disk", "star", "ring", "cross", "heart", "blob")
    return flat_library({shape: FlatShape(shape, colour) for shape, colour in zip(shapes, COLOURS, strict=True)})


def digest(scenes: Scenes, indices: list[int]) -> dict[int, str]:
    found = {}
    for index in indices:
        pair = scenes.pair(index)
        parts = [t.numpy().tobytes() for scene in pair[:2] for t in scene[:3]]
        parts += [pair.flow.numpy().tobytes(), repr(scenes.single(index)[3:]).encode(), repr(pair.first[3:]).encode()]
        found[index] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found


def check_consistent(scene: Scene, library: Library, size: tuple[int, int]) -> None:
    """What holds for every scene."""
    assert scene.image.shape == (3, *size)
    assert scene.image.dtype == torch.uint8
    assert scene.image.is_contiguous()
    assert scene.classes.shape == scene.instances.shape == size
    assert scene.classes.dtype == scene.instances.dtype == torch.int64
    count = len(scene.labels)
    assert count >= 1
    assert scene.instances.unique().tolist() == [*([0] if (scene.instances == 0).any() else []), *range(1, count + 1)]
    assert torch.equal(scene.classes, torch.tensor([0, *scene.labels])[scene.instances])
    assert scene.depth_order == tuple(range(1, count + 1))
    owner = {cutout.identity: cutout for cutout in library.cutouts}
    assert [owner[identity].class_index for identity in scene.identities] == list(scene.labels)
    for identity in scene.identities:
        assert owner[identity].label in scene.caption_en
        assert owner[identity].label_zh in scene.caption_zh


# -- determinism ------------------------------------------------------------------------------------------------------


def test_same_in_any_order_any_process_and_after_pickling(builtin: Library) -> None:
    config = SceneConfig(size=(48, 64))
    indices = [0, 7, 3, 100_000_000_000]
    here = digest(Scenes(builtin, config, seed=5), indices)
    assert digest(Scenes(builtin, config, seed=5), indices[::-1]) == here
    used = Scenes(builtin, config, seed=5, cache_bytes=1)  # forgets everything at once
    assert digest(pickle.loads(pickle.dumps(used)), indices) == here
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_scenes import *\n"
        f"print(digest(Scenes(builtin_library(), SceneConfig(size=(48, 64)), seed=5), {indices[::-1]}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(other.stdout) == here
    assert len(set(here.values())) == len(indices)
    assert digest(Scenes(builtin, config, seed=6), indices) != here


@dataclass
class FirstScenes:
    """A dataset of some scenes' images."""

    scenes: Scenes

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.scenes[index].image


def test_loader_workers_give_the_same_scenes(builtin: Library) -> None:
    scenes = Scenes(builtin, SceneConfig(size=(32, 32)), seed=1)
    batches = list(DataLoader(FirstScenes(scenes), batch_size=4, num_workers=2))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(batches), torch.stack([scenes[i].image for i in range(8)]))


def test_cache_is_bounded(builtin: Library) -> None:
    scenes = Scenes(builtin, cache_bytes=1_000_000)
    for index in range(15):
        scenes[index]
    assert scenes._cache.nbytes <= 1_000_000
    assert len(pickle.dumps(scenes)) < 100_000


def test_negative_index_and_seed_are_refused(builtin: Library) -> None:
    with pytest.raises(IndexError, match="start at 0"):
        Scenes(builtin)[-1]
    with pytest.raises(ValueError, match="seed"):
        Scenes(builtin, seed=-1)


# -- shape and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(112, 112), (48, 96), (97, 33), (16, 16), (33, 200)])
def test_every_size_gives_consistent_scenes(builtin: Library, size: tuple[int, int]) -> None:
    scenes = Scenes(builtin, SceneConfig(size=size), seed=2)
    for index in range(6):
        check_consistent(scenes[index], builtin, size)
        check_consistent(scenes.single(index), builtin, size)
        assert len(scenes.single(index).labels) == 1
        assert not torch.equal(scenes.single(index).image, scenes[index].image)


@pytest.mark.parametrize("size", [(64, 64), (41, 77)])
def test_mask_is_coverage_of_at_least_one_half(size: tuple[int, int]) -> None:
    """A pure red object on black without light: the red channel *is* the coverage."""
    library = flat_library({shape: FlatShape(shape, (255, 0, 0)) for shape in SHAPES})
    scenes = Scenes(library, replace(PLAIN, size=size, objects=(1, 1)), seed=3)
    partial = 0
    for index in range(30):
        scene = scenes[index]
        assert torch.equal(scene.instances == 1, scene.image[0] >= 128)
        partial += int(((scene.image[0] > 0) & (scene.image[0] < 255)).sum())
    assert partial > 500  # edges are anti-aliased, so the rule was put to the test


def test_masks_of_overlapping_objects_match_their_colours(coloured: Library) -> None:
    """Away from edges each pixel has exactly the colour of its instance, and each pure colour lies in its instance."""
    scenes = Scenes(coloured, replace(PLAIN, objects=(2, 5), max_overlap=1.0, object_scale=(0.4, 0.7)), seed=4)
    palette = {cutout.name: cutout.rgba[:3, 48, 30] for cutout in coloured.cutouts}
    touching = 0
    for index in range(40):
        scene = scenes[index]
        ids = scene.instances
        inner = torch.zeros_like(ids, dtype=torch.bool)
        windows = ids.unfold(0, 5, 1).unfold(1, 5, 1).flatten(2)
        inner[2:-2, 2:-2] = (windows == windows[..., :1]).all(dim=-1)
        colours = torch.stack([torch.zeros(3, dtype=torch.uint8), *(palette[name] for name in scene.identities)])
        exact = (scene.image.permute(1, 2, 0)[inner] == colours[ids[inner]]).all(dim=-1)
        assert float(exact.float().mean()) > 0.999  # tips thinner than a pixel tint what is behind them
        for number, name in enumerate(scene.identities, start=1):
            if scene.identities.count(name) == 1:
                pure = (scene.image.permute(1, 2, 0) == palette[name]).all(dim=-1)
                if name in ("disk", "star", "ring"):  # red, green, blue: no blend of others looks like them
                    assert (ids[pure] == number).all()
        neighbours = (ids[:, 1:] != ids[:, :-1]) & (ids[:, 1:] > 0) & (ids[:, :-1] > 0)
        touching += int(neighbours.any())
    assert touching > 20


def test_front_object_hides_the_one_behind(coloured: Library) -> None:
    """Painted alone, an object covers at least what it covers in the scene; instance 1 covers exactly the same."""
    config = replace(PLAIN, objects=(3, 3), max_overlap=1.0, object_scale=(0.5, 0.7))
    scenes = Scenes(coloured, config, seed=8)
    hidden = 0
    for index in range(20):
        layout, layers = scenes._drawn(0, index)
        whole = scenes[index].instances
        for number, layer in enumerate(layers, start=1):
            alone = scenes._finish(replace(layout, placements=(layout.placements[number - 1],)), [layer]).instances == 1
            seen = whole == number
            assert not (seen & ~alone).any()
            assert not (alone & (whole > number)).any()
            assert number > 1 or torch.equal(seen, alone)
            hidden += int((alone & ~seen).sum())
    assert hidden > 1000


def test_objects_are_neither_tiny_nor_everything(builtin: Library) -> None:
    scenes = Scenes(builtin, seed=9)
    drawn = [scenes[i] for i in range(50)]
    share = torch.tensor([float((scene.classes > 0).float().mean()) for scene in drawn])
    assert 0.1 < float(share.mean()) < 0.5
    areas = [int((scene.instances == k).sum()) for scene in drawn for k in scene.depth_order]
    assert min(areas) >= 16
    assert float(np.median(areas)) > 0.04 * 112 * 112
    assert {len(scene.labels) for scene in drawn} == {1, 2, 3, 4}
    assert {label for scene in drawn for label in scene.labels} == set(builtin.present)


def test_background_contrast_and_light_do_what_they_say(builtin: Library) -> None:
    def background_spread(config: SceneConfig) -> float:
        scenes = Scenes(builtin, config, seed=1)
        drawn = [scenes[i] for i in range(12)]
        return float(np.mean([float(s.image.float()[:, s.instances == 0].std(dim=1).mean()) for s in drawn]))

    low = background_spread(SceneConfig(light=0.0, background_contrast=(0.1, 0.1)))
    high = background_spread(SceneConfig(light=0.0, background_contrast=(1.0, 1.0)))
    assert 4 < high / low < 10.5
    dark = Scenes(builtin, SceneConfig(light=0.0), seed=1)
    lit = Scenes(builtin, SceneConfig(light=0.3), seed=1)
    assert torch.equal(dark[3].instances, lit[3].instances)
    assert (dark[3].image.float() - lit[3].image.float()).abs().mean() > 3


def test_flip_and_rotation_can_be_switched_off() -> None:
    library = flat_library({"arrow": FlatShape("arrow", (255, 255, 255))})
    fixed = replace(PLAIN, objects=(1, 1), flip=False, rotation_degrees=0.0, object_scale=(0.5, 0.5))

    def directions(config: SceneConfig) -> set[bool]:
        """Does the arrow point to the right? Its head is the taller half."""
        found = set()
        for index in range(24):
            rows = (Scenes(library, config, seed=1)[index].instances == 1).sum(dim=0)
            columns = rows.nonzero().flatten()
            middle = int(columns[0] + columns[-1]) // 2
            found.add(bool(rows[middle:].max() > rows[:middle].max() + 8))
        return found

    assert directions(fixed) == {True}
    assert directions(replace(fixed, flip=True)) == {True, False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (8, 64)},
        {"objects": (0, 3)},
        {"objects": (3, 2)},
        {"object_scale": (0.6, 0.3)},
        {"background_contrast": (-0.1, 0.3)},
        {"light": 1.0},
        {"balance": "none"},
        {"motion": 0.9},
        {"rotation_degrees": 200.0},
    ],
)
def test_config_names_field_value_and_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"SceneConfig\.{next(iter(wrong))} is .*allowed: "):
        SceneConfig(**wrong)


# -- pairs under known motion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (64, 121)])
def test_flow_lands_on_the_same_surface(builtin: Library, size: tuple[int, int]) -> None:
    """Second image sampled where the flow says looks like the first; where it does not say, it looks different."""
    scenes = Scenes(builtin, SceneConfig(size=size, background_contrast=(1.0, 1.0)), seed=11)
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    with_flow, without, shares = [], [], []
    for index in range(12):
        first, second, flow, valid = scenes.pair(index)
        check_consistent(first, builtin, size)
        assert torch.equal(first.image, scenes[index].image)
        assert flow.shape == (*size, 2)
        assert flow.dtype == torch.float32
        assert valid.dtype == torch.bool
        assert second.labels == first.labels
        landed = torch.stack([x + flow[..., 0], y + flow[..., 1]], dim=-1)
        column, row = landed[valid].floor().long().unbind(-1)
        assert torch.equal(second.instances[row, column], first.instances[valid])
        grid = (landed / torch.tensor([width, height]) * 2 - 1)[None]
        options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
        sampled = torch.nn.functional.grid_sample(second.image[None].float(), grid, **options)[0]
        with_flow.append(float((sampled - first.image).abs()[:, valid].mean()))
        without.append(float((second.image.float() - first.image).abs()[:, valid].mean()))
        shares.append(float(valid.float().mean()))
    assert np.mean(with_flow) < 0.35 * np.mean(without)
    assert np.mean(shares) > 0.7
    assert min(shares) > 0.4


def spot_centre(weight: Tensor) -> Tensor:
    """(x, y) in continuous pixels of the centre of mass of [h, w]."""
    height, width = weight.shape
    x = (weight.sum(0) * (torch.arange(width) + 0.5)).sum()
    y = (weight.sum(1) * (torch.arange(height) + 0.5)).sum()
    return torch.stack([x, y]) / weight.sum()


def test_flow_carries_a_marked_point_of_an_object() -> None:
    library = flat_library({"marked": MarkedSquare()})
    config = replace(PLAIN, size=(120, 160), objects=(1, 1), object_scale=(0.35, 0.5))
    scenes = Scenes(library, config, seed=2)
    errors, moves = [], []
    for index in range(60):
        first, second, flow, valid = scenes.pair(index)
        red = [scene.image[0].float() * (scene.image[2] < 128) for scene in (first, second)]
        rim = [torch.cat([r[0], r[-1], r[:, 0], r[:, -1]]).sum() for r in red]
        if max(rim) > 0 or (second.instances == 1).sum() < 500:
            continue  # the spot may be cut off by the frame
        start, end = spot_centre(red[0]), spot_centre(red[1])
        column, row = start.floor().long().tolist()
        assert valid[row, column]
        errors.append(float((start + flow[row, column] - end).norm()))
        moves.append(float((end - start).norm()))
    assert len(errors) > 20
    assert max(errors) < 0.6
    assert np.median(moves) > 5


def test_flow_carries_a_marked_point_of_the_background() -> None:
    library = flat_library({"small": FlatShape("disk", (255, 0, 0))}, spot=True)
    config = SceneConfig(
        size=(90, 130), light=0.0, background_contrast=(1.0, 1.0), objects=(1, 1), object_scale=(0.05, 0.06)
    )
    scenes = Scenes(library, config, seed=2)
    errors = []
    for index in range(60):
        first, second, flow, valid = scenes.pair(index)
        white = [scene.image[1].float() for scene in (first, second)]
        rim = [torch.cat([w[0], w[-1], w[:, 0], w[:, -1]]).sum() for w in white]
        start, end = spot_centre(white[0]), spot_centre(white[1])
        column, row = start.floor().long().nan_to_num().clamp(min=0).tolist()
        if max(rim) > 0 or not valid[row, column]:
            continue
        errors.append(float((start + flow[row, column] - end).norm()))
    assert len(errors) > 15
    assert max(errors) < 0.6


def test_no_motion_is_the_identity(builtin: Library) -> None:
    scenes = Scenes(builtin, SceneConfig(motion=0.0, camera=0.0), seed=1)
    first, second, flow, valid = scenes.pair(0)
    assert torch.equal(first.image, second.image)
    assert float(flow.abs().max()) < 1e-4
    assert valid.all()


# -- libraries --------------------------------------------------------------------------------------------------------


def check_split(library: Library) -> None:
    known, held_out = library.split(held_out=0.25, seed=0)
    for items in ("cutouts", "backgrounds"):
        sides = [{item.identity for item in getattr(side, items)} for side in (known, held_out)]
        assert not sides[0] & sides[1]
        assert {item.name for side in (known, held_out) for item in getattr(side, items)} == {
            item.name for item in getattr(library, items)
        }
    assert known.classes == held_out.classes == library.classes
    assert set(held_out.present) <= set(known.present) == set(library.present)
    again, _ = library.split(held_out=0.25, seed=0)
    other, _ = library.split(held_out=0.25, seed=1)
    assert [c.name for c in again.cutouts] == [c.name for c in known.cutouts] != [c.name for c in other.cutouts]
    for index in held_out.present:
        count = [len({c.identity for c in side.cutouts if c.class_index == index}) for side in (known, held_out)]
        assert sum(count) >= 3
        assert abs(count[1] - 0.25 * sum(count)) <= 1


def test_builtin_library_reads_only_installed_photographs(builtin: Library) -> None:
    assert [name.en for name in builtin.classes] == ["background", *SHAPES]
    assert len({name.zh for name in builtin.classes}) == len(builtin.classes) == 11
    assert len({c.identity for c in builtin.cutouts}) == len(builtin.cutouts) == 60
    assert len(builtin.backgrounds) >= 10
    for cutout in builtin.cutouts:
        rgba = cutout.rgba
        assert rgba.shape == (4, 160, 160)
        assert rgba.dtype == torch.uint8
        assert 0.2 < float((rgba[3] >= 128).float().mean()) < 0.9
        assert builtin.classes[cutout.class_index].en == cutout.category
    for background in builtin.backgrounds:
        assert min(background.rgb.shape[1:]) >= 100
    check_split(builtin)
    by_label = builtin_library(by="label")
    assert len(by_label.classes) == 61
    with pytest.raises(ValueError, match="'category'"):
        builtin_library(by="shape")


def test_textures_do_not_give_the_shape_away(builtin: Library) -> None:
    shapes_of: dict[str, set[str]] = {}
    for cutout in builtin.cutouts:
        shapes_of.setdefault(cutout.identity.split("/", 1)[1], set()).add(cutout.category)
    assert min(len(shapes) for shapes in shapes_of.values()) >= 3


def test_reduced_keeps_indices_and_counts(builtin: Library) -> None:
    small = builtin.reduced(classes=["star", "disk"], per_class=3, seed=1, backgrounds=4)
    assert small.classes == builtin.classes
    assert [small.classes[index].en for index in small.present] == ["disk", "star"]
    assert len(small.cutouts) == 6
    assert len(small.backgrounds) == 4
    assert len(builtin.reduced(classes=4).present) == 4
    assert builtin.reduced().cutouts == builtin.cutouts
    assert builtin.reduced(per_class=2, seed=1).cutouts != builtin.reduced(per_class=2, seed=2).cutouts
    assert {label for i in range(8) for label in Scenes(small)[i].labels} == set(small.present)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": ["cube"]}, r"No class \['cube'\].*arrow"),
        ({"classes": []}, "No class"),
        ({"classes": 99}, r"\[1, 10\].*99"),
        ({"per_class": 0}, "per_class"),
        ({"backgrounds": 0}, "backgrounds"),
    ],
)
def test_reduced_refuses(builtin: Library, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        builtin.reduced(**arguments)


def test_split_refuses(builtin: Library) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        builtin.split(held_out=1.0)
    with pytest.raises(ValueError, match="nothing can be held out"):
        builtin.reduced(per_class=2).split()


def test_balance_by_class_and_by_cutout() -> None:
    library = flat_library({f"disk {i}": FlatShape("disk", COLOURS[i]) for i in range(6)})
    lopsided = replace(
        library, cutouts=tuple(replace(c, class_index=1 if i < 5 else 2) for i, c in enumerate(library.cutouts))
    )
    share = {}
    for balance in ("class", "cutout"):
        scenes = Scenes(lopsided, replace(PLAIN, size=(32, 32), objects=(1, 1), balance=balance), seed=1)
        share[balance] = np.mean([scenes[i].labels[0] == 2 for i in range(200)])
    assert abs(share["class"] - 1 / 2) < 0.12
    assert abs(share["cutout"] - 1 / 6) < 0.1


# -- folder library ---------------------------------------------------------------------------------------------------

COLUMNS = ["file", "kind", "category", "label", "label_zh", "identity", "flags", "licence"]


@pytest.fixture
def small_pack(tmp_path: Path) -> Path:
    """A pack of six cut-outs in two categories and two backgrounds, one of them with a subject."""
    for name in ("objects", "backgrounds"):
        (tmp_path / name).mkdir()
    rows = []
    for i, shape in enumerate(("disk", "star", "ring", "cross", "heart", "blob")):
        Image.fromarray(FlatShape(shape, COLOURS[i])().permute(1, 2, 0).numpy()).save(
            tmp_path / f"objects/{shape}.webp"
        )
        category = "fruit" if i < 3 else "tool"
        rows.append([f"objects/{shape}.webp", "object", category, shape, SHAPES[shape][0], f"id-{i}", "", "CC0"])
    for name, flags in (("plain", ""), ("busy", "subject crop")):
        (tmp_path / f"backgrounds/{name}.png").write_bytes(encode_png(Flat()()))
        rows.append([f"backgrounds/{name}.png", "background", "wall", name, "墙", name, flags, "CC0"])
    write_index(tmp_path, rows)
    return tmp_path


def write_index(folder: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> None:
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([columns, *rows])


def read_rows(folder: Path) -> list[list[str]]:
    with (folder / "index.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))[1:]


def test_folder_library_reads_the_format(small_pack: Path) -> None:
    library = folder_library(small_pack)
    assert library.classes == (ClassName("background", "背景"), ClassName("fruit", "水果"), ClassName("tool", "工具"))
    assert [len([c for c in library.cutouts if c.class_index == i]) for i in (1, 2)] == [3, 3]
    assert [item.label for item in library.backgrounds] == ["plain"]
    assert library.bad == ()
    assert len(folder_library(small_pack, with_subject=True).backgrounds) == 2
    by_label = folder_library(small_pack, by="label")
    assert [name.en for name in by_label.classes] == [
        "background",
        *sorted(("disk", "star", "ring", "cross", "heart", "blob")),
    ]
    assert by_label.classes[3].zh == "圆盘"
    check_consistent(Scenes(library, SceneConfig(size=(40, 50)))[0], library, (40, 50))


def test_folder_library_skips_counts_and_names_bad_files(small_pack: Path) -> None:
    (small_pack / "objects/disk.webp").write_bytes((small_pack / "objects/disk.webp").read_bytes()[:100])
    (small_pack / "objects/star.webp").unlink()
    (small_pack / "objects/ring.webp").write_bytes(encode_png(torch.zeros(3, 9, 9, dtype=torch.uint8)))
    clear = Image.new("RGBA", (9, 9), (9, 9, 9, 0))
    clear.save(small_pack / "objects/cross.webp", format="PNG")
    outside = ["../secret.png", "object", "tool", "x", "x", "x", "", "CC0"]
    write_index(small_pack, [*read_rows(small_pack), outside])
    library = folder_library(small_pack)
    assert [cutout.label for cutout in library.cutouts] == ["heart", "blob"]
    reasons = dict(library.bad)
    assert "could not create decoder" in reasons["objects/disk.webp"] or "decoded" in reasons["objects/disk.webp"]
    assert "no such file" in reasons["objects/star.webp"]
    assert "no alpha" in reasons["objects/ring.webp"]
    assert "transparent" in reasons["objects/cross.webp"]
    assert "outside" in reasons["../secret.png"]
    assert [name.en for name in library.classes] == ["background", "fruit", "tool"]  # indices do not hang on bad files


def test_folder_library_leaves_out_licences(small_pack: Path) -> None:
    rows = read_rows(small_pack)
    rows[0][-1] = "RIGHTS UNCLEAR: from a book"
    write_index(small_pack, rows)
    assert len(folder_library(small_pack).cutouts) == 6
    assert len(folder_library(small_pack, skip_licences=("RIGHTS UNCLEAR",)).cutouts) == 5


def test_folder_library_errors_are_clear(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = read_rows(small_pack)
    with pytest.raises(ValueError, match="absent"):
        folder_library(small_pack / "absent")
    with pytest.raises(ValueError, match=r"no index\.csv"):
        folder_library(tmp_path_factory.mktemp("bare"))
    with pytest.raises(ValueError, match="'category', 'label'"):
        folder_library(small_pack, by="identity")
    write_index(small_pack, [row[:5] for row in rows], COLUMNS[:5])
    with pytest.raises(ValueError, match=r"lacks the columns \['identity'\].*found: file"):
        folder_library(small_pack)
    (small_pack / "index.csv").write_bytes("文件".encode("gb18030") + b"\xff\n")
    with pytest.raises(ValueError, match="UTF-8"):
        folder_library(small_pack)
    (small_pack / "index.csv").write_text("")
    with pytest.raises(ValueError, match="lacks the columns"):
        folder_library(small_pack)
    write_index(small_pack, rows)
    shutil.rmtree(small_pack / "objects")
    with pytest.raises(ValueError, match=r"0 usable cut-outs.*1 usable backgrounds.*6 files were bad.*disk\.webp"):
        folder_library(small_pack)


@pytest.mark.pack
def test_the_pack_draws_consistent_scenes(pack: Path) -> None:
    library = folder_library(pack)
    assert len(library.cutouts) > 100
    assert library.bad == ()
    assert all(name.zh != name.en for name in library.classes)
    check_split(library)
    known, held_out = library.split()
    small = known.reduced(classes=14, per_class=3)
    assert len(small.cutouts) == 42
    for source in (library, small, held_out):
        scenes = Scenes(source, SceneConfig(size=(64, 80)), seed=1)
        for index in range(3):
            check_consistent(scenes[index], source, (64, 80))


# -- plain folders ----------------------------------------------------------------------------------------------------


def test_plain_folder_skips_counts_and_names_bad_files(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode_png(torch.full((3, 4 + i, 6), 10 * i, dtype=torch.uint8)))
    (tmp_path / "1.png").write_bytes(b"not a picture")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    images = FolderImages(tmp_path)
    assert len(images) == 4
    assert images.bad == []
    assert images[0].shape == (3, 4, 6)
    assert images[1].unique().tolist() == [20]  # the next readable one stands in
    assert images[1].unique().tolist() == [20]
    assert images[3].unique().tolist() == [0]  # past the end it starts again
    assert images[-1].unique().tolist() == [0]
    assert [path.name for path, _ in images.bad] == ["1.png", "3.png"]
    assert "not an image" in images.bad[0][1]
    fresh = FolderImages(tmp_path)
    assert fresh[3].unique().tolist() == [0]  # whatever was read before
    with pytest.raises(IndexError, match="0 to 3"):
        images[4]


def test_plain_folder_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="contains no images"):
        FolderImages(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        FolderImages(tmp_path / "absent")
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
    images = FolderImages(tmp_path)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"None of the 2 images.*a\.png"):
            images[0]
    (tmp_path / "c.png").write_bytes(encode_png(torch.zeros(3, 50, 50, dtype=torch.uint8)))
    with pytest.raises(ImageError, match="limit of 100"):
        FolderImages(tmp_path, max_pixels=100)[2]
