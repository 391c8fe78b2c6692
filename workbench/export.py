"""Our networks as folders that transformers or timm opens: config, tensors, preprocessing, model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.backbones import ConvNeXt, Network, VisionTransformer, architecture_of
from workbench.backbones.convnext import STRIDE
from workbench.backbones.rope import RopePositionEmbedding
from workbench.backbones.timm_names import timm_arguments, timm_name, timm_tensors
from workbench.backbones.transformers_names import transformers_config, transformers_tensors
from workbench.loading import load_backbone
from workbench.model_card import EXPORTED_BY, LIBRARIES, Library, Origin, model_card
from workbench.origin import origin_of
from workbench.run_files import replace_bytes, replacing, temporary_path

CONFIG, TENSORS, PREPROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
EXPORTED = (CONFIG, TENSORS, PREPROCESSOR, CARD)
"""All file names that an export may write."""

USUAL_SIDE = 224  # pixels
TIMM_EPS = 1e-5
"""norm_eps of timm's DINOv3 models; it is no plain argument there, so a folder with another one needs Python."""

Files = dict[str, bytes | dict[str, Tensor]]
"""File name -> content: bytes, or tensors by name."""


class Export(NamedTuple):
    """What `export_backbone` wrote."""

    folder: Path
    left_out: list[str]
    """What the library cannot hold, and what was assumed; one sentence each."""


def export_backbone(
    spec: str, folder: str | Path, *, library: Library = "transformers", overwrite: bool = False
) -> Export:
    """Write the network that `spec` names (see `load_backbone`) as a folder for transformers or timm.

    The folder appears whole or not at all. Raises ValueError when it is not empty (with `overwrite`: when it is no
    export, by its README.md, or holds anything else), when `spec` names a network of another library, and for what
    the library cannot compute.
    """
    if library not in LIBRARIES:
        raise ValueError(f"format {library!r} is unknown; use one of {', '.join(LIBRARIES)}.")
    check_target(Path(folder).resolve(), overwrite)
    network = load_backbone(spec)
    if not isinstance(network, VisionTransformer | ConvNeXt):
        raise ValueError(
            f"{spec} is a {type(network).__name__}; only VisionTransformer and ConvNeXt are exported. "
            "Export a run, or DINOv3 weights (dinov3:ARCH:PATH, hf:FOLDER)."
        )
    origin, title = origin_of(spec)
    return write_export(network, folder, origin, title, library=library, overwrite=overwrite)


def write_export(
    network: Network,
    folder: str | Path,
    origin: Origin,
    title: str,
    *,
    library: Library = "transformers",
    overwrite: bool = False,
) -> Export:
    """Write `network` as `export_backbone` does, with a card that says its `origin` under `title` (foreign text)."""
    target, left_out = Path(folder).resolve(), _left_out(network, library)
    files = _transformers_files(network, origin) if library == "transformers" else _timm_files(network, origin)
    code = _transformers_code(network) if library == "transformers" else _timm_code(network)
    architecture = {"class": architecture_of(network)["class"]} | network.config.to_dict()
    card = model_card(
        library=library, title=title, architecture=architecture, origin=origin, code=code, left_out=left_out
    )
    _write_folder(target, {**files, CARD: card.encode()}, overwrite)
    return Export(target, [*left_out, *origin.notes])


def _left_out(network: Network, library: Library) -> list[str]:
    """What `library` does not hold of `network`, one sentence each."""
    if isinstance(network, ConvNeXt):
        step = network.config.patch_size
        return [f"Maps are not resized to every {step} pixels; they keep the stride of {STRIDE}."] if step else []
    config, notes = network.config, []
    if config.local_cls_norm:
        notes.append("The norm of local crops (`local_cls_norm`) is left out; it is used in training only.")
    if config.drop_path:
        notes.append("Stochastic depth is off: ours skips a subset of the batch, which the library does not do.")
    if not _has_exact_periods(network):
        notes.append(
            "The RoPE periods of these weights are rounded, as in half precision; the library computes exact ones, so "
            "its features differ by some thousandths."
        )
    if library == "transformers" and not config.layerscale:
        notes.append("The network has no LayerScale; it is written with gains of 1.")
    if library == "timm":
        notes.append("Mask token and RoPE augmentation, for training only, are left out: timm does not hold them.")
    return notes


def _has_exact_periods(network: VisionTransformer) -> bool:
    exact = RopePositionEmbedding(network.config.head_dim, base=network.config.rope_base).periods
    return torch.allclose(network.rope_embed.periods.cpu(), exact, rtol=1e-6, atol=0)


# ---- transformers ----


def _transformers_files(network: Network, origin: Origin) -> Files:
    side = _side(network)
    preprocessor = {
        "image_processor_type": "DINOv3ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(origin.mean),
        "image_std": list(origin.std),
    }
    config = transformers_config(network)
    return {
        CONFIG: _json(config | {"image_size": side}),
        TENSORS: transformers_tensors(network),
        PREPROCESSOR: _json(preprocessor),
    }


def _transformers_code(network: Network) -> str:
    prefix = network.config.num_prefix_tokens if isinstance(network, VisionTransformer) else 1
    return "\n".join(
        (
            "import torch",
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            'processor = AutoImageProcessor.from_pretrained(".")  # resizes to a square; see its arguments',
            'model = AutoModel.from_pretrained(".").eval()',
            "with torch.no_grad():",
            "    pixels = torch.zeros(3, 300, 400, dtype=torch.uint8)  # your image, RGB",
            '    tokens = model(**processor(images=pixels, return_tensors="pt")).last_hidden_state',
            f"patches = tokens[:, {prefix}:]  # row by row, from the top left; tokens[:, 0] sums up the image",
        )
    )


# ---- timm ----


def _timm_files(network: Network, origin: Origin) -> Files:
    files: Files = {TENSORS: timm_tensors(network)}
    described = _timm_config(network, origin)
    return files | {CONFIG: _json(described)} if described else files


def _timm_config(network: Network, origin: Origin) -> dict[str, Any] | None:
    """config.json for timm.create_model("local-dir:FOLDER"), or None when plain JSON cannot describe the network."""
    name, arguments = timm_name(network), timm_arguments(network)
    pool = arguments.pop("global_pool", "avg")
    arguments.pop("num_classes")
    if name is None and isinstance(network, VisionTransformer) and network.config.norm_eps != TIMM_EPS:
        return None
    base = "convnext_tiny" if isinstance(network, ConvNeXt) else "vit_small_patch16_dinov3"
    side = _side(network)
    about = {"mean": list(origin.mean), "std": list(origin.std), "input_size": [3, side, side], "crop_pct": 1.0}
    return {
        "architecture": name or base,
        "num_classes": 0,
        "num_features": network.embed_dim,
        "global_pool": pool,
        "model_args": {"global_pool": pool} if name else arguments | {"global_pool": pool},
        "pretrained_cfg": about | {"interpolation": "bicubic", "fixed_input_size": False, "num_classes": 0},
    }


def _timm_code(network: Network) -> str:
    name, is_vit = timm_name(network), isinstance(network, VisionTransformer)
    if name:
        pool = ', global_pool="token"' if is_vit else ""
        lines = ["import timm", "", f'model = timm.create_model("{name}", num_classes=0{pool}).eval()']
    else:
        lines = _generic_timm_code(network)
    shape = "[B, 1 + registers + H W, D]" if is_vit else "[B, D, H, W], before the norm model.head.norm"
    return "\n".join(
        (
            "import torch",
            "from safetensors.torch import load_file",
            *lines,
            f'model.load_state_dict(load_file("{TENSORS}"), strict=True)',
            "with torch.no_grad():",
            f"    images = torch.zeros(1, 3, {_side(network)}, {_side(network)})  # normalised as above",
            f"    features = model.forward_features(images)  # {shape}",
        )
    )


def _generic_timm_code(network: Network) -> list[str]:
    """Lines that build a size that timm has no name for."""
    arguments = [f"    {name}={value!r}," for name, value in timm_arguments(network).items()]
    if isinstance(network, ConvNeXt):
        return ["from timm.models.convnext import ConvNeXt", "", "model = ConvNeXt(", *arguments, ").eval()"]
    imports = ["from functools import partial", "from timm.layers import LayerNorm", "from timm.models.eva import Eva"]
    norm = f"    norm_layer=partial(LayerNorm, eps={network.config.norm_eps!r}),"
    return [*imports, "", "model = Eva(", *arguments, norm, ").eval()"]


# ---- files ----


def _side(network: Network) -> int:
    """Side of a square input in pixels: near 224, a multiple of the patch size."""
    step = STRIDE if isinstance(network, ConvNeXt) else network.patch_size
    return max(USUAL_SIDE // step, 1) * step


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _write_file(path: Path, content: bytes | dict[str, Tensor]) -> None:
    if isinstance(content, bytes):
        return replace_bytes(path, content)
    tensors: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, tensor in content.items():
        plain = tensor.detach().cpu().contiguous()
        tensors[name] = plain.clone() if plain.data_ptr() in pointers else plain  # safetensors writes no tensor twice
        pointers.add(plain.data_ptr())
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where an export may not be written: see `export_backbone`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an export needs a folder of its own.")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in EXPORTED]
    if foreign and overwrite:
        raise ValueError(
            f"{folder} holds {', '.join(foreign[:5])}, which no export writes; nothing was touched. Choose another one."
        )
    if names and overwrite and not _is_export(folder):
        raise ValueError(f"{folder} holds a model that is no export, by its {CARD}; nothing was touched.")
    if names and not overwrite:
        raise ValueError(f"{folder} is not empty; choose another folder, or --overwrite to replace an earlier export.")


def _is_export(folder: Path) -> bool:
    """Whether the card in `folder` is one of ours; the folder of a downloaded model has the same file names."""
    try:
        return EXPORTED_BY in (folder / CARD).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _write_folder(folder: Path, files: Files, overwrite: bool) -> None:
    """Write all `files` beside `folder` under a temporary name, then put them in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = temporary_path(folder.parent), temporary_path(folder.parent)
    try:
        for name, content in files.items():
            _write_file(fresh / name, content)
        check_target(folder, overwrite)  # again: writing takes a while, and what came in meanwhile is not ours
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(fresh, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
