"""The choice of the protocols' recipes, on random real images, never on test: learning rate, gradient norm, steps.

    python benchmarks/recipes.py --data ../shared/data/aid --protocol finetune --rates 0.01 0.02 0.04
    python benchmarks/recipes.py --data ../shared/data/aid --protocol scratch --rates 0.02 0.05 0.1 --steps 300

A quarter of the training scenes is held out; ten random images of each class from the rest are trained on, another draw
for each seed. A row of benchmarks/results/recipes.csv is one recipe; what was chosen stands in
geodistill/evaluation/protocols.py. The steps of finetune are those of the reference figures and are not searched.
"""

import argparse
import math
from dataclasses import asdict, replace
from itertools import product

import joblib
import torch
from record import circumstances, merged, parsed, parser, to_csv

from geodistill.evaluation import protocols
from geodistill.evaluation.measures import mean_std
from geodistill.evaluation.protocols import RECIPES, Recipe, train_and_predict
from geodistill.methods.random import select
from geodistill.networks import PRETRAINED
from geodistill.scenes import Scenes, open_scenes
from geodistill.scenes.splits import hold_out

SIZE, IPC, HELD_OUT = 64, 10, 0.25
NETWORK = {"finetune": PRETRAINED, "scratch": "convnet3"}
KEY = ("protocol", "network", "learning_rate", "clip", "steps")


def main() -> None:
    """Try each recipe with each seed; write the CSV file after each."""
    args = _arguments()
    train = open_scenes(args.data).train
    kept, held = hold_out(train, HELD_OUT, "recipes")
    rest, test = train.subset(kept), train.subset(held)
    for rate, clip, steps in product(args.rates, args.clips, args.steps or [RECIPES[args.protocol].steps]):
        recipe = replace(RECIPES[args.protocol], learning_rate=rate, clip=clip, steps=steps)
        to_csv(merged([_line(args.protocol, recipe, rest, test, args.seeds)], "recipes.csv", KEY), "recipes.csv")


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--protocol", default="finetune", choices=list(RECIPES))
    options.add_argument("--rates", type=float, nargs="+", required=True, help="peak learning rates")
    options.add_argument("--clips", type=float, nargs="+", default=[math.inf], help="largest norms of a gradient")
    options.add_argument("--steps", type=int, nargs="+", help="numbers of steps (the recipe's own)")
    options.add_argument("--seeds", type=int, default=3)
    return parsed(options)


def _line(protocol: str, recipe: Recipe, rest: Scenes, held: Scenes, seeds: int) -> dict[str, str]:
    """Return the CSV file's line for a recipe: held-out accuracy over the seeds."""
    network, test = NETWORK[protocol], held.pixels(size=SIZE)
    picks = [select(rest, IPC, seed) for seed in range(seeds)]
    draws = [(rest.pixels(pick, size=SIZE), rest.labels[pick]) for pick in picks]
    work = (
        joblib.delayed(_accuracy)(protocol, network, recipe, draw, test, held.labels, seed)
        for seed, draw in enumerate(draws)
    )
    oa, std = mean_std(joblib.Parallel(n_jobs=min(seeds, joblib.cpu_count()))(work))
    print(f"{protocol} {network} {recipe}: {100 * oa:.1f} ± {100 * std:.1f}", flush=True)
    about = {"protocol": protocol, "network": network, **{k: str(v) for k, v in asdict(recipe).items()}}
    data = f"AID 64 px, IPC {IPC}, {len(rest)} to draw from, {len(held)} held out of train"
    figures = {"oa_held_out": f"{oa:.4f}", "oa_std": f"{std:.4f}", "seeds": " ".join(map(str, range(seeds)))}
    return about | figures | {"dataset": data, **circumstances()}


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
