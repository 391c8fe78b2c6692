"""One of several processes computing losses together: `collective_worker.py RANK WORLD FOLDER`.

Reads FOLDER/in-RANK.safetensors, meets the others through FOLDER/meet, writes FOLDER/out-RANK.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.losses import clip_loss, info_nce_loss, nt_xent_loss, sinkhorn_knopp, update_center


def contrast(given: dict[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Value and gradients of both losses on views without labels."""
    results = {}
    for name, loss in (("nt_xent", nt_xent_loss), ("info_nce", info_nce_loss)):
        first, second = (given[key].detach().clone().requires_grad_() for key in ("image", "text"))
        value = loss(first, second, temperature=0.2, group=group)
        value.backward()
        results[f"{name}_loss"] = value.detach()
        results |= {f"{name}_{key}": x.grad for key, x in (("first", first), ("second", second)) if x.grad is not None}
    return results


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    group = dist.group.WORLD
    given = load_file(folder / f"in-{rank}.safetensors")
    image, text = given["image"].requires_grad_(), given["text"].requires_grad_()
    scale = given["scale"].requires_grad_()
    loss = clip_loss(image, text, scale, group=group)
    loss.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    results = {
        "sinkhorn": sinkhorn_knopp(given["logits"], 0.05, group=group),
        "empty": sinkhorn_knopp(given["logits"] if rank == 0 else given["logits"][:0], 0.05, group=group),
        "center": update_center(given["center"], given["logits"], 0.9, group=group),
        "loss": loss.detach(),
        "image": image.grad,
        "text": text.grad,
        "scale": scale.grad,
        **contrast(given, group),
    }
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / f"out-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
