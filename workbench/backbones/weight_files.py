"""Weights on this machine: tensor files, official checkpoints, folders of transformers. Nothing is downloaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

CONFIG_FILE = "config.json"
TENSORS_FILE = "model.safetensors"
TENSORS_INDEX = "model.safetensors.index.json"

WAYS_TO_DINOV3 = (
    "Two ways to get one: ask for access at https://github.com/facebookresearch/dinov3 and save the .pth behind the "
    "link you are sent; or, with access to the model's page on the Hugging Face Hub, run `hf download "
    "facebook/dinov3-vits16-pretrain-lvd1689m --local-dir FOLDER` (or another size) and load 'hf:FOLDER'."
)
WAYS_TO_A_FOLDER = (
    "Two ways to get one: on a machine with a network, `hf download facebook/dinov2-small --local-dir FOLDER` (or "
    "another model of DINOv2, DINOv3, CLIP or SigLIP); or write one from a run of yours, `python -m workbench export "
    "run:PATH FOLDER`."
)
WAYS_TO_TIMM = (
    "Two ways to get one: on a machine with a network, `hf download timm/NAME model.safetensors --local-dir FOLDER`; "
    "or, where timm has the weights, `safetensors.torch.save_file(timm.create_model(NAME, pretrained=True, "
    "num_classes=0).state_dict(), PATH)`."
)

WAYS_TO_OPENCLIP = (
    "Two ways to get one: on a machine with a network, `hf download laion/CLIP-ViT-B-16-laion2B-s34B-b88K "
    "open_clip_model.safetensors --local-dir FOLDER` (or another model); or, where open_clip has the weights, "
    "`safetensors.torch.save_file(open_clip.create_model(ARCH, pretrained=TAG).visual.state_dict(), PATH)`."
)


def read_state_dict(path: str | Path, *, ways: str = WAYS_TO_DINOV3) -> dict[str, Tensor]:
    """Tensors of a local .safetensors file, or of a .pth file opened with `weights_only=True`, on the CPU.

    Raises FileNotFoundError, with the `ways` to get such a file, and ValueError for files that hold anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights file at {path}; give the path of a local .safetensors or .pth file. {ways}"
        )
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path.name} ends in {path.suffix!r}; weights are read from .safetensors or .pth files.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    _check_names(state, path)
    return state


def _load_pth(path: Path) -> Any:
    """What `torch.save` wrote, if that is tensors and plain values; no code in the file is run."""
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is damaged; convert it to .safetensors.") from error
    except Exception as error:  # damage shows as almost any kind: EOFError, KeyError, IndexError, AssertionError, …
        raise ValueError(f"cannot read {path}, it is damaged: {error or type(error).__name__}") from error


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than it is; `torch.save` compresses nothing."""
    with path.open("rb") as file:  # outside what follows: a file that may not be opened is not a damaged one
        try:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except Exception:  # of the format from before archives, or damaged: torch says which
            return
    if unpacked > path.stat().st_size:
        raise ValueError(f"{path} would unpack to {unpacked} bytes; torch.save writes no compressed archives.")


def _check_names(state: Any, where: object) -> None:
    if not isinstance(state, dict):
        raise ValueError(f"{where} holds a {type(state).__name__}; a checkpoint is a dict of named tensors.")
    if unnamed := [name for name in state if not isinstance(name, str)]:
        raise ValueError(f"{where} has the key {unnamed[0]!r}; a checkpoint is a dict of named tensors.")


def backbone_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors in an official checkpoint: a flat dict, or the "teacher" part of a training checkpoint.

    Raises ValueError where that part has keys that are no names.
    """
    if isinstance(state.get("teacher"), dict):
        state = state["teacher"]
        _check_names(state, "the checkpoint's 'teacher'")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    return state


def read_transformers_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a local folder in the layout of transformers.

    Raises FileNotFoundError, with two ways to get such a folder, and ValueError for a file that is no JSON object.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {CONFIG_FILE} in {folder}; give a local folder that holds {CONFIG_FILE} and {TENSORS_FILE}. "
            f"{WAYS_TO_A_FOLDER}"
        )
    return _json_object(path)


def read_transformers_tensors(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of such a folder: model.safetensors, or the parts that its index names. Raises as above."""
    folder = Path(folder)
    if not (folder / TENSORS_INDEX).is_file():
        return read_state_dict(folder / TENSORS_FILE, ways=WAYS_TO_A_FOLDER)
    parts = _json_object(folder / TENSORS_INDEX).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{folder / TENSORS_INDEX} must name files right beside it under 'weight_map'.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        tensors |= read_state_dict(folder / name, ways=WAYS_TO_A_FOLDER)
    return tensors


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(value).__name__}.")
    return value
