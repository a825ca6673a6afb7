"""Bases by name: tests install throwaway packages, in place of those that are installed here."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from geodistill.errors import PriorError
from geodistill.prior.base import fingerprint_of_base, load_prior, source_of
from geodistill.prior.catalogue import BaseFacts, base_names, facts_text, read_facts, tell_terms

ROOT = Path(__file__).parents[2]
AID = ROOT / "bases" / "aid" / "src" / "geodistill_base_aid" / "base"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what installs a package that registers base `name`, its module `code`; no other packages register any."""
    site = tmp_path / "site"
    site.mkdir()

    def entry_points(**wanted: Any) -> metadata.EntryPoints:
        installed = metadata.distributions(path=[str(site)])
        return metadata.EntryPoints(chain.from_iterable(one.entry_points for one in installed)).select(**wanted)

    def add(package: str, name: str, code: str) -> None:
        module = package.replace("-", "_")
        about = site / f"{module}-0.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        (about / "entry_points.txt").write_text(f"[geodistill.bases]\n{name} = {module}:FOLDER\n")
        (site / f"{module}.py").write_text(code)

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr("geodistill.prior.catalogue.metadata.entry_points", entry_points)
    return add


def _refused(base: str, size: int = 64) -> str:
    with pytest.raises(PriorError) as caught:
        source_of(base, size)
    return str(caught.value)


@pytest.mark.parametrize("code", ["FOLDER = {!r}", "from pathlib import Path\nFOLDER = Path({!r})"])
def test_the_name_of_an_installed_base_is_its_folder(code: str, install: Install, sd_folder: Path) -> None:
    install("base-quay", "quay", code.format(str(sd_folder)))
    assert source_of("quay", 64) == str(sd_folder)
    assert base_names() == ["compact", "scratch", "quay"]


@pytest.mark.usefixtures("install")
def test_other_names_and_folders_stand_for_themselves(sd_folder: Path) -> None:
    assert source_of("compact", 64) == str(ROOT / "src" / "geodistill" / "bases" / "compact")
    assert source_of("scratch", 64) == "scratch"
    assert source_of(str(sd_folder), 4711) == str(sd_folder)
    assert source_of("owner/name", 512) == "owner/name"
    assert base_names() == ["compact", "scratch"]


def test_unknown_names(install: Install) -> None:
    install("base-quay", "quay", "this is not imported to list its name")
    known = (
        "'compact', 'scratch', 'quay', a pipeline folder, or a hub name such as owner/name; a base in a package has a "
        "name once the package is installed"
    )
    assert _refused("quai") == f"no such base 'quai': did you mean 'quay'? Give {known}"
    assert _refused("QUAY") == f"no such base 'QUAY': did you mean 'quay'? Give {known}"
    assert _refused("compat") == f"no such base 'compat': did you mean 'compact'? Give {known}"
    assert _refused("./nowhere") == f"no such base './nowhere': give {known}"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('half an installation')", "RuntimeError: half an installation"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
    ],
)
def test_a_package_that_cannot_be_imported(code: str, why: str, install: Install) -> None:
    install("base-dock", "dock", code)
    assert _refused("dock") == (
        f"the base 'dock' cannot be loaded from package 'base-dock' ({why}): install the package again, or uninstall "
        "it and give another --base"
    )


def test_an_entry_point_that_is_no_folder(install: Install) -> None:
    install("base-pier", "pier", "FOLDER = 5")
    assert _refused("pier") == (
        "the base 'pier' of package 'base-pier' is of type int, not a folder: its entry point has to name a Path or a "
        "str"
    )


def test_a_package_without_weights(install: Install, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    install("base-mole", "mole", f"FOLDER = {str(folder)!r}")
    told = "the base 'mole' of package 'base-mole' is incomplete, {}: install the package again, or give another --base"
    assert _refused("mole") == told.format(f"there is no folder {folder}")
    (folder / "unet").mkdir(parents=True)
    assert _refused("mole") == told.format(f"there is no model_index.json in {folder}")
    (folder / "model_index.json").write_text("{}")
    assert _refused("mole") == told.format(f"there are no weights in {folder / 'unet'}")
    for part in ("unet", "vae", "text_encoder"):
        assert _refused("mole") == told.format(f"there are no weights in {folder / part}")
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "model.safetensors").touch()
    for part in ("tokenizer", "scheduler"):
        assert _refused("mole") == told.format(f"there is no folder {folder / part}")
        (folder / part).mkdir()
    assert source_of("mole", 64) == str(folder)


def test_two_packages_with_one_name(install: Install, sd_folder: Path) -> None:
    for package, name in (("base-one", "jetty"), ("base-two", "jetty"), ("base-three", "compact")):
        install(package, name, f"FOLDER = {str(sd_folder)!r}")
    told = _refused("jetty")
    assert told in {
        f"the packages {one} and {other} each register a base 'jetty': uninstall all but one of them"
        for one, other in (("'base-one'", "'base-two'"), ("'base-two'", "'base-one'"))
    }
    assert _refused("compact") == (
        "the packages 'geodistill' and 'base-three' each register a base 'compact': uninstall all but one of them"
    )


def test_a_size_that_the_base_does_not_draw(install: Install, sd_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "base"))
    install("base-quoin", "quoin", f"FOLDER = {str(folder)!r}")
    assert source_of("quoin", 48) == str(folder)
    (folder / "base.json").write_text(facts_text(BaseFacts("quoin", (64, 128))))
    assert source_of("quoin", 128) == str(folder)
    assert _refused("quoin", 96) == (
        "the base 'quoin' draws images of 64 or 128 px, not 96: use --size 64 or 128, --base scratch, or a base made "
        "by `geodistill pretrain --size 96`"
    )
    assert _refused(str(folder), 32).startswith(f"the base {str(folder)!r} draws images of 64 or 128 px, not 32: use")


_LISTS = 'TypeError: "sizes", "archives" and "classes" are lists, and one size is needed'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"name": "quay"}', "KeyError: 'sizes'"),
        ('{"name": "quay", "sizes": 64}', _LISTS),
        ('{"name": "quay", "sizes": []}', _LISTS),
        ('{"name": "quay", "sizes": [64], "archives": "AID"}', _LISTS),
        ('{"name": "quay", "sizes": [64], "classes": "beach"}', _LISTS),
        ("[]", "TypeError: list indices must be integers or slices, not str"),
    ],
)
def test_a_base_json_of_another_form(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(PriorError) as caught:
        read_facts(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path / "base.json"} cannot be read ({why}): it needs a "name" and "sizes", and may have "terms", '
        '"archives" and "classes"'
    )


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None
    (tmp_path / "base.json").write_text('{"name": "quay", "sizes": [64], "terms": null}')
    assert read_facts(tmp_path) == BaseFacts("quay", (64,), "", ())
    facts = BaseFacts("quay", (64, 128), "for “academic” use", ("one", "other"), ("beach", "storage tanks"))
    (tmp_path / "base.json").write_text(facts_text(facts))
    assert read_facts(tmp_path) == facts
    (tmp_path / "base.json").write_text('{"name": "quay", "sizes": [32]}')
    assert read_facts(tmp_path) == BaseFacts("quay", (32,))


def test_terms_are_told_where_there_are_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_terms(tmp_path)
    tell_terms("owner/name")
    (tmp_path / "base.json").write_text(facts_text(BaseFacts("quay", (64,))))
    tell_terms(tmp_path)
    assert caplog.messages == []
    (tmp_path / "base.json").write_text(facts_text(BaseFacts("quay", (64,), "not for sale")))
    tell_terms(tmp_path)
    assert [(one.levelname, one.message) for one in caplog.records] == [("WARNING", "base 'quay': not for sale")]


def test_base_json_is_no_part_of_what_tells_bases_apart(sd_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "base"))
    (folder / "base.json").write_text(facts_text(BaseFacts("quay", (64,))))
    assert fingerprint_of_base(str(folder)) == fingerprint_of_base(str(sd_folder))


def test_the_aid_package_has_a_whole_base_and_its_terms() -> None:
    code: dict[str, Any] = {"__file__": str(AID.parent / "__init__.py")}
    exec((AID.parent / "__init__.py").read_text(), code)
    assert code["FOLDER"] == AID
    facts = read_facts(AID)
    assert facts is not None
    assert replace(facts, classes=()) == BaseFacts(
        "aid", (64,), "for academic use only, as the authors of AID ask: its images are from Google Earth", ("AID",)
    )
    assert len(facts.classes) == 30
    assert {"Airport", "BareLand", "Viaduct"} <= set(facts.classes)
    assert load_prior(str(AID)).downscale == 8
    assert "academic purposes" in (AID / "README.md").read_text()
    project = (ROOT / "bases" / "aid" / "pyproject.toml").read_text()
    assert '[project.entry-points."geodistill.bases"]\naid = "geodistill_base_aid:FOLDER"\n' in project
    assert json.loads((AID / "trained_on.jsonl").read_text())["archive"] == "AID"
