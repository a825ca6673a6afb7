"""The choice of the protocols' recipes: learning rate and largest gradient norm, on random real images, never on test.

    python benchmarks/recipes.py --data ../shared/data/aid

A quarter of the training scenes is held out; ten random images of each class from the rest are trained on, another draw
for each seed. A row of benchmarks/results/recipes.csv is one recipe; what was chosen stands in
geodistill/evaluation/protocols.py. The number of steps is that of the reference figures and is not searched.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

import joblib
import torch
from record import circumstances, merged, parsed, parser, to_csv

from geodistill.evaluation import protocols
from geodistill.evaluation.measures import mean_std
from geodistill.evaluation.networks import PRETRAINED
from geodistill.evaluation.protocols import RECIPES, Recipe, train_and_predict
from geodistill.methods.random import select
from geodistill.scenes import Scenes, open_scenes
from geodistill.scenes.splits import hold_out

SIZE, IPC, HELD_OUT = 64, 10, 0.25
CLIPS = (1.0, math.inf)
TRIED = {
    ("finetune", PRETRAINED): (0.01, 0.02, 0.04),
    ("scratch", "convnet3"): (0.01, 0.02, 0.05, 0.1),
}


def main() -> None:
    """Try each recipe with each seed, write the CSV file after each cell."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--protocols", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    args = parsed(options)
    train = open_scenes(args.data).train
    kept, held = hold_out(train, HELD_OUT, "recipes")
    lines = [
        line for name in args.protocols for line in _lines(name, train.subset(kept), train.subset(held), args.seeds)
    ]
    to_csv(merged(lines, "recipes.csv", ("protocol", "network", "learning_rate", "clip")), "recipes.csv")


def _lines(protocol: str, rest: Scenes, held: Scenes, seeds: int) -> Iterator[dict[str, str]]:
    """Yield a line for each recipe of a protocol."""
    test = held.pixels(size=SIZE)
    picks = [select(rest, IPC, seed) for seed in range(seeds)]
    draws = [(rest.pixels(pick, size=SIZE), rest.labels[pick]) for pick in picks]
    for network, recipe in _recipes(protocol):
        work = (
            joblib.delayed(_accuracy)(protocol, network, recipe, draw, test, held.labels, seed)
            for seed, draw in enumerate(draws)
        )
        oa, std = mean_std(joblib.Parallel(n_jobs=min(seeds, joblib.cpu_count()))(work))
        print(f"{protocol} {network} {recipe}: {100 * oa:.1f} ± {100 * std:.1f}", flush=True)
        about = {"protocol": protocol, "network": network, **{k: str(v) for k, v in asdict(recipe).items()}}
        data = f"AID 64 px, IPC {IPC}, {len(rest)} to draw from, {len(held)} held out of train"
        figures = {"oa_held_out": f"{oa:.4f}", "oa_std": f"{std:.4f}", "seeds": " ".join(map(str, range(seeds)))}
        yield about | figures | {"chosen": str(recipe == RECIPES[protocol]), "dataset": data, **circumstances()}


def _recipes(protocol: str) -> Iterator[tuple[str, Recipe]]:
    for (name, network), rates in TRIED.items():
        for rate, clip in product(rates, CLIPS) if name == protocol else ():
            yield network, replace(RECIPES[protocol], learning_rate=rate, clip=clip)


def _accuracy(
    protocol: str,
    network: str,
    recipe: Recipe,
    draw: tuple[torch.Tensor, torch.Tensor],
    test: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
) -> float:
    """Return the overall accuracy on held-out scenes after training in this process, on one thread."""
    torch.set_num_threads(1)
    protocols.RECIPES[protocol] = recipe
    logits = train_and_predict(protocol, network, *draw, test, classes=int(labels.max()) + 1, seed=seed)
    return float((logits.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
