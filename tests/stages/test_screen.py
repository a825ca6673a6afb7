from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.commands.distill import distill
from geodistill.config import Config, SamplingSettings, make_config
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, PrivacyError
from geodistill.run import records
from geodistill.scenes import Scenes
from geodistill.stages import screen as stage
from geodistill.stages.screen import weaker


class Stranger:
    """Lets pass, of the images it is shown in each call, those that `verdicts` say, over and over."""

    distance, ratio = 0.1, 0.9

    def __init__(self, verdicts: list[list[bool]]) -> None:
        self.verdicts, self.asked = verdicts, list[int]()

    def passes(self, images: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(len(images))
        return torch.tensor(self.verdicts[len(self.asked) - 1] * len(images))[: len(images)]


def screened(config: Config, *, refined: int = 0, **sampling: object) -> Config:
    values = config.model_dump()
    changes = {
        "privacy": "screen",
        "sampling": {**values["sampling"], **sampling},
        "refinement": {**values["refinement"], "steps": refined},
    }
    return make_config({**values, **changes})


def test_only_prototypes_with_too_few_are_drawn_again_and_chosen_are_those_that_pass(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four prototypes of eight candidates; of the first none passes, of the others three do.
    first = [False] * 8 + ([True] * 3 + [False] * 5) * 3
    stranger = Stranger([first, [False] * 6 + [True] * 2])
    monkeypatch.setattr(stage, "make_screen", lambda *_, seed: stranger)
    config = screened(on_pipeline, candidates=8)
    distilled = distill(pair, config, out=tmp_path / "run")
    assert stranger.asked == [32, 8]
    (facts,) = [record["facts"] for record in records(tmp_path / "run") if record["stage"] == "screened"]
    assert facts == {"distance": 0.1, "ratio": 0.9, "rejected": [23, 6], "passing": 11}
    drawn = load_file(tmp_path / "run" / "candidates" / "candidates.safetensors")["latents"]
    kept = load_file(tmp_path / "run" / "screened" / "screened.safetensors")
    changed = (kept["latents"] != drawn).flatten(1).any(1)
    assert changed.nonzero()[:, 0].tolist() == list(range(8))
    passing = kept["passing"].nonzero()[:, 0].tolist()
    assert passing == [6, 7, 8, 9, 10, 16, 17, 18, 24, 25, 26]
    slots = [(2 * one["label"] + one["prototype"]) * 8 + one["candidate"] for one in _told(distilled)]
    assert set(slots) <= set(passing)
    again = distill(pair, config, out=tmp_path / "run")
    assert torch.equal(again.images, distilled.images)
    card = (tmp_path / "run" / "distilled" / "README.md").read_text()
    # These settings follow prototypes, which are training images: screening alone does not make the set anonymous.
    assert "## Privacy\n\nNot anonymous: the images follow training images, or means of them" in card
    assert "\n\nScreened: candidates were rejected" in card
    assert "No image followed a training image" not in card
    assert "What these images reveal" in card
    assert stranger.asked == [32, 8]


def test_copies_among_the_chosen_are_left_out(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "make_screen", lambda *_, seed: Stranger([[True]]))
    shown: list[Tensor] = []

    def first_is_a_copy(images: Tensor, _: Tensor) -> Tensor:
        shown.append(images)
        return torch.arange(len(images)) == 0 if len(shown) == 1 else torch.zeros(len(images), dtype=torch.bool)

    monkeypatch.setattr("geodistill.stages.chosen.find_copies", first_is_a_copy)
    monkeypatch.setattr("geodistill.stages.chosen.are_copies", lambda found: found)
    distilled = distill(pair, screened(on_pipeline, candidates=4), out=tmp_path / "run")
    assert len(shown) == 2
    assert torch.equal(distilled.images, shown[1])
    assert not any(torch.equal(image, shown[0][0]) for image in distilled.images)


def test_what_comes_too_near_when_refined_stays_as_it_was_chosen(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Stranger([[True], [True, False, True, True]])
    monkeypatch.setattr(stage, "make_screen", lambda *_, seed: stranger)
    monkeypatch.setattr("geodistill.stages.chosen.find_copies", lambda images, _: images)
    monkeypatch.setattr(
        "geodistill.stages.chosen.are_copies", lambda images: torch.zeros(len(images), dtype=torch.bool)
    )
    monkeypatch.setattr(stage, "find_copies", lambda images, _: images)
    monkeypatch.setattr(stage, "are_copies", lambda images: torch.tensor([False, False, True, False]))
    distill(pair, screened(on_pipeline, refined=2), out=tmp_path / "run")
    chosen, refined = (load_file(tmp_path / f"run/{name}/chosen.safetensors") for name in ("chosen", "refined"))
    changed = (chosen["latents"] != refined["latents"]).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, False, True]
    (facts,) = [record["facts"] for record in records(tmp_path / "run") if record["stage"] == "refined"]
    assert facts["put_back"] == 2


def test_rather_nothing_than_a_copy(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Stranger([[False]] * 4)
    monkeypatch.setattr(stage, "make_screen", lambda *_, seed: stranger)
    with pytest.raises(PrivacyError) as caught:
        distill(pair, screened(on_pipeline), out=tmp_path / "run")
    assert str(caught.value) == (
        f"class {pair.classes[0]!r}: 0 candidates keep away from the training images, 2 are needed: draw more "
        "(sampling.candidates) or follow prototypes less (sampling.strength)"
    )
    assert stranger.asked == [8, 8, 8, 8]
    assert not (tmp_path / "run" / "distilled").exists()


def test_each_round_follows_less() -> None:
    settings, strengths = SamplingSettings(strength=0.75), []
    for _ in range(4):
        settings = weaker(settings)
        strengths.append(settings.strength)
    assert strengths == [0.85, 0.95, 1.0, 1.0]
    assert weaker(SamplingSettings(follow="guide", scale=1.0)).scale == 0.5


def test_screening_needs_a_choice(tiny: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({**tiny.model_dump(), "privacy": "screen", "selection": {"by": "first"}})
    assert "privacy 'screen' needs selection.by 'herding', got 'first'" in str(caught.value)


def _told(distilled: DistilledSet) -> list[dict[str, int]]:
    labels = distilled.labels.tolist()
    return [{**record, "label": label} for record, label in zip(distilled.records, labels, strict=True)]
