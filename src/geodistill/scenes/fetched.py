"""Archives that `geodistill fetch` has downloaded, by name."""

import json
import os
from pathlib import Path

from geodistill.errors import SceneError


def data_home() -> Path:
    """Return geodistill's folder in the user's folder for application data."""
    home = os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA") or str(Path.home() / ".local" / "share")
    return Path(home) / "geodistill"


def _list() -> Path:
    """Return the file with the folders of the fetched archives."""
    return data_home() / "archives.json"


def fetched() -> dict[str, Path]:
    """Return the folders of the fetched archives, by name."""
    try:
        found = json.loads(_list().read_text(encoding="utf-8"))
        return {str(name): Path(folder) for name, folder in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SceneError(f"{_list()} cannot be read ({error}): delete it, and fetch the archives again") from None


def remember(name: str, folder: Path) -> None:
    """Make `name` stand for `folder` wherever a data folder is expected."""
    path = _list()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {one: str(where) for one, where in fetched().items()} | {name: str(folder.absolute())}
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def folder_named(data: Path | str) -> Path:
    """Return `data` as a path; if nothing is there, the folder of the fetched archive of this name, if there is one."""
    path = Path(data)
    return path if path.exists() else fetched().get(str(data), path)
