"""Methods that turn scenes into a distilled set: DPD and its rivals, one file each, all with the same `make`."""

import logging
from dataclasses import replace
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from geodistill.errors import ConfigError, did_you_mean
from geodistill.pipeline import OWN
from geodistill.provenance import Made, Method

if TYPE_CHECKING:
    from geodistill.distilled import DistilledSet
    from geodistill.stages.context import Context

log = logging.getLogger("geodistill")

GROUP = "geodistill.methods"
_ALL = (
    Method("random", "real images drawn at random", "real", f"{__name__}.random"),
    Method("herding", "real images whose mean features follow the class's mean", "real", f"{__name__}.herding"),
    Method("kcenter", "real images that leave none of the class far from them", "real", f"{__name__}.kcenter"),
    Method("kmeans", "the real image nearest each k-means centre of the class", "real", f"{__name__}.kmeans"),
    Method(
        "reconstruction",
        "the k-means images through the prior's autoencoder and back",
        "derived",
        f"{__name__}.reconstruction",
    ),
    Method(
        "template",
        "the prior under class prompts, fine-tuned with the diffusion loss alone",
        "synthetic",
        f"{__name__}.template",
    ),
    Method(
        "d4m",
        "k-means centroids in latent space, noised and denoised by the prior as it is",
        "synthetic",
        f"{__name__}.d4m",
    ),
    Method("minimax", "the prior fine-tuned for representativeness and diversity", "synthetic", f"{__name__}.minimax"),
    Method("mgd3", "the prior as it is, guided towards k-means modes in latent space", "synthetic", f"{__name__}.mgd3"),
    Method("dm", "pixels optimised until their mean features match the class's", "derived", f"{__name__}.dm"),
    Method(
        "dpd",
        "prototypes, descriptions, consistency loss, selection, refinement: this project's recipe",
        "synthetic",
        f"{__name__}.dpd",
    ),
)


def _registered() -> dict[str, Method]:
    """Return the methods that other packages register, by name; unusable ones are left out with a warning.

    An entry point of the group `geodistill.methods` names a `Method`. The method must have the name of the entry point.
    """
    found: dict[str, Method] = {}
    for point in metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.module
        try:
            method, why = point.load(), ""
        except (Exception, SystemExit) as error:  # another package's code, which may raise anything
            method, why = None, f"{type(error).__name__}: {error}"
        if not why and not isinstance(method, Method):
            why = f"it is of type {type(method).__name__}, not a geodistill.provenance.Method"
        elif isinstance(method, Method) and method.name != point.name:
            why = f"it calls itself {method.name!r}"
        elif point.name in {own.name for own in _ALL} | found.keys():
            why = "the name is taken"
        if why:
            log.warning("method %r of package %r is left out: %s", point.name, package, why)
        elif isinstance(method, Method):
            found[point.name] = method
    return found


# Methods by name: this package's own, then those of other packages.
METHODS: dict[str, Method] = {method.name: method for method in _ALL} | _registered()


def check_method(name: str, privacy: str = "none") -> None:
    """Raise ConfigError if `name` is no method (naming the nearest known one) or does not support this `privacy`."""
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise ConfigError(f"unknown method {name!r}: {hint}known: {', '.join(METHODS)}")
    if privacy != "none" and name != OWN:
        raise ConfigError(f"method {name!r} has no privacy {privacy!r}, only {OWN!r} has: leave out one of the two")


def make_distilled(name: str, context: "Context") -> "Made[DistilledSet]":
    """Return the set that method `name` makes from the context's scenes, in the context's run.

    Raises:
        ConfigError: `name` is no method, or does not support the config's privacy.
        GeodistillError: the method finds something wrong, for example a class with fewer than `config.ipc` images.
    """
    check_method(name, context.config.privacy)
    from geodistill.stages.checks import check_counts

    check_counts(context.scenes, context.config.ipc, context.config.privacy)
    method = METHODS[name]
    # Imported only now, so that listing the methods does not import torch.
    made: Made[DistilledSet] = import_module(method.home).make(replace(context, method=method))
    return made
