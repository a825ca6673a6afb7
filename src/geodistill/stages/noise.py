"""The source of the noise of images: a secret of the run, or its public seed if the run is reproducible."""

from typing import TypeVar

from geodistill.config import Config
from geodistill.provenance import Stage
from geodistill.seeding import derive_secret, derive_seed
from geodistill.stages.context import Context


def drawn_in_secret(config: Config, secret: bytes) -> Config:
    """Return `config` with a seed derived from the run's secret.

    This seed determines everything drawn after the adapter: which scenes candidates start from, their order, the
    refinement. An attacker who knows the base and tries all public seeds cannot repeat these draws.
    """
    return config.model_copy(update={"seed": derive_seed(int.from_bytes(secret), "draws")})


AnyContext = TypeVar("AnyContext", bound=Context)


def in_secret(context: AnyContext) -> AnyContext:
    """Return `context` with a seed derived from the run's secret; unchanged if the run is reproducible."""
    if context.config.reproducible:
        return context
    return context.having(drawn_in_secret(context.config, context.run.secret()))


def seed_of_noise(context: Context, stage: Stage, index: int = 0) -> int | bytes:
    """Return the seed of the noise that images are drawn from in `stage`: a secret unless the run is reproducible."""
    secret = None if context.config.reproducible else context.run.secret()
    return noise_seed(stage.name, index, context.config.seed, secret)


def noise_seed(what: str, index: int, seed: int, secret: bytes | None) -> int | bytes:
    """Return the seed of noise `index` of stage `what`, derived from the run's `secret`, or from `seed` without one."""
    if secret is None:
        return derive_seed(seed, what, index)
    return derive_secret(secret, f"{what} {index}")
