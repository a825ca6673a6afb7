import hashlib
import json
import re

import pytest
import torch
from made import make_set

from geodistill.distilled import (
    DistilledSet,
    tell_of_audit,
    tell_of_self_test,
    tell_of_source,
    tell_of_sources,
    told_licence,
)


def test_card_tells_of_the_audit_or_that_there_was_none(tmp_path):
    folder = make_set().save(tmp_path / "set")
    assert "What these images reveal" in (folder / "README.md").read_text()
    for told in ("3 of 9 are copies.", "None is \\1 a copy."):
        tell_of_audit(folder, told)
        card = (folder / "README.md").read_text()
        assert f"## Privacy\n\n{told}\n\n## Limits" in card
        assert "What these images reveal" not in card
    (tmp_path / "plain" / "a").mkdir(parents=True)
    tell_of_audit(tmp_path / "plain", "told")
    assert not (tmp_path / "plain" / "README.md").exists()


def test_card_tells_what_images_started_from(tmp_path):
    follows, none = ({"config": {"sampling": {"follow": how}}} for how in ("start", "none"))
    for about, told in (
        ({"method": "dpd", **follows}, "Not anonymous: the images follow training images, or means of them"),
        ({"method": "dpd", "screened": True, **follows}, "Not anonymous: "),
        ({"method": "dpd", "screened": True, **none}, "Screened: "),
        ({"method": "dpd", "guarantee": "ε = 8", **follows}, "ε = 8\n\nWhat these images reveal"),
        ({"method": "dpd", **none}, "What these images reveal"),
        ({"method": "mgd3", **none}, "Not anonymous: "),
        ({"method": "kmeans", "real_pixels": True, **follows}, "What these images reveal"),
    ):
        own = make_set()
        own.about.clear()
        own.about.update(about)
        card = (own.save(tmp_path / "set") / "README.md").read_text()
        assert f"## Privacy\n\n{told}" in card
        no_start = about.get("screened", False) and about["config"] == none["config"]
        assert ("No image followed a training image." in card) == no_start


def test_card_tells_of_the_base(tmp_path):
    facts = {"name": "quay", "archives": ["ports", "fields"], "terms": "not for sale"}
    for base, told in (
        (facts, "Drawn by the base `quay`, trained on ports, fields. Its terms: not for sale."),
        ({"name": "quay", "archives": [], "terms": ""}, "Drawn by the base `quay`."),
    ):
        own = make_set()
        own.about["base"] = base
        card = (own.save(tmp_path / "set") / "README.md").read_text()
        assert f"\n\n## Base\n\n{told}\n\n## Limits\n" in card
    assert "## Base" not in (make_set().save(tmp_path / "set") / "README.md").read_text()


def test_card_tells_of_the_self_test_beside_the_audit(tmp_path):
    folder = make_set().save(tmp_path / "set")
    card = folder / "README.md"
    assert "Self-test" not in card.read_text()
    for told in ("Worth 3 %.", "Worth \\1 %."):
        tell_of_self_test(folder, told)
        text = card.read_text()
        assert text.count("## Self-test") == 1
        assert f"\n\n## Self-test\n\n{told}\n\n## Privacy\n\nWhat these images reveal" in text
    tell_of_audit(folder, "No copies.")
    tell_of_self_test(folder, told)
    assert card.read_text() == text.replace(text.split("## Privacy\n\n")[1].split("\n")[0], "No copies.")
    when = card.stat().st_mtime_ns
    tell_of_self_test(folder, told)
    assert card.stat().st_mtime_ns == when
    (tmp_path / "plain" / "a").mkdir(parents=True)
    tell_of_self_test(tmp_path / "plain", "told")
    assert not (tmp_path / "plain" / "README.md").exists()


def test_card_and_croissant(tmp_path):
    folder = make_set().save(tmp_path / "set")
    assert (folder / "README.md").read_text().startswith("---\npretty_name: Distilled overhead scenes, 3 classes\n")
    meta = json.loads((folder / "croissant.json").read_text())
    assert meta["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert meta["distribution"][0]["sha256"] == digest


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"method": "dpd"}, "none of them is a photograph"),
        ({"real_pixels": True}, "each of them is one of those."),
        ({"derived": True}, "each of them is one of those, changed by a computation."),
    ],
)
def test_card_says_whether_the_images_are_real(tmp_path, about, told):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    folder = DistilledSet(images, torch.tensor([0, 1]), ("a", "b"), about=about).save(tmp_path / "set")
    card = " ".join((folder / "README.md").read_text().split())
    assert told in card
    assert ("synthetic overhead images" in card) == (about == {"method": "dpd"})


def test_names_that_markdown_would_read_as_markup(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    folder = DistilledSet(images, torch.tensor([0, 1]), ("<b>bold", "[x](a)"))
    card = (folder.save(tmp_path / "set") / "README.md").read_text()
    assert "- \\<b\\>bold: 1\n- \\[x\\]\\(a\\): 1\n" in card


def test_the_card_names_the_source(tmp_path):
    folder = make_set().save(tmp_path / "set")
    bare = (folder / "README.md").read_text()
    tell_of_source(folder, "", "")
    assert (folder / "README.md").read_text() == bare
    for _ in range(2):
        tell_of_source(folder, "AID [v1]", "academic: ask")
        card = (folder / "README.md").read_text()
        assert (
            card.count("## Source\n\nMade from AID \\[v1\\]. Licence of the source: academic: ask.\n\n## Classes") == 1
        )
        assert 'license_name: "academic: ask"\n' in card
    tell_of_source(folder, "EuroSAT", "MIT")
    assert (
        "## Source\n\nMade from EuroSAT. Licence of the source: MIT.\n\n## Classes"
        in (folder / "README.md").read_text()
    )


def test_a_set_has_a_name_and_a_class_map_of_its_own(tmp_path):
    def named(value):
        images = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
        folder = DistilledSet(images, torch.arange(4), ("1", "10", "2", "9")).save(tmp_path / str(value))
        (name,) = re.findall(r"config_name: (set-[0-9a-f]{16})\n", (folder / "README.md").read_text())
        return folder, name

    (folder, first), (_, second), (_, again) = named(0), named(1), named(0)
    assert first == again != second
    # timm's own order would be 1, 2, 9, 10.
    assert (folder / "class_map.txt").read_text() == "1\n10\n2\n9\n"


def test_card_says_what_the_manifest_holds(tmp_path):
    for record, told in (
        ({}, "the settings and the versions;"),
        ({"scores": {"margin": 1.0}}, "the settings, the versions and the scores of each image;"),
        ({"soft_label": [0.5, 0.25, 0.25]}, "the versions and the soft label of each image (probabilities of the"),
    ):
        own = make_set()
        own.records = (record,) * len(own)
        card = (own.save(tmp_path / "set") / "README.md").read_text()
        assert "`manifest.json` has the settings" in card
        assert told in card


def test_the_card_of_an_updated_set_names_both_sources(tmp_path):
    old, folder = make_set().save(tmp_path / "old"), make_set(size=16).save(tmp_path / "new")
    bare = (folder / "README.md").read_text()
    tell_of_sources(folder, old, "", "")
    assert (folder / "README.md").read_text() == bare
    tell_of_source(old, "Foo", "MIT")
    tell_of_sources(folder, old, "", "")
    told = (folder / "README.md").read_text()
    assert (
        "## Source\n\nMade from Foo. Licence of the source: MIT. Updated with scenes of a source that is not stated. "
        "Their licence is not stated.\n\n## Classes" in told
    )
    assert told_licence(folder) == "MIT and a licence that is not stated"
    for _ in range(2):
        tell_of_sources(folder, old, "Bar", "CC-BY-NC-4.0")
        told = (folder / "README.md").read_text()
        assert "Licence of the source: MIT. Updated with scenes of Bar. Their licence: CC\\-BY\\-NC\\-4.0.\n" in told
        assert told_licence(folder) == "MIT and CC-BY-NC-4.0"
    # The same command once more, without the names, leaves them.
    tell_of_sources(folder, old, "", "")
    assert (folder / "README.md").read_text() == told
    other = make_set(size=32).save(tmp_path / "third")
    tell_of_sources(other, folder, "Foo", "MIT")
    assert told_licence(other) == "MIT and CC-BY-NC-4.0"
