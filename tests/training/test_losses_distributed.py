"""Two real processes over gloo compute what one process computes on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.losses import clip_loss, info_nce_loss, nt_xent_loss, sinkhorn_knopp, update_center

ROOT = Path(__file__).resolve().parents[2]
ROWS = (7, 4)  # teacher logits on each process: as uneven as masked patches are


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"logits": (sum(ROWS), 6), "image": (6, 5), "text": (6, 5), "center": (6,)}
    drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return drawn | {"scale": torch.tensor(14.3)}


@pytest.fixture(scope="module")
def outputs(inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("collective")
    parts = {name: inputs[name].split(ROWS if name == "logits" else 3) for name in ("logits", "image", "text")}
    for rank in range(2):
        mine = {name: part[rank].contiguous() for name, part in parts.items()}
        save_file(mine | {k: inputs[k] for k in ("center", "scale")}, folder / f"in-{rank}.safetensors")
    command = [sys.executable, str(Path(__file__).with_name("collective_worker.py"))]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    loopback = {"linux": {"GLOO_SOCKET_IFNAME": "lo"}}.get(sys.platform, {})
    environment = {**os.environ, **loopback, "PYTHONPATH": paths}
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [load_file(folder / f"out-{rank}.safetensors") for rank in range(2)]


def test_sinkhorn_with_uneven_rows(inputs: dict[str, Tensor], outputs: list[dict[str, Tensor]]) -> None:
    together = torch.cat([o["sinkhorn"] for o in outputs])
    torch.testing.assert_close(together, sinkhorn_knopp(inputs["logits"], 0.05), rtol=1e-5, atol=1e-8)
    apart = torch.cat([sinkhorn_knopp(rows, 0.05) for rows in inputs["logits"].split(ROWS)])
    assert not torch.allclose(together, apart, atol=1e-3)


def test_sinkhorn_with_no_rows_on_one_process(inputs: dict[str, Tensor], outputs: list[dict[str, Tensor]]) -> None:
    assert outputs[1]["empty"].shape == (0, 6)
    torch.testing.assert_close(outputs[0]["empty"], sinkhorn_knopp(inputs["logits"][: ROWS[0]], 0.05))


def test_center_is_the_mean_over_all_rows(inputs: dict[str, Tensor], outputs: list[dict[str, Tensor]]) -> None:
    expected = update_center(inputs["center"].clone(), inputs["logits"], 0.9)
    for output in outputs:
        torch.testing.assert_close(output["center"], expected)


def test_clip_loss_and_its_gradients(inputs: dict[str, Tensor], outputs: list[dict[str, Tensor]]) -> None:
    image, text = inputs["image"].clone().requires_grad_(), inputs["text"].clone().requires_grad_()
    scale = inputs["scale"].clone().requires_grad_()
    loss = clip_loss(image, text, scale)
    loss.backward()
    torch.testing.assert_close(torch.stack([o["loss"] for o in outputs]).mean(), loss.detach())
    assert scale.grad is not None
    torch.testing.assert_close(torch.stack([o["scale"] for o in outputs]).mean(), scale.grad)
    for name, whole in (("image", image), ("text", text)):
        averaged = torch.cat([o[name] for o in outputs]) / 2  # as data-parallel training averages over processes
        torch.testing.assert_close(averaged, whole.grad)


@pytest.mark.parametrize(("name", "loss", "ends"), [("nt_xent", nt_xent_loss, 2), ("info_nce", info_nce_loss, 1)])
def test_contrast_averaged_over_processes_is_that_of_the_whole_batch(
    name: str, loss: Callable[..., Tensor], ends: int, inputs: dict[str, Tensor], outputs: list[dict[str, Tensor]]
) -> None:
    """Value and gradients; no gradient flows into MoCo's keys, so `info_nce` has one end."""
    first, second = inputs["image"].clone().requires_grad_(), inputs["text"].clone().requires_grad_()
    value = loss(first, second, temperature=0.2)
    value.backward()
    torch.testing.assert_close(torch.stack([o[f"{name}_loss"] for o in outputs]).mean(), value.detach())
    for key, whole in (("first", first), ("second", second))[:ends]:
        together = torch.cat([o[f"{name}_{key}"] for o in outputs]) / len(outputs)
        torch.testing.assert_close(together, whole.grad, rtol=1e-4, atol=1e-6)
    assert all((f"{name}_second" in output) == (ends == 2) for output in outputs)
