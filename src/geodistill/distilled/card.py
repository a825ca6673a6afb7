"""The data card (README.md) of a set, and what later commands state in it.

huggingface_hub's DatasetCard covers the YAML header alone, so the card is a template.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from geodistill.distilled.about import follows_scenes, safer, title
from geodistill.distilled.folder import MANIFEST
from geodistill.provenance import Kind, fingerprint
from geodistill.run import write_atomic
from geodistill.scenes.reading import Reading


class _Described(Protocol):
    """A distilled set, as far as the card describes it."""

    labels: Tensor
    classes: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    about: dict[str, Any]

    def __len__(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def suffix(self) -> str: ...
    @property
    def bands(self) -> Reading: ...
    @property
    def replayable(self) -> bool: ...
    def content_hash(self) -> str: ...


_CARD = """\
---
pretty_name: {title}
license: other
license_name: as-the-source-data
task_categories:
- image-classification
tags:
- dataset-distillation
- remote-sensing
- {kind}
size_categories:
- {bucket}
configs:
- config_name: {name}
  data_files:
  - split: train
    path: "*/*{suffix}"
---

# {title}

{warning}{count} {kind} overhead images of {size} x {size} pixels, {classes} classes, made by geodistill with the method
`{method}`. They stand for a larger set of real images when a classifier is trained; {nature}.

{loading}
A label is the place of a class in the list below, counted from 0. `class_map.txt` has the classes in this order, for
readers that sort numbers otherwise (timm: `--class-map class_map.txt`).
`manifest.json` has {recorded}; `croissant.json` describes the folder in Croissant 1.0.

## Classes

{listing}

## Privacy

{privacy}

{base}## Limits

The images are for training classifiers, not for interpreting the ground. Biases of the source data carry over. The
licence of the source data may also cover this set: check it before sharing.
"""

_LOADING = """\
Load them with `datasets.load_dataset(FOLDER)`, `datasets.load_dataset("imagefolder", data_dir=FOLDER)` or
`torchvision.datasets.ImageFolder(FOLDER)`."""
_LOADING_BANDS = """\
They are GeoTIFFs without a georeference: {count} bands of {dtype}, in the units of the source data. Read them with
`rasterio.open(FILE).read()`, which gives [bands, height, width]; Pillow cannot, so `datasets` and torchvision's default
loader cannot either. `preview.png` shows them in colour.{ranges}
Bands: {names}.
"""
_REPLAYABLE = (
    "**Do not share this set.** It was made reproducibly: its images follow from a seed in `manifest.json`. Anyone who "
    "has the base can repeat the sampling, and test for any scene whether an image was sampled from it. Removing the "
    "seed does not help: it can be guessed. Without `--reproducible`, `geodistill distill` draws the images from a "
    "secret."
)
_NO_AUDIT = "What these images reveal of the real ones has not been audited: `geodistill audit` does that."
_NO_START = "No image followed a training image."
_SCREENED = (
    "Screened: candidates were rejected if, in structure (SSIM), they were nearer to a training image of their class "
    "than 99 % of held-out training images are to the others, and so were copies. The audit says whether the set "
    "reveals which images were training images."
)
_NOT_ANONYMOUS = (
    "Not anonymous: the images follow training images, or means of them, and may show their layout. For sensitive "
    "scenes, {safer}."
)
_PRIVACY = re.compile(r"(?<=\n## Privacy\n\n).*?(?=\n\n## )", re.DOTALL)
# Only sets of runs that tested themselves have this section.
_SELF_TEST = re.compile(r"## Self-test\n\n.*?\n\n(?=## Privacy\n)|(?=## Privacy\n)", re.DOTALL)
# Only sets whose owner named the archive have this section.
_SOURCE = re.compile(r"## Source\n\n.*?\n\n(?=## Classes\n)|(?=## Classes\n)", re.DOTALL)
_NOT_STATED = "a licence that is not stated"
_NATURE: dict[Kind, str] = {
    "real": "each of them is one of those",
    "derived": "each of them is one of those, changed by a computation",
    "synthetic": "none of them is a photograph",
}


def data_card(distilled: _Described) -> str:
    """Return the card of a set that was not tested or audited yet, as Markdown with a YAML header."""
    buckets = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    counts = torch.bincount(distilled.labels, minlength=len(distilled.classes)).tolist()
    return _CARD.format(
        title=title(len(distilled.classes)),
        # `datasets` keeps what it has read by this name: two sets in folders of the same name must not share it.
        name=f"set-{fingerprint(distilled.classes, distilled.content_hash())[:16]}",
        bucket=next((name for limit, name in buckets if len(distilled) < limit), "100K<n<1M"),
        count=len(distilled),
        size=distilled.size,
        classes=len(distilled.classes),
        method=distilled.about.get("method", "unknown"),
        kind=distilled.kind,
        suffix=distilled.suffix,
        loading=_loading(distilled),
        recorded=_recorded(distilled.records),
        warning=f"{_REPLAYABLE}\n\n" if distilled.replayable else "",
        nature=_NATURE[distilled.kind],
        privacy=_privacy(distilled.about, _NO_AUDIT),
        base=_base(distilled.about.get("base")),
        listing="\n".join(
            f"- {_markdown(name)}: {count}" for name, count in zip(distilled.classes, counts, strict=True)
        ),
    )


def tell_of_audit(folder: Path, summary: str) -> None:
    """Insert `summary`, the result of an audit, into the data card of the set in `folder`, if it is geodistill's."""
    text = _card_in(folder)
    if _PRIVACY.search(text):
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["about"]
        write_atomic(folder / "README.md", _PRIVACY.sub(lambda _: _privacy(about, summary), text, count=1))


def tell_of_self_test(folder: Path, summary: str) -> None:
    """Insert `summary`, the result of a self-test, into the data card of the set in `folder`, if it is geodistill's.

    It replaces an earlier result; inserting the same one again changes nothing.
    """
    before = _card_in(folder)
    after = _SELF_TEST.sub(lambda _: f"## Self-test\n\n{summary}\n\n", before, count=1)
    if after != before:
        write_atomic(folder / "README.md", after)


def tell_of_source(folder: Path, name: str, licence: str) -> None:
    """State in the data card of the set in `folder` which archive it was made from, and under which licence that is.

    An empty text leaves what the card has. Stating the same again changes nothing.
    """
    before = _card_in(folder)
    after = before
    if licence:
        line = f"license_name: {json.dumps(licence, ensure_ascii=False)}"
        after = re.sub(r"^license_name: .*$", lambda _: line, after, count=1, flags=re.MULTILINE)
    told = [f"Made from {_markdown(name)}."] if name else []
    told += [f"Licence of the source: {_markdown(licence)}."] if licence else []
    if told:
        after = _SOURCE.sub(lambda _: f"## Source\n\n{' '.join(told)}\n\n", after, count=1)
    if after != before:
        write_atomic(folder / "README.md", after)


def tell_of_sources(folder: Path, old: Path, name: str, licence: str) -> None:
    """State in the data card of the updated set in `folder` the source of set `old`, and that of the new scenes.

    name, licence: of the archive that the new scenes are from; "" if nobody said. The set has both licences. Without
    name and licence a card that states a source already is left as it is.
    """
    before, card = _card_in(folder), _card_in(old)
    section = _SOURCE.search(card)
    known = section[0].removeprefix("## Source").strip() if section else ""
    stated = _SOURCE.search(before)
    if not (name or licence) and (not known or (stated and stated[0])):
        return
    made = f"Updated with scenes of {_markdown(name) if name else 'a source that is not stated'}."
    under = f"Their licence: {_markdown(licence)}." if licence else "Their licence is not stated."
    told = [known or "The source of the earlier images is not stated.", made, under]
    after = _SOURCE.sub(lambda _: f"## Source\n\n{' '.join(told)}\n\n", before, count=1)
    both = dict.fromkeys([*(told_licence(old) or _NOT_STATED).split(" and "), licence or _NOT_STATED])
    line = f"license_name: {json.dumps(' and '.join(both), ensure_ascii=False)}"
    after = re.sub(r"^license_name: .*$", lambda _: line, after, count=1, flags=re.MULTILINE)
    if after != before:
        write_atomic(folder / "README.md", after)


def told_licence(folder: Path) -> str:
    """Return the licence of the source that the data card of the set in `folder` states; "" if it states none."""
    found = re.search(r"^license_name: (.*)$", _card_in(folder), flags=re.MULTILINE)
    # As `tell_of_source` writes it: the card of a set whose licence nobody stated has a word without quotes there.
    return str(json.loads(found[1])) if found and found[1].startswith('"') else ""


def _card_in(folder: Path) -> str:
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if (folder / MANIFEST).is_file() and card.is_file() else ""


def _loading(distilled: _Described) -> str:
    """Return how the image files are read."""
    if distilled.suffix == ".png":
        return _LOADING
    bands = distilled.bands
    names = bands.names or tuple(f"band {k}" for k in range(1, bands.channels + 1))
    each = sorted(zip(bands.bands, names, bands.scale or [None] * bands.channels, strict=True))
    ranged = " Each band has 256 levels within the range given below." if bands.scale else ""
    told = [f"{_markdown(name)} ({ends[0]:g} to {ends[1]:g})" if ends else _markdown(name) for _, name, ends in each]
    return _LOADING_BANDS.format(count=bands.channels, dtype=bands.dtype, ranges=ranged, names=", ".join(told))


def _privacy(about: dict[str, Any], audit: str) -> str:
    """Return the card's text on privacy: the guarantee, what the images started from, the screening, the audit."""
    follows = follows_scenes(about)
    made = [about["guarantee"]] if about.get("guarantee") else []
    made += [_NOT_ANONYMOUS.format(safer=safer(about))] if follows else []
    if about.get("screened"):
        made += [_SCREENED if follows else f"{_SCREENED} {_NO_START}"]
    return "\n\n".join([*made, audit])


def _recorded(records: Sequence[dict[str, Any]]) -> str:
    """Return what the manifest holds."""
    parts = ["the settings", "the versions"]
    parts += ["the scores of each image"] if any(record.get("scores") for record in records) else []
    if any("soft_label" in record for record in records):
        parts.append("the soft label of each image (probabilities of the classes in alphabetical order)")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _base(facts: dict[str, Any] | None) -> str:
    """Return the section on the base that drew the images, or "" if there are no facts about it."""
    if not facts:
        return ""
    archives = f", trained on {', '.join(facts['archives'])}" if facts["archives"] else ""
    terms = f" Its terms: {facts['terms']}." if facts["terms"] else ""
    return f"## Base\n\nDrawn by the base `{facts['name']}`{archives}.{terms}\n\n"


def _markdown(text: str) -> str:
    """Return `text` with everything escaped that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~<>&$-])", r"\\\1", text)
