"""Planted canaries: does a set give away the training images that are like no other?

    python benchmarks/canaries.py --archive ucmerced --foreign eurosat --data ../shared/data --cases none screen

Images of another archive, half of them, are put among the training images, spread over the classes; the other half is
held out. A set is made by DPD at 64 px, IPC 10, drawn in secret. The nine membership attacks are asked which of these
foreign images were training images. The best AUC of the nine is read beside that of the nine after the labels "training
image" and "held out" are shuffled 999 times, which gives the p-value. Rows go to benchmarks/results/canaries.csv. The
same command resumes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from record import ARCHIVES, UNSEEN_BY, circumstances, command, folder_of, merged, to_csv
from scipy.stats import rankdata
from torch import Tensor

from geodistill.config import Config, load_config, recorded, without_self_test
from geodistill.methods import make_distilled
from geodistill.privacy.membership import attack, scores, seen
from geodistill.run import Run
from geodistill.scenes import Scenes, open_scenes
from geodistill.seeding import generator
from geodistill.stages.context import Context

SHEET, KEY = "canaries.csv", ("archive", "privacy")
SIZE, IPC, SHUFFLED = 64, 10, 999


def main() -> None:
    """Make a set of the archive with canaries for each case; write its row."""
    args = _arguments()
    archive, foreign = (open_scenes(folder_of(name, args.data)).train for name in (args.archive, args.foreign))
    chosen = torch.randperm(len(foreign), generator=generator(0, "canaries"))[: 2 * args.canaries]
    canaries = foreign.pixels(chosen.sort().values, size=SIZE)
    labels = torch.arange(2 * args.canaries) % len(archive.classes)
    inside = torch.arange(2 * args.canaries) % 2 == 0
    planted = _joined(archive, canaries[inside], labels[inside])
    for privacy in args.cases:
        config = without_self_test(load_config(sets=args.set, base=UNSEEN_BY[args.archive], ipc=IPC, privacy=privacy))
        line: dict[str, Any] = {"archive": args.archive, "foreign": args.foreign, "privacy": privacy}
        line |= _found(planted, config, args.out / f"{args.archive}-{privacy}", (canaries, labels, inside))
        print(line, flush=True)
        to_csv(merged([line | circumstances()], SHEET, KEY), SHEET)


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--archive", choices=list(ARCHIVES), default="ucmerced")
    options.add_argument("--foreign", choices=list(ARCHIVES), default="eurosat")
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/canaries"))
    options.add_argument("--canaries", type=int, default=42, help="foreign training images, and held-out ones")
    options.add_argument("--cases", nargs="+", choices=("none", "screen"), default=["none", "screen"])
    options.add_argument("--set", action="append", default=[], help="a setting, such as refinement.steps=0")
    return options.parse_args()


def _joined(archive: Scenes, images: Tensor, labels: Tensor) -> Scenes:
    """Return the scenes of `archive` and then `images` uint8 [n, 3, s, s] of classes `labels` int64 [n]."""
    pixels = torch.cat([archive.pixels(size=SIZE), images]).permute(0, 2, 3, 1).numpy()
    return Scenes.from_arrays(pixels, torch.cat([archive.labels, labels]), archive.classes)


def _found(planted: Scenes, config: Config, folder: Path, canaries: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Return how well the best attack tells the canaries inside from those held out, with its p-value."""
    settings = {"method": "dpd", "config": recorded(config), "scenes": planted.fingerprint()}
    with Run(folder, settings, command()) as run:
        distilled = make_distilled("dpd", Context(planted, config, run)).value
    images, labels, inside = canaries
    told = scores(distilled, planted.classes, seen(images, labels))
    best, p_value = best_of(torch.stack(list(told.values())), inside)
    name = list(told)[best]
    auc = attack(name, told[name][inside], told[name][~inside]).auc
    return {
        "canaries": int(inside.sum()),
        "attack": name,
        "auc": f"{auc.value:.3f}",
        "auc_low": f"{auc.low:.3f}",
        "auc_high": f"{auc.high:.3f}",
        "p": f"{p_value:.3f}",
    }


def best_of(told: Tensor, inside: Tensor) -> tuple[int, float]:
    """Return which row of scores `told` [attacks, n] has the largest AUC for `inside` bool [n], and its p-value.

    The p-value is that of the largest AUC among those after `inside` is shuffled (Phipson and Smyth 2010).
    """
    ranks = torch.from_numpy(rankdata(told, axis=1))
    random = generator(0, "shuffled canaries")
    shuffled = torch.stack([inside[torch.randperm(len(inside), generator=random)] for _ in range(SHUFFLED)])
    own, chance = _aucs(ranks, inside[None])[:, 0], _aucs(ranks, shuffled)
    return int(own.argmax()), (1 + int((chance.amax(dim=0) >= own.max()).sum())) / (1 + SHUFFLED)


def _aucs(ranks: Tensor, inside: Tensor) -> Tensor:
    """Return the AUC [attacks, k] of `ranks` [attacks, n] for each row of `inside` [k, n]."""
    members = inside.double().sum(dim=1)
    above = ranks @ inside.double().T - members * (members + 1) / 2
    aucs: Tensor = above / (members * (inside.shape[1] - members))
    return aucs


if __name__ == "__main__":
    main()
