"""All stages of a run. Their names are defined only here."""

from dataclasses import replace

from geodistill.provenance import Stage

# The method that has these stages; its rivals have some of them.
OWN = "dpd"
# In the settings of a run that updates another set: the content hash of that set.
ADDS_TO = "adds_to"

BASE = Stage("base", 3, title="Training of the base", lent=True)
LATENTS = Stage("latents", 2, shared=True, lent=True)
FEATURES = Stage("features", 1, shared=True, lent=True)
TEACHER = Stage("teacher", 1, shared=True, lent=True)
SOFT_LABEL_TEACHER = Stage("labeller", 1, lent=True)
PROTOTYPES = Stage("prototypes", 1)
DESCRIPTIONS = Stage("descriptions", 1)
ADAPTER = Stage("adapter", 3, title="Training of the adapter", shared=True)
FOLLOWING = Stage("following", 1, shared=True)
INITIAL = Stage("initial", 1, shared=True)
CANDIDATES = Stage("candidates", 1, shared=True)
SCREENED = Stage("screened", 1, shared=True)
CHOSEN = Stage("chosen", 1)
REFINED = Stage("refined", 5, title="Refinement of the chosen images", shared=True)
DISTILLED = Stage("distilled", 5)
SELF_TEST = Stage("self_test", 1)

# The sets of rivals.
KEPT = replace(DISTILLED, version=4)

# Under differential privacy. Some replace the stage of the same name.
PROFILES = Stage("profiles", 1)
CENTRES = Stage("centres", 1)
MOMENTS = Stage("moments", 1)
PRIVATE_ADAPTER = replace(ADAPTER, version=1, shared=False)
PRIVATE_CANDIDATES = replace(CANDIDATES, shared=False)
PRIVATE_REFINED = replace(REFINED, version=2, shared=False)

# What users are told of stages whose names do not say it; the part of refinement that trains classifiers among them.
STUDENTS = "students"
_WORDS = {
    FOLLOWING.name: "sampling-strength test",
    INITIAL.name: "initial images",
    CHOSEN.name: "selection",
    SCREENED.name: "screening",
    REFINED.name: "refinement",
    STUDENTS: "classifiers for refinement",
    SOFT_LABEL_TEACHER.name: "soft-label teacher",
    DISTILLED.name: "final images",
    SELF_TEST.name: "self-test",
}


def words_of(stage: str) -> str:
    """Return what users are told of the stage with this name.

    >>> words_of("following"), words_of("latents")
    ('sampling-strength test', 'latents')
    """
    return _WORDS.get(stage, stage)
