import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geodistill.distilled import DistilledSet
from geodistill.privacy.attribution import Attribution
from geodistill.privacy.audit import MEASURES, Audit, ImageAudit, Reading
from geodistill.privacy.membership import attack
from geodistill.privacy.null import Null
from geodistill.report.audit_page import write_audit_page
from geodistill.scenes import Scenes


@pytest.fixture(scope="module")
def audited(pair: Scenes) -> tuple[Audit, DistilledSet]:
    firsts = [int((pair.labels == label).nonzero()[0]) for label in (0, 1)]
    distilled = DistilledSet(pair.pixels(firsts, size=32), torch.tensor([0, 1]), pair.classes)
    images = tuple(
        ImageAudit(
            index, f"image {index}", 1 - index, pair.names[1 - index], dict.fromkeys(MEASURES, 0.4), ratios, copy
        )
        for index, ratios, copy in (
            (1, dict.fromkeys(MEASURES, 0.21), True),
            (0, dict.fromkeys(MEASURES, 0.87), False),
        )
    )
    readings = tuple(Reading(name, (0.1, 0.3), (0.2,) * 3, (0.0,), (0.2, 0.8), (0.9,) * 3) for name in MEASURES)
    random = torch.Generator().manual_seed(0)
    found = attack("nearest, pixels", torch.rand(40, generator=random) + 2, torch.rand(1000, generator=random))
    # Of 199 sets of held-out images two give away 4 % and 3 %, the others 1 %.
    drawn = ((0.04, 0.0), (0.03, 0.0), *((0.01, 0.0),) * 197)
    null = Null((0.01, 0.001), (0.5, 0.2), drawn, 0.005, 2, 20)
    start = Attribution(0.5, 0.1, 0.75, 0.02)
    return Audit(images, 0.5, 0.0, 3, 20, 1.0, readings, None, (found,), start, null), distilled


def page_of(audited: tuple[Audit, DistilledSet], pair: Scenes, folder: Path) -> str:
    write_audit_page(*audited, pair, folder / "audit.html")
    return (folder / "audit.html").read_text()


def cells(page: str, start: str) -> list[str]:
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL) if start in row)
    return [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
    ]


def test_pairs_readings_and_attacks_are_told(audited: tuple[Audit, DistilledSet], pair: Scenes, tmp_path: Path) -> None:
    page = page_of(audited, pair, tmp_path)
    assert audited[0].verdict in page.replace("&#39;", "'")
    assert cells(page, "distilled: image 1") == ["image 1", pair.names[0], "0.21", "0.21", "0.21", "0.21", "copy"]
    assert cells(page, "distilled: image 0")[-1] == "no"
    assert cells(page, "structure: 1 - SSIM")[1:] == ["0.30", "0.20", "0.00", "0.80", "0.90", "50.0"]
    told = cells(page, "nearest, pixels")
    assert told[1:] == ["1.000 (1.000 to 1.000)", "100.00 (100.00 to 100.00)", "100.00 (100.00 to 100.00)"]
    # The second largest of 199 is what one in a hundred exceeds.
    assert "The best attack on this set and on sets of held-out images" in page
    assert cells(page, "0.005")[1:] == ["50.0", "1.0", "3.0", "0.005"]
    assert cells(page, "images most similar to their starting scene")[1] == "75.0"
    assert page.count('<figure class="plot">') == len(MEASURES) + 1


def test_what_the_base_was_trained_on_is_told(
    audited: tuple[Audit, DistilledSet], pair: Scenes, tmp_path: Path
) -> None:
    told = "bout 3 of the 4 training images are among those that the base was trained on"
    assert told not in page_of(audited, pair, tmp_path)
    page = page_of((replace(audited[0], overlap=f"a{told}"), audited[1]), pair, tmp_path)
    assert f'<p class="note">A{told}: figures measured on them are too optimistic.</p>' in page


def test_what_could_not_be_measured_is_said(audited: tuple[Audit, DistilledSet], pair: Scenes, tmp_path: Path) -> None:
    result, distilled = audited
    readings = tuple(replace(one, held_out=(), held_out_ratios=()) for one in result.readings)
    without = replace(
        result, held_out_flagged=None, held_out_count=0, readings=readings, attacks=(), attribution=None, null=None
    )
    page = page_of((without, distilled), pair, tmp_path)
    assert page.count("There are no held-out images: this cannot be measured without them.") == 2
    assert "only runs of the method dpd record this" in page
    assert cells(page, "structure: 1 - SSIM")[1:] == ["0.30", "–", "0.00", "0.80", "–", "–"]
