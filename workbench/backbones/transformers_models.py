"""Networks of transformers as they are there, opened from a local folder; for models that ours cannot stand in for.

transformers is imported when a model is asked for. Nothing is fetched, and no code of a folder is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.backbones.weight_files import TENSORS_FILE, TENSORS_INDEX, WAYS_TO_A_FOLDER


def open_model(
    folder: str | Path,
    model_type: str,
    sizes: Mapping[str, Any],
    *,
    attention: str | None = "sdpa",
    unused: tuple[str, ...] = (),
) -> Any:
    """The bare model of `model_type` with the tensors of `folder` in float32, in evaluation mode.

    Args:
        folder: holds model.safetensors (or its parts and their index). What else it holds is not read.
        sizes: the entries of its config. Give only those that shape the network: some make transformers fetch and run
            code, such as attention kernels from the Hub.
        attention: "sdpa", or "eager", which can return the weights; None for networks without attention.
        unused: ends of the names of tensors that may be missing.
    Raises FileNotFoundError for missing files, ValueError for tensors that are damaged, missing or of another shape,
    ImportError where transformers is missing.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (TENSORS_FILE, TENSORS_INDEX)):
        raise FileNotFoundError(f"no {TENSORS_FILE} in {folder}; other weight formats are not read. {WAYS_TO_A_FOLDER}")
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter, which leads to another model; merge it into its model first.")
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ImportError(f"{model_type} folders need transformers: pip install 'transformers>=5'") from error
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    options |= {"attn_implementation": attention} if attention else {}
    try:
        config = AutoConfig.for_model(model_type, **sizes)
        with _without_reports():
            model, report = AutoModel.from_pretrained(
                folder, config=config, dtype="float32", output_loading_info=True, **options
            )
    except Exception as error:  # of many kinds: damaged files, and entries of another type or size
        raise ValueError(f"transformers cannot open {folder}: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(unused))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors of its model, the first is {missing[0]}.")
    return model.eval()


@contextmanager
def _without_reports() -> Iterator[None]:
    """While entered, transformers logs errors only: it lists every tensor that a part of a model leaves unread."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def run_model(model: Any, images: Tensor, attention: bool, **inputs: Any) -> Any:
    """The output of `model` with all hidden states; only its plain ("eager") attention can return the weights."""
    if not attention:
        return model(images, output_hidden_states=True, **inputs)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(images, output_hidden_states=True, output_attentions=True, **inputs)
    finally:
        model.set_attn_implementation(before)
