"""The secret of a run, from which its images are drawn, and the record that holds its SHA-256."""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from geodistill.errors import RunError
from geodistill.run.files import write_atomic
from geodistill.seeding import SECRET_BYTES

log = logging.getLogger("geodistill")

SECRET = "secret"
_WITHOUT_SECRET = (
    "the images of this run were drawn from it, and cannot be drawn again. Put it back, or choose another --out"
)


def read_about(path: Path) -> dict[str, Any]:
    """Return the record of a run, run.json at `path`; raise RunError if it is none."""
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        about["settings"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not the record of a geodistill run: choose another --out") from None
    return about


def read_secret(folder: Path) -> bytes:
    """Return the secret of the run in `folder`; raise RunError if it is missing, damaged or another run's."""
    path = folder / SECRET
    known = read_about(folder / "run.json").get("secret_sha256")
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        what = "is gone" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise RunError(f"{path} {what}: {_WITHOUT_SECRET}") from None
    if len(secret) != SECRET_BYTES or hashlib.sha256(secret).hexdigest() != known:
        raise RunError(f"{path} is not the secret that this run was begun with: {_WITHOUT_SECRET}")
    if path.stat().st_mode & 0o077:
        log.warning("%s can be read by others, who can tell which scenes the images began as: chmod 600 it", path)
    return secret


def make_secret(folder: Path) -> None:
    """Draw the secret of the run in `folder`, unless it has one or had one; run.json then holds its SHA-256."""
    path, record = folder / SECRET, folder / "run.json"
    about = read_about(record)
    if "secret_sha256" in about:
        return
    if not path.exists():
        aside = path.with_name(f".{SECRET}.tmp")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(os.urandom(SECRET_BYTES).hex())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    with contextlib.suppress(ValueError):
        # `read_secret` reports a damaged one.
        about["secret_sha256"] = hashlib.sha256(bytes.fromhex(path.read_text(encoding="ascii"))).hexdigest()
    write_atomic(record, json.dumps(about, indent=2, sort_keys=True))
