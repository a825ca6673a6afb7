from pathlib import Path
from typing import Any

import pytest
from making import counting, make_stage

from geodistill.errors import RunError
from geodistill.run import (
    Run,
    read_secret,
)


class TestSecret:
    def test_it_is_drawn_once_and_is_its_owner_s_alone(self, tmp_path: Path) -> None:
        drawn = set()
        for _ in range(2):
            with Run(tmp_path / "run", {}) as run:
                make_stage(run, counting([]), "latents")
                drawn |= {run.secret(), run.secret(), read_secret(run.folder)}
        assert [len(secret) for secret in drawn] == [32]
        assert (tmp_path / "run" / "secret").stat().st_mode & 0o777 == 0o600
        with Run(tmp_path / "other", {}) as run:
            assert run.secret() not in drawn

    def test_a_kill_before_it_is_recorded_keeps_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Run(tmp_path / "run", {}) as run, monkeypatch.context() as patched:
            patched.setattr("geodistill.run.secret.write_atomic", _killed)
            with pytest.raises(KeyboardInterrupt):
                run.secret()
        kept = (tmp_path / "run" / "secret").read_text()
        with Run(tmp_path / "run", {}) as run:
            assert run.secret().hex() == kept

    @pytest.mark.parametrize(
        ("content", "what"),
        [(None, "is gone"), ("xyz", "cannot be read"), ("00" * 32, "is not the secret that this run was begun with")],
    )
    def test_a_run_without_its_secret_says_so(self, tmp_path: Path, content: str | None, what: str) -> None:
        with Run(tmp_path / "run", {}) as run:
            make_stage(run, counting([]), "latents")
            run.secret()
        path = tmp_path / "run" / "secret"
        path.unlink()
        if content is not None:
            path.write_text(content)
        with Run(tmp_path / "run", {}) as run, pytest.raises(RunError) as caught:
            run.secret()
        assert str(caught.value) == (
            f"{path} {what}: the images of this run were drawn from it, and cannot be drawn again. Put it back, or "
            "choose another --out"
        )

    def test_others_who_can_read_it_are_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with Run(tmp_path / "run", {}) as run:
            run.secret()
        assert not caplog.messages
        path = tmp_path / "run" / "secret"
        path.chmod(0o644)
        with Run(tmp_path / "run", {}) as run:
            run.secret()
        assert caplog.messages == [
            f"{path} can be read by others, who can tell which scenes the images began as: chmod 600 it"
        ]


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt
