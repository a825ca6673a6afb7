"""Named bases, and the facts about a base in its base.json.

The base 'compact' is part of geodistill's own package. Any other installed package can register a base as an entry
point of the group `geodistill.bases`: the entry point's name is the base's name, and its object, a Path or a str, is
the base's folder.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from geodistill.errors import PriorError, did_you_mean

log = logging.getLogger("geodistill")

# Name of the base that comes with the package, and of a base built from the scenes alone.
SHIPPED, SCRATCH = "compact", "scratch"
GROUP = "geodistill.bases"
# This file lies beside the pipeline's own files and does not count in a base's fingerprint.
FACTS = "base.json"
_OWN_PACKAGE = "geodistill"
_OTHER_SIZE = f"use --size {{sizes}}, --base {SCRATCH}, or a base made by `geodistill pretrain --size {{size}}`"


@dataclass(frozen=True)
class BaseFacts:
    """The content of base.json.

    sizes: side lengths in pixels of the images that the base draws. terms: of use, "" if there are none. archives:
    names of the data sets that it was trained on. classes: names of the classes of labelled ones.
    """

    name: str
    sizes: tuple[int, ...]
    terms: str = ""
    archives: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Claim:
    """A package that provides a base under some name; `load` returns the folder."""

    package: str
    load: Callable[[], object]


def base_names() -> list[str]:
    """Return the names that `--base` accepts; no package is imported."""
    registered = sorted({point.name for point in metadata.entry_points(group=GROUP)} - {SHIPPED, SCRATCH})
    return [SHIPPED, SCRATCH, *registered]


def folder_of(name: str) -> Path | None:
    """Return the folder of the installed base `name`, or None if no package provides it.

    Raises:
        PriorError: two packages provide that name, the package cannot be imported, or its folder is incomplete.
    """
    claims = _claims(name)
    if not claims:
        return None
    if len(claims) > 1:
        packages = " and ".join(repr(claim.package) for claim in claims)
        raise PriorError(f"the packages {packages} each register a base {name!r}: uninstall all but one of them")
    (claim,) = claims
    folder = _loaded(name, claim)
    missing = missing_part(folder)
    if missing:
        raise PriorError(
            f"the base {name!r} of package {claim.package!r} is incomplete, {missing}: install the package again, "
            "or give another --base"
        )
    return folder


def local_folder(base: str) -> Path | None:
    """Return the folder of the setting `base`; None for a base built in the run, and for a package that is broken.

    A name that no package has is taken for a folder, which need not exist. For checks of what lies beside the weights:
    the base need not be able to draw.
    """
    if base == SCRATCH:
        return None
    try:
        return Path(folder_of(base) or base)
    except PriorError:
        return None


def _claims(name: str) -> list[_Claim]:
    own = [_Claim(_OWN_PACKAGE, lambda: str(files("geodistill") / "bases" / SHIPPED))] if name == SHIPPED else []
    return own + [_Claim(_package_of(point), point.load) for point in metadata.entry_points(group=GROUP, name=name)]


def _package_of(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _loaded(name: str, claim: _Claim) -> Path:
    try:
        folder = claim.load()
    except (Exception, SystemExit) as error:  # importing another package's code may raise anything
        raise PriorError(
            f"the base {name!r} cannot be loaded from package {claim.package!r} ({type(error).__name__}: {error}): "
            "install the package again, or uninstall it and give another --base"
        ) from error
    if not isinstance(folder, str | Path):
        raise PriorError(
            f"the base {name!r} of package {claim.package!r} is of type {type(folder).__name__}, not a folder: "
            "its entry point has to name a Path or a str"
        )
    return Path(folder)


def missing_part(folder: Path) -> str:
    """Return what the base in `folder` lacks, or "" if its pipeline index and all its parts are present."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if not (folder / "model_index.json").is_file():
        return f"there is no model_index.json in {folder}"
    # A pipeline without this folder is of another kind; `base.check_family` gives a better message.
    if not (folder / "unet").is_dir():
        return ""
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            return f"there are no weights in {folder / part}"
    lacking = [part for part in ("tokenizer", "scheduler") if not (folder / part).is_dir()]
    return f"there is no folder {folder / lacking[0]}" if lacking else ""


def unknown_base(base: str) -> PriorError:
    """Return the error for a `base` that is neither a known name, nor a folder, nor shaped like a hub name."""
    names = base_names()
    question = did_you_mean(base.lower(), [name for name in names if name != base], most=3)
    hint = f"{question}Give" if question else "give"
    known = ", ".join(map(repr, names))
    return PriorError(
        f"no such base {base!r}: {hint} {known}, a pipeline folder, or a hub name such as owner/name; a base in a "
        "package has a name once the package is installed"
    )


def read_facts(folder: Path | str) -> BaseFacts | None:
    """Return the content of the base.json in `folder`, or None if there is none.

    Raises:
        PriorError: base.json does not have the expected form.
    """
    path = Path(folder) / FACTS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sizes, archives, classes = values["sizes"], values.get("archives", []), values.get("classes", [])
        if not sizes or not all(isinstance(one, list) for one in (sizes, archives, classes)):
            raise TypeError('"sizes", "archives" and "classes" are lists, and one size is needed')
        name, terms = str(values["name"]), str(values.get("terms") or "")
        return BaseFacts(name, tuple(map(int, sizes)), terms, tuple(map(str, archives)), tuple(map(str, classes)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            'it needs a "name" and "sizes", and may have "terms", "archives" and "classes"'
        ) from error


def facts_text(facts: BaseFacts) -> str:
    """Return the content of base.json for a base with `facts`."""
    values = {"name": facts.name, "sizes": facts.sizes, "terms": facts.terms, "archives": facts.archives}
    values |= {"classes": facts.classes} if facts.classes else {}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def check_drawn(base: str, folder: Path | str, size: int, remedy: str = _OTHER_SIZE) -> None:
    """Raise PriorError if the base.json in `folder` does not list `size`; `base` is the name for the message.

    `remedy` is the advice in the message; "{sizes}" and "{size}" in it stand for the base's sizes and for `size`.
    """
    facts = read_facts(folder)
    if facts is None or size in facts.sizes:
        return
    sizes = " or ".join(map(str, facts.sizes))
    told = remedy.format(sizes=sizes, size=size)
    raise PriorError(f"the base {base!r} draws images of {sizes} px, not {size}: {told}")


def tell_terms(folder: Path | str) -> None:
    """Log the terms of the base in `folder` as a warning, if it has any."""
    facts = read_facts(folder)
    if facts is not None and facts.terms:
        log.warning("base %r: %s", facts.name, facts.terms)
