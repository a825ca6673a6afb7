from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from geodistill.commands import add as module
from geodistill.commands.add import add, compose, joined
from geodistill.config import load_config
from geodistill.distilled import DistilledSet, tell_of_audit
from geodistill.distilled.about import follows_scenes
from geodistill.errors import ConfigError
from geodistill.networks import backbone_features
from geodistill.scenes.scenes import Scenes


def _plain(*levels: int) -> torch.Tensor:
    """Return one image of 32 px of each grey level, with some noise."""
    noise = torch.randint(0, 20, (len(levels), 3, 32, 32), generator=torch.Generator().manual_seed(sum(levels)))
    return (torch.tensor(levels)[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)


def _scenes(images: torch.Tensor, labels: list[int], classes: tuple[str, ...]) -> Scenes:
    return Scenes.from_arrays(list(images.permute(0, 2, 3, 1).contiguous().numpy()), labels, classes)


OLD = DistilledSet(_plain(10, 20, 60, 70), torch.tensor([0, 0, 1, 1]), ("Beach", "Pond"), (), {"method": "dpd"})
NEW = _scenes(_plain(100, 110, 200, 210), [0, 0, 1, 1], ("Pond", "Quarry"))


def test_the_set_and_the_new_scenes_are_scenes_together() -> None:
    both = joined(OLD, NEW)
    assert both.classes == ("Beach", "Pond", "Quarry")
    assert both.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert torch.equal(both.pixels(size=32), torch.cat([OLD.images, NEW.pixels(size=32)]))
    assert both.names[0] == "Beach/distilled 0"
    assert len(set(both.keys)) == 8


def _made() -> DistilledSet:
    records = tuple({"description": str(k)} for k in range(6))
    images = _plain(12, 22, 105, 115, 205, 215)
    return DistilledSet(images, torch.tensor([0, 0, 1, 1, 2, 2]), ("Beach", "Pond", "Quarry"), records)


def test_old_classes_keep_their_images_and_new_ones_get_new_images() -> None:
    made = _made()
    found = compose(OLD, made, NEW)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(found.images[:2], OLD.images[:2])
    assert torch.equal(found.images[4:], made.images[4:])
    assert found.records[4:] == made.records[4:]
    assert found.about["batches"] == 2


@pytest.mark.parametrize(("batches", "old_kept"), [(1000, True), (0, False)])
def test_a_class_with_both_follows_the_mean_of_all_that_it_stands_for(batches: int, old_kept: bool) -> None:
    old = DistilledSet(OLD.images, OLD.labels, OLD.classes, (), {"batches": batches})
    # The new scenes are the new images, so that with no weight on the old ones these are nearest.
    made = _made()
    new = _scenes(torch.cat([made.images[2:4], made.images[4:]]), [0, 0, 1, 1], ("Pond", "Quarry"))
    found = compose(old, made, new)
    mean = backbone_features((OLD if old_kept else made).images[2:4]).mean(dim=0)
    own = backbone_features(found.images[2:4]).mean(dim=0)
    assert float(F.cosine_similarity(mean, own, dim=0)) > 0.999
    assert found.about["batches"] == batches + 1


def test_images_of_another_size_or_number_of_bands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the set has images of 32 px: use --size 32$"):
        add(OLD, NEW, load_config("tiny", size=64), out=tmp_path)
    wide = Scenes.from_arrays(torch.zeros(4, 32, 32, 5, dtype=torch.uint8).numpy(), [0, 0, 1, 1], ("a", "b"))
    wanted = r"^the set has 3 bands and the new scenes have 5: give --bands as for the set$"
    with pytest.raises(ConfigError, match=wanted):
        add(OLD, wide, load_config("tiny", size=32), out=tmp_path)


def _about(old: DistilledSet, **made: object) -> dict[str, object]:
    return compose(old, replace(_made(), about={"method": "dpd", **made}), NEW).about


def test_the_updated_set_says_what_is_true_of_old_and_new_images() -> None:
    aid = {"name": "aid", "archives": ["AID"], "terms": "academic"}
    compact = {"name": "compact", "archives": ["UC Merced", "EuroSAT"], "terms": ""}
    old = replace(OLD, about={"method": "dpd", "screened": True, "base": aid})
    assert _about(old, screened=True, base=aid) == {"method": "dpd", "screened": True, "base": aid, "batches": 2}
    mixed = _about(old, base=compact)
    assert "screened" not in mixed
    assert mixed["base"] == {
        "name": "aid and compact",
        "archives": ["AID", "UC Merced", "EuroSAT"],
        "terms": "academic",
    }
    assert "screened" not in _about(OLD, screened=True)
    # A seed that old images follow from is not hidden by new ones that were drawn in secret.
    seeded = replace(OLD, about={"method": "dpd", "config": {"seed": 3}})
    assert _about(seeded, config={"ipc": 2})["config"] == {"ipc": 2, "seed": 3}
    # Nor is it hidden that old images were sampled from training images.
    for followed in ({"config": {"sampling": {"follow": "start"}}}, {"method": "mgd3"}):
        about = _about(replace(OLD, about=followed), config={"sampling": {"follow": "none"}})
        assert follows_scenes(about)
        assert about["method"] == " and ".join(dict.fromkeys([followed.get("method", "dpd"), "dpd"]))
    assert not follows_scenes(_about(OLD, config={"sampling": {"follow": "none"}}))


@pytest.mark.parametrize(("old_has", "new_has"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("same", [True, False])
def test_soft_labels_stay_where_all_images_have_them_for_the_same_classes(
    old_has: bool, new_has: bool, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    classes = ("Beach", "Pond", "Quarry") if same else OLD.classes
    labels = torch.tensor([0, 0, 1, 2]) if same else OLD.labels

    def records(count: int, has: bool) -> tuple[dict[str, object], ...]:
        return tuple({"description": str(k), **({"soft_label": [1.0]} if has else {})} for k in range(count))

    old = DistilledSet(OLD.images, labels, classes, records(4, old_has), {"method": "dpd"})
    found = compose(old, replace(_made(), records=records(6, new_has)), NEW)
    kept = old_has and new_has and same
    assert all(("soft_label" in record) == kept for record in found.records)
    assert all("description" in record for record in found.records)
    assert ("soft labels are left out" in caplog.text) == (not kept)


@pytest.mark.parametrize(
    ("about", "what"),
    [
        ({"method": "kmeans", "real_pixels": True}, "real images (method kmeans)"),
        ({"method": "reconstruction", "derived": True}, "derived images (method reconstruction)"),
        ({"method": "unknown"}, "of unknown origin"),
    ],
)
def test_only_synthetic_sets_are_updated(about: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        add(replace(OLD, about=about), NEW, load_config("tiny", size=32), out=tmp_path)
    assert str(caught.value) == f"the images of the set are {what}: --add updates sets of synthetic images alone"


def test_lost_protection_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = replace(OLD, about={"method": "dpd", "guarantee": "ε = 8", "screened": True})
    with pytest.raises(ConfigError):  # for its size, after the warnings
        add(private, NEW, load_config("tiny", size=64), out=tmp_path)
    assert caplog.messages == [
        "the set's differential-privacy guarantee does not cover new images: the updated set has none",
        "the new images are not screened: the card of the updated set does not say that it is",
    ]


def test_no_guarantee_survives_a_choice_that_looks_at_the_new_scenes(tmp_path: Path) -> None:
    private = load_config(privacy="dp", epsilon=8.0, delta=1e-5)
    with pytest.raises(ConfigError) as caught:
        add(OLD, NEW, private, out=tmp_path / "run")
    assert str(caught.value) == (
        "a set cannot be updated under --privacy dp: the choice among old and new images looks at the new scenes, "
        "which no guarantee covers; make a set of the new scenes alone"
    )
    assert not (tmp_path / "run").exists()


def test_classes_are_numbered_anew() -> None:
    scenes = _scenes(_plain(1, 2, 3), [0, 1, 2], ("a", "b", "c"))
    found = scenes.of_classes(("0", "b", "c"))
    assert (found.labels.tolist(), found.classes) == ([1, 2], ("0", "b", "c"))
    assert torch.equal(found.pixels(size=32), scenes.pixels(size=32)[1:])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ipc": 3}, "--ipc 3 needs as many: add scenes of it, or give --ipc 2"),
        ({"ipc": 2, "privacy": "screen"}, "screening needs 3: add scenes of it"),
    ],
)
def test_a_class_that_is_too_small_for_the_update_is_named(asked: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        add(OLD, NEW, load_config("tiny", size=32, **asked), out=tmp_path)
    assert str(caught.value) == f"class 'Beach' has 2 images in the set and no new scenes: {told}"


@pytest.mark.parametrize(
    ("has", "why"), [(True, "class 'Quarry' is new"), (False, "class 'Quarry' is new"), (False, "2 images of the set")]
)
def test_soft_labels_that_would_be_left_out_are_refused(has: bool, why: str, tmp_path: Path) -> None:
    record = {"soft_label": [1.0, 0.0]}
    old = replace(OLD, records=(record, record if has else {}, record, record if has else {}))
    new = NEW if "new" in why else _scenes(_plain(100, 110), [1, 1], OLD.classes)
    with pytest.raises(ConfigError) as caught:
        add(old, new, load_config("tiny", size=32, ipc=2, soft_labels=True), out=tmp_path / "run")
    assert str(caught.value).startswith("soft labels cannot be had for all images of the updated set: " + why)
    assert not (tmp_path / "run").exists()


def test_a_finished_update_keeps_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "distill", lambda *_, **__: replace(_made(), about={"method": "dpd"}))
    config = load_config("tiny", size=32, ipc=2)
    add(OLD, NEW, config, out=tmp_path)
    card = tmp_path / "updated" / "README.md"
    tell_of_audit(tmp_path / "updated", "Audited.")
    told = card.read_text()
    add(OLD, NEW, config, out=tmp_path)
    assert card.read_text() == told
    assert "Audited." in told
    # A damaged set is written again, and so is one that states something else.
    next((tmp_path / "updated" / "Beach").iterdir()).unlink()
    add(OLD, NEW, config, out=tmp_path)
    assert len(DistilledSet.load(tmp_path / "updated")) == 6
    tell_of_audit(tmp_path / "updated", "Audited.")
    monkeypatch.setattr(module, "distill", lambda *_, **__: replace(_made(), about={"method": "dpd", "x": 1}))
    add(OLD, NEW, config, out=tmp_path)
    assert "Audited." not in card.read_text()
