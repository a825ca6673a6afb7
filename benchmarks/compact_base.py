"""Train the base that comes with the package on open data alone, and put it into src/geodistill/bases/compact.

    python benchmarks/compact_base.py --data ../shared/data --out runs/compact

`--data` is a folder with the archives `ucmerced`, `eurosat` and `open_aerial`. No scene of a `test` part is read, and
no tile of `dubai`, whose terms are known second-hand only. The same command resumes where it stopped and ends with the
same weights. `--config FILE` replaces the settings, as for a GPU.
"""

import argparse
import copy
import shutil
from pathlib import Path

from geodistill.commands.pretrain import pretrain
from geodistill.config import load_config
from geodistill.scenes import open_scenes, open_unlabelled
from geodistill.scenes.scenes import Scenes
from geodistill.stages.base import Source

PRESET = Path(__file__).parents[1] / "src" / "geodistill" / "presets" / "pretrain.toml"
SHIPPED = Path(__file__).parents[1] / "src" / "geodistill" / "bases" / "compact"
# Weight of each archive. Drone images are finer than scenes of other archives and overlap among themselves.
LABELLED = {
    "ucmerced": (3.0, "UC Merced Land Use", "public domain (USGS)"),
    "eurosat": (2.0, "EuroSAT RGB", "MIT; contains modified Copernicus Sentinel data"),
}
# UC Merced's folders run words together: as its own class names they would be words that no other archive has.
SPELLED = {
    "baseballdiamond": "baseball diamond",
    "denseresidential": "dense residential",
    "golfcourse": "golf course",
    "mediumresidential": "medium residential",
    "mobilehomepark": "mobile home park",
    "parkinglot": "parking lot",
    "sparseresidential": "sparse residential",
    "storagetanks": "storage tanks",
    "tenniscourt": "tennis court",
}
LICENCE = (
    "open data alone, training parts of the archives above; no image of AID is among them. The weights are under "
    "Apache-2.0, as the code is, and may be used for any purpose. Three of the sources are under CC BY and ask for "
    "credit: OpenAerialMap contributors and HOT fAIr; Ventura et al. (urban-tree-detection-data); A. Zaborowski."
)
TILES = {
    "NAIP": (
        1.8,
        ("naip_california_urban", "naip_powerplants", "naip_prairie"),
        "public domain (USDA NAIP); eight Californian cities as tiled in urban-tree-detection-data, Ventura et al., "
        "CC BY 4.0",
    ),
    "OpenAerialMap": (0.8, ("openaerialmap",), "CC BY 4.0, OpenAerialMap contributors, HOT fAIr"),
    "drone images": (
        0.5,
        ("drone_chia", "drone_caliterra", "drone_garfield", "drone_boruszyn"),
        "public domain; CC0 1.0, OpenDroneMap; CC BY 3.0, A. Zaborowski",
    ),
}


def main() -> None:
    """Train, or go on, and copy the finished base into the package."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--config", type=Path, default=PRESET)
    options.add_argument("--set", nargs="*", default=[], help="settings, such as compact.steps=20000")
    args = options.parse_args()
    config = load_config(args.config, args.set)
    base = pretrain(_sources(args.data), config, out=args.out, data_note=LICENCE, footprint=True)
    for path in base.iterdir():
        if path.name.startswith(".") or path.name == "losses.json":
            continue
        target = SHIPPED / path.name
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy(path, target)


def _sources(data: Path) -> list[Source]:
    labelled = [
        Source(_spelled(open_scenes(data / folder).train), weight, name=name, terms=terms)
        for folder, (weight, name, terms) in LABELLED.items()
    ]
    tiles = [
        Source(
            open_unlabelled(*(data / "open_aerial" / folder for folder in folders)),
            weight,
            labelled=False,
            name=name,
            terms=terms,
        )
        for name, (weight, folders, terms) in TILES.items()
    ]
    return labelled + tiles


def _spelled(scenes: Scenes) -> Scenes:
    spelled = copy.copy(scenes)
    spelled.classes = tuple(SPELLED.get(name, name) for name in scenes.classes)
    return spelled


if __name__ == "__main__":
    main()
