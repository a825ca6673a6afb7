"""Differential privacy on EuroSAT, with the base `aid`, which has not seen it: accuracy against ε.

    python benchmarks/private.py --data ../shared/data/eurosat --epsilons 1 10

Each set is made by `geodistill distill --privacy dp` at 64 px from the 8,000 training images, and classifiers that are
trained on it are tested on the 2,000 test images, by `geodistill compare`; the same command resumes. Rows go to
benchmarks/results/private.csv. The default recipe was kept because of what was seen on these test images
(docs/experiments.md), so its figures are not those of an independent test.

DPImageBench (Gong et al., CCS 2025) is the yardstick: EuroSAT, classifiers trained on synthetic images, δ = 1e-5. What
differs here is said in docs/privacy.md.
"""

import argparse
import sys
from pathlib import Path

from record import circumstances, merged, to_csv

from geodistill.commands.compare import compare
from geodistill.config import Config, load_config
from geodistill.evaluation.rows import Row
from geodistill.networks import PRETRAINED
from geodistill.scenes import open_scenes

SHEET, KEY = "private.csv", ("epsilon", "ipc", "recipe", "candidates", "refined", "protocol", "network")
DELTA, BASE = 1e-5, "aid"


def main() -> None:
    """Make and test one set after the other; write its rows after each."""
    args = _arguments()
    if not args.data.is_dir():
        sys.exit(f"benchmark skipped: EuroSAT is not at {args.data}")
    data = open_scenes(args.data)
    for epsilon in args.epsilons:
        config = load_config(sets=args.set, privacy="dp", epsilon=epsilon, delta=DELTA, base=BASE)
        rows = compare(
            data,
            config,
            out=args.out / f"eps-{epsilon:g}-{config.refinement.steps}",
            methods=["dpd"],
            ipcs=[args.ipc],
            protocols=args.protocols,
            networks=args.networks,
            full=False,
        )
        own = [row for row in rows if (row.method, row.ipc) == ("dpd", args.ipc)]
        to_csv(merged([_line(epsilon, config, row) for row in own], SHEET, KEY), SHEET)


def _line(epsilon: float, config: Config, row: Row) -> dict[str, str]:
    starts = "noisy starts" if config.sampling.follow == "start" else "text alone"
    recipe = f"{starts}, adapter" if config.finetune.steps else starts
    counts = str(config.sampling.candidates), str(config.refinement.steps)
    key = (f"{epsilon:g}", str(row.ipc), recipe, *counts, row.protocol, row.network)
    line = dict(zip(KEY, key, strict=True))
    line |= {"oa_mean": f"{row.oa_mean:.4f}", "oa_std": f"{row.oa_std:.4f}", "seeds": str(len(row.seeds))}
    print(line, flush=True)
    return line | circumstances()


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data/eurosat"))
    options.add_argument("--out", type=Path, default=Path("runs/private"))
    options.add_argument("--epsilons", type=float, nargs="+", default=[1, 10])
    options.add_argument("--ipc", type=int, default=20)
    options.add_argument("--protocols", nargs="+", default=["probe", "finetune"])
    options.add_argument("--networks", nargs="+", default=[PRETRAINED])
    options.add_argument("--set", action="append", default=[], help="a setting, such as refinement.steps=0")
    return options.parse_args()


if __name__ == "__main__":
    main()
