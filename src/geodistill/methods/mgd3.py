"""MGD3 (Chan-Santiago et al., ICML 2025): the prior without fine-tuning, guided towards k-means modes of the latents.

    z_{t-1} ← z_{t-1} + λ σ_t (m - ẑ0)        at the first 25 of 50 steps, λ = 0.1

m is the mode, σ_t the standard deviation of DDPM's reverse step (`prior.guidance.towards_mode`). Unlike in DPD's rule,
the gap is not scaled to unit length. Constants of the paper: λ, 25 and 50 steps, and classifier-free guidance 4, as in
its main experiments. Deviations: DDIM, which adds no noise of its own, instead of DDPM's sampler, and class prompts
instead of class embeddings.
"""

from geodistill.config import Config, SamplingSettings
from geodistill.distilled import DistilledSet
from geodistill.methods.d4m import from_centroids
from geodistill.prior.guidance import ModeGuidance
from geodistill.provenance import Made
from geodistill.stages.context import Context

GUIDANCE, STEPS = 4.0, 50
MODES = ModeGuidance(scale=0.1, steps=25)


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` images of each class, each guided towards one of the class's modes."""
    return from_centroids(context.having(paper(context.config)), MODES)


def paper(config: Config) -> Config:
    """Return `config` with the paper's sampling."""
    sampling = SamplingSettings(
        follow="none",
        guidance=GUIDANCE,
        steps=STEPS,
        solver="ddim",
        candidates=1,
        batch=config.sampling.batch,
    )
    return config.model_copy(update={"sampling": sampling})
