"""A resume unpickles files, so it wants a folder of the user who asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from training.checkpoint import newest_checkpoint, save_checkpoint


def test_a_resume_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "resume"
    assert newest_checkpoint(folder) == (None, [])
    saved = save_checkpoint(folder, 1, {"x": torch.zeros(2)})
    assert newest_checkpoint(folder) == (saved, [])
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=f"belongs to user {owner}, and this is user {owner + 1}"):
        newest_checkpoint(folder)
