from pathlib import Path
from typing import Any

import pytest
import torch

from geodistill.commands.distill import distill
from geodistill.config import Config
from geodistill.latent_teacher import train_latent_teacher
from geodistill.prior.training import train_denoiser
from geodistill.prototypes import Prototypes
from geodistill.run import Rows, records
from geodistill.scenes import SceneData, Scenes
from geodistill.stages import adapter, learned, real, students, teacher
from geodistill.stages.latents import views_of


@pytest.fixture
def uneven(data: SceneData) -> Scenes:
    """60 scenes of two classes, six of the second."""
    own = [(data.train.labels == label).nonzero()[:, 0].repeat(9) for label in (0, 1)]
    scenes = data.train.subset(torch.cat([own[0][:54], own[1][:6]]))
    return Scenes(scenes._sources, scenes.labels, scenes.classes[:2], scenes.keys, scenes.names)


def test_all_scenes_are_learned_from_below_the_limit(uneven: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learned.learned(uneven, 0).tolist() == list(range(60))
    assert learned.unless_all(uneven) == []
    monkeypatch.setattr(learned, "MOST", 20)
    part = learned.learned(uneven, 0)
    assert torch.bincount(uneven.labels[part]).tolist() == [14, 6]
    assert learned.unless_all(uneven) == [["learned", 20]]


def test_fewer_views_of_many_scenes() -> None:
    counts = (1, 32_768, 32_769, 65_536, 65_537, 131_072, 131_073, 10**6)
    assert [views_of(count, Config()) for count in counts] == [8, 8, 4, 4, 2, 2, 1, 1]
    assert [views_of(count, Config(latents={"views": 2})) for count in (65_537, 131_073)] == [2, 1]  # type: ignore[arg-type]


def test_a_large_archive_is_learned_from_in_part_and_used_whole(
    uneven: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def taught(latents: Any, labels: torch.Tensor, *more: Any, **options: Any) -> Any:
        seen["teacher"] = labels
        return train_latent_teacher(latents, labels, *more, **options)

    def trained(unet: Any, scheduler: Any, data: Any, *more: Any) -> Any:
        seen["adapter"], seen["latents"] = data.labels, data.latents
        return train_denoiser(unet, scheduler, data, *more)

    monkeypatch.setattr(learned, "MOST", 20)
    monkeypatch.setattr(real, "MOST", 20)
    monkeypatch.setattr(teacher, "train_latent_teacher", taught)
    monkeypatch.setattr(adapter, "train_denoiser", trained)
    shown = []
    monkeypatch.setattr(students, "views_of_scenes", lambda count: shown.append(count) or 1)
    # A teacher of 20 scenes may well guess.
    monkeypatch.setattr("geodistill.latent_teacher._refuse_guessing", lambda *_: None)
    made = distill(uneven, tiny, out=tmp_path / "run")
    assert len(made) == 4
    for name in ("teacher", "adapter"):
        assert torch.bincount(seen[name]).tolist() == [14, 6], name
    assert isinstance(seen["latents"], Rows)
    assert shown == [20]
    found = Prototypes.load(tmp_path / "run" / "prototypes")
    assert torch.cat(found.members).sort().values.tolist() == list(range(60))
    assert {record["stage"] for record in records(tmp_path / "run")} >= {"latents", "features", "refined"}
