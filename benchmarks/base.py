"""A base at 64 px, with AID: what its autoencoder gives back, and what its U-Net draws under the class's name alone.

    python benchmarks/base.py --data ../shared/data/aid

A row of benchmarks/results/base.csv has: PSNR of test images through the autoencoder; the share of test images that
logistic regression on the ImageNet backbone's features, trained on all real training images, takes for their class, as
they are and given back; the U-Net's squared error on test latents under their own class's prompt and under another
image's, whose difference is what it has learned from the text; the share of recognised ones among drawn images, the KID
of these against the test images, their nearness ratio, and the size. docs/images/base.jpg shows what is drawn.
Nothing in it is chosen on the test split.
"""

import argparse
from pathlib import Path

import torch
from record import circumstances, merged, parsed, parser, to_csv
from torch import Tensor

from geodistill.config import SamplingSettings
from geodistill.descriptions import class_prompt
from geodistill.distilled import DistilledSet
from geodistill.evaluation.fidelity import kid
from geodistill.evaluation.protocols import train_and_predict
from geodistill.networks import pooled_features
from geodistill.prior.base import Prior, load_prior, source_of
from geodistill.prior.noising import noise_process
from geodistill.prior.sample import Requests, sample_batch
from geodistill.prior.training import batches, prompt_table
from geodistill.privacy.nearness import nearness_ratio, real_distances
from geodistill.report.grid import draw_grid
from geodistill.scenes import Scenes, open_scenes

SIZE, PER_CLASS, SHEET = 64, 20, "base.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "base.jpg"


def main() -> None:
    """Measure the base, write its row and its picture."""
    args = _arguments()
    scenes = open_scenes(args.data)
    assert scenes.test is not None, "AID comes with a test part"
    base = Path(source_of(args.base, SIZE))
    prior = load_prior(str(base))
    drawn = _drawn(prior, scenes.train, args.guidance)
    labels = torch.arange(len(scenes.train.classes)).repeat_interleave(PER_CLASS)
    draw_grid(DistilledSet(drawn, labels, scenes.train.classes, (), {}), PICTURE, per_class=8)
    line = {
        "base": args.name or args.base,
        "guidance": f"{args.guidance:g}",
        "megabytes": f"{sum(path.stat().st_size for path in base.rglob('*') if path.is_file()) / 1e6:.1f}",
        **_figures(prior, drawn, labels, scenes.train, scenes.test),
        **circumstances(),
    }
    print({name: value for name, value in line.items() if name not in circumstances()})
    to_csv(merged([line], SHEET, ("base", "guidance")), SHEET)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--base", default="aid", help="a name or a pipeline folder")
    options.add_argument("--name", help="of the base in the table (as --base)")
    options.add_argument("--guidance", type=float, default=SamplingSettings().guidance_scale)
    return parsed(options)


def _drawn(prior: Prior, train: Scenes, guidance: float) -> Tensor:
    """Return uint8 images, PER_CLASS of each class side by side, each under the class prompt."""
    settings = SamplingSettings(follow="none", guidance=guidance)
    table, rows = prompt_table([[class_prompt(name)] for name in train.classes])
    prompts = rows[:, 0].repeat_interleave(PER_CLASS)
    requests = Requests(
        prompts=prompts,
        embeddings=prior.embed(table),
        prototypes=prior.blank(1, prior.unet.config.sample_size * prior.downscale),
        slots=torch.zeros_like(prompts),
        seeds=torch.arange(len(prompts)),
    )
    parts = batches(len(prompts), settings.batch)
    return torch.cat([prior.decode(sample_batch(prior, requests.part(part), settings, seed=0)) for part in parts])


@torch.inference_mode()
def _text_losses(prior: Prior, images: Tensor, texts: list[str]) -> tuple[float, float]:
    """Return the U-Net's mean squared error at evenly spread times under each image's own text and under another's."""
    g = torch.Generator().manual_seed(0)
    clean = prior.encode(images)
    times = torch.linspace(50, 949, len(images)).long()[torch.randperm(len(images), generator=g)]
    process, noise = noise_process(prior.scheduler), torch.randn(clean.shape, generator=g)
    level = process.levels[times]
    noisy, wanted = process.add(clean, noise, level), process.target(clean, noise, level)

    def error(prompts: list[str]) -> float:
        told = prior.unet(noisy, times, prior.embed(prompts)).sample
        return float((told - wanted).square().mean())

    others = torch.randperm(len(texts), generator=g).tolist()
    return error(texts), error([texts[other] for other in others])


def _figures(prior: Prior, drawn: Tensor, labels: Tensor, train: Scenes, test: Scenes) -> dict[str, str]:
    real, fresh = train.pixels(size=SIZE), test.pixels(size=SIZE)
    back = torch.cat([prior.decode(prior.encode(part)) for part in fresh.split(200)])
    error = (back.float() - fresh.float()).square().mean(dim=(1, 2, 3))
    asked = torch.cat([fresh, back, drawn])
    probe = "probe", "efficientnet-lite0"
    told = train_and_predict(*probe, real, train.labels, asked, classes=len(train.classes), seed=0).argmax(dim=1)
    right = told == torch.cat([test.labels, test.labels, labels])
    shares = [float(part.float().mean()) for part in right.split([len(fresh), len(back), len(drawn)])]
    some = slice(None, None, 4)
    own_text, other_text = _text_losses(
        prior, fresh[some], [class_prompt(test.classes[label]) for label in test.labels[some].tolist()]
    )
    distance = kid(pooled_features(drawn), pooled_features(fresh)).value
    nearness = nearness_ratio(drawn, real_distances(real, fresh))
    return {
        "psnr_db": f"{float((10 * torch.log10(255**2 / error)).mean()):.2f}",
        "recognised_test": f"{shares[0]:.4f}",
        "recognised_given_back": f"{shares[1]:.4f}",
        "recognised_drawn": f"{shares[2]:.4f}",
        "loss_own_text": f"{own_text:.4f}",
        "loss_other_text": f"{other_text:.4f}",
        "kid_drawn": "" if distance is None else f"{distance:.4f}",
        "rho_drawn": f"{nearness.ratio:.3f}",
    }


if __name__ == "__main__":
    main()
