from pathlib import Path

import pytest
import torch

from geodistill.latent_teacher import LatentTeacher, load_latent_teacher, predict, save_latent_teacher
from geodistill.run import Rows, save_tensors
from geodistill.stages import real
from geodistill.stages.real import Real


@pytest.mark.parametrize("most", [7, 100])
def test_class_means_are_those_of_all_scenes(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    latents, known = torch.randn(40, 2, 4, 8, 8, generator=random).half(), torch.rand(40, 5, generator=random)
    labels = torch.arange(40) % 3
    save_tensors({"latents": latents}, tmp_path / "latents.safetensors")
    judge = load_latent_teacher(_a_teacher(latents, labels, tmp_path))
    monkeypatch.setattr(real, "MOST", most)
    rows = Rows(tmp_path / "latents.safetensors", "latents").column(0)
    means = Real(judge, rows, known, labels).means()
    whole = torch.cat([predict(judge, latents[:, 0])[1], known], dim=1)
    wanted = torch.stack([whole[labels == label].mean(dim=0) for label in range(3)])
    assert torch.allclose(means, wanted, atol=1e-6)
    if most == 100:  # in one part the very same numbers
        assert torch.equal(means, wanted)


def _a_teacher(latents: torch.Tensor, labels: torch.Tensor, folder: Path) -> Path:
    save_latent_teacher(LatentTeacher(latents.shape[2], int(labels.max()) + 1, 8), folder)
    return folder


def test_features_of_a_class_are_those_of_a_fair_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, labels = torch.randn(40, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(40).long()
    labels[:3] = 1
    judge = load_latent_teacher(_a_teacher(latents, labels, tmp_path))
    scenes = Real(judge, latents[:, 0], None, labels)
    assert len(scenes.of_class(0, seed=0)) == 37
    monkeypatch.setattr(real, "MOST", 13)
    assert [len(scenes.of_class(label, seed=0)) for label in (0, 1)] == [10, 3]
