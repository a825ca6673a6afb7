"""The distilled set: images, the folder that holds them, its data card."""

from geodistill.distilled.about import BATCHES
from geodistill.distilled.card import (
    tell_of_audit,
    tell_of_self_test,
    tell_of_source,
    tell_of_sources,
    told_licence,
)
from geodistill.distilled.folder import (
    CLASS_MAP,
    FOR_THE_OWNER,
    MANIFEST,
    UPDATED,
    owner_files,
    run_of,
    set_folder,
    set_in,
    strays,
    told_strays,
)
from geodistill.distilled.set import DistilledSet

__all__ = [
    "BATCHES",
    "CLASS_MAP",
    "FOR_THE_OWNER",
    "MANIFEST",
    "UPDATED",
    "DistilledSet",
    "owner_files",
    "run_of",
    "set_folder",
    "set_in",
    "strays",
    "tell_of_audit",
    "tell_of_self_test",
    "tell_of_source",
    "tell_of_sources",
    "told_licence",
    "told_strays",
]
