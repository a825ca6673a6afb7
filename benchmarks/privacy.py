"""Accuracy and privacy audit of distilled sets at 64 px, IPC 10, on an archive that the base has not seen.

    python benchmarks/privacy.py --archive eurosat --data ../shared/data --out runs/privacy
    python benchmarks/privacy.py --archive aid --data ../shared/data --out runs/privacy

Random real images, which must be flagged, sets of rivals, DPD's without and with protection: each is made from the
training images in a run of its own, drawn in secret; classifiers trained on it are tested on the test images, and
`geodistill audit` takes the test images for held-out ones. The same command resumes. Rows go to
benchmarks/results/privacy.csv; all of them are shown in docs/privacy.md and its plots. Nothing is chosen on the test
split.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import copies
import private
from record import ARCHIVES, UNSEEN_BY, circumstances, command, folder_of, merged, to_csv

from geodistill.commands.audit import audit as audit_folder
from geodistill.config import Config, load_config, recorded, without_self_test
from geodistill.distilled import DistilledSet
from geodistill.evaluation.bench import Bench, Training, open_store
from geodistill.evaluation.measures import mean_std
from geodistill.methods import make_distilled
from geodistill.networks import PRETRAINED
from geodistill.privacy.audit import Audit
from geodistill.report.plots import standalone, utility_plot
from geodistill.run import Run, write_atomic
from geodistill.scenes import SceneData, open_scenes
from geodistill.stages.context import Context

SHEET, KEY, IPC, SEEDS, DELTA = "privacy.csv", ("archive", "method", "privacy"), 10, (0, 1, 2), 1e-5
PROTOCOLS = ("probe", "finetune")
CASES = (
    ("random", "none"),
    ("reconstruction", "none"),
    ("d4m", "none"),
    ("dpd", "none"),
    ("dpd", "screen"),
    *(("dpd", f"dp-{epsilon}") for epsilon in (30, 10, 1)),
)
PAGE = Path(__file__).parents[1] / "docs" / "privacy.md"


def main() -> None:
    """Make, test and audit one set after the other; write a row after each."""
    args = _arguments()
    data = open_scenes(folder_of(args.archive, args.data))
    for method, privacy in [case for case in CASES if "-".join(case) in args.cases]:
        folder = args.out / args.archive / f"{method}-{privacy}"
        distilled = _made(method, _settings(privacy, args), data, folder, args.out / args.archive / "shared")
        line = {"archive": args.archive, "method": method, "privacy": privacy} | _worth(distilled, data, folder)
        start = time.perf_counter()
        found, *_ = audit_folder(folder, data, out=folder / "audit")
        line |= _given_away(found) | {"audit_seconds": f"{time.perf_counter() - start:.0f}"}
        print(found.verdict, flush=True)
        to_csv(merged([line | circumstances()], SHEET, KEY), SHEET)
        write_page()


def _arguments() -> argparse.Namespace:
    names = ["-".join(case) for case in CASES]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--archive", choices=list(ARCHIVES), required=True)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/privacy"))
    options.add_argument("--cases", nargs="+", choices=names, default=names, metavar="METHOD-PRIVACY")
    options.add_argument("--set", action="append", default=[], help="a setting, such as sampling.candidates=4")
    return options.parse_args()


def _settings(privacy: str, args: argparse.Namespace) -> Config:
    """Return the settings of a case; the self-test is left out, so that all methods learn from the same images."""
    given: dict[str, Any] = {"privacy": privacy}
    if privacy.startswith("dp-"):
        given = {"privacy": "dp", "epsilon": float(privacy.removeprefix("dp-")), "delta": DELTA}
    return without_self_test(load_config(sets=args.set, base=UNSEEN_BY[args.archive], ipc=IPC, **given))


def _made(method: str, config: Config, data: SceneData, folder: Path, shared: Path) -> DistilledSet:
    """Return the set that is made in `folder`; stages that all methods have in common are made in `shared` once."""
    settings = {"config": recorded(config), "scenes": data.train.fingerprint()}
    # Latents, features and teacher do not depend on the protection.
    common = {"kind": "shared stages", "scenes": data.train.fingerprint(), "base": config.base}
    with Run(shared, common, command()) as lender, Run(folder, {"method": method} | settings, lender=lender) as run:
        return make_distilled(method, Context(data.train, config, run)).value


def _worth(distilled: DistilledSet, data: SceneData, folder: Path) -> dict[str, str]:
    """Return mean and standard deviation of the overall accuracy of classifiers that are trained on the set."""
    found: dict[str, str] = {}
    bench = Bench(data, distilled.size, store=open_store(folder))
    trainings = {"distilled": [Training.on_set("distilled", distilled)] * len(SEEDS)}
    for protocol in PROTOCOLS:
        measured = bench.measure_all(trainings, protocol, PRETRAINED, SEEDS)["distilled"]
        mean, deviation = mean_std([one.oa for one in measured])
        found |= {f"{protocol}_mean": f"{mean:.4f}", f"{protocol}_std": f"{deviation:.4f}"}
    return found


def _given_away(found: Audit) -> dict[str, Any]:
    best, near, null, held_out = found.best_attack, found.nearness, found.null, found.held_out_flagged
    # All archives have enough held-out images for each of these.
    assert best is not None
    assert best.judged is not None
    assert near is not None
    assert null is not None
    assert held_out is not None
    told: dict[str, Any] = {"copies": found.copies, "images": len(found.images), "held_out_flagged": _three(held_out)}
    told |= _interval("nearness", near.ratio, near.low, near.high)
    told |= {f"nearer_{one.measure.replace(' ', '_')}": _three(one.nearer) for one in found.readings}
    told |= {"leaks": found.leaks, "p": _three(null.p), "attack": best.name, "auc": _three(best.auc.value)}
    told |= _interval("found", best.judged.value, best.judged.low, best.judged.high)
    for rate, own, chance in zip(null.rates, null.observed, null.mean, strict=True):
        told |= {f"best_at_{rate:.1%}": _three(own), f"null_at_{rate:.1%}": _three(chance)}
    told |= _interval("exposed", *(count / null.images for count in null.exposed))
    told["isolated_auc"] = _three(found.isolated.auc.value) if found.isolated else ""
    told["recognised"] = _three(found.attribution.recognised) if found.attribution else ""
    if found.replay:
        told |= {"replayed": found.replay.images, "outsider": found.replay.outsider, "insider": found.replay.insider}
        told |= {"p_outsider": _three(found.replay.p_outsider), "p_insider": _three(found.replay.p_insider)}
    return told


def _three(value: float | None) -> str:
    """Return `value` in three significant digits; an empty string for None."""
    if value is None:
        return ""
    return f"{value:.3g}"


def _interval(name: str, value: float, low: float, high: float) -> dict[str, str]:
    return {name: _three(value), f"{name}_low": _three(low), f"{name}_high": _three(high)}


def write_page() -> None:
    """Write docs/privacy.md and its plots from the rows there are."""
    lines = merged([], SHEET, KEY)
    order = {case: rank for rank, case in enumerate(CASES)}
    lines.sort(key=lambda one: order[one["method"], one["privacy"]])
    parts = [_INTRODUCTION]
    for archive, name in ARCHIVES.items():
        own = [line for line in lines if line["archive"] == archive]
        if own:
            write_atomic(PAGE.parent / _plot(archive), standalone(_drawn(archive, own)))
            parts.append(_section(archive, name, own))
        else:
            parts.append(f"## {name}\n\nNot measured yet.\n")
    write_atomic(PAGE, "\n".join([*parts, _eurosat(), _copies()]))


def _plot(archive: str) -> str:
    return f"images/privacy_{archive}.svg"


def _drawn(archive: str, lines: list[dict[str, Any]]) -> Any:
    points = {_name(line): (float(line["exposed"]), float(line["finetune_mean"])) for line in lines}
    spreads = {_name(line): (float(line["exposed_low"]), float(line["exposed_high"])) for line in lines}
    return utility_plot(f"privacy-{archive}", points, spreads)


def _name(line: dict[str, Any]) -> str:
    kind = str(line["privacy"])
    told = {"none": "", "screen": ", screened"}.get(kind, f", ε = {kind.removeprefix('dp-')}")
    return f"{line['method']}{told}"


_INTRODUCTION = f"""# What distilled sets give away

64 px, IPC {IPC}, one set each, three classifiers. The base has not seen the archive. `geodistill audit` tests each set
against the training images and against the test images, from which no set was made.

- **OA**: overall accuracy on the test images, mean and standard deviation of the classifiers; finetune and probe use
  EfficientNet-Lite0.
- **Copies**: images that one training image is much more like than any other is; the search allows for rotation,
  reflection, crops, noise, blur and changed colours.
- **Nearness**: median distance to the nearest training image, divided by that of equally sharp held-out images, with
  its 95 % interval. 1: as far as images that were never seen. 0: copies.
- **p**: p-value of the membership attacks. The best of all attacks is compared with the best of all attacks on 199 sets
  of held-out images. The set leaks if p is at most 0.01.
- **Exposed**: share of the images that expose a training image, above what is found in sets of held-out images, with
  the 95 % interval of the latter.
- **Found, null**: training images that the best attack finds at 1 % and 0.1 % false positives, and the mean of what it
  finds in sets of held-out images. Empty at 0.1 % if fewer than 1,000 held-out images were asked about (before
  30 November 2026, 900 of EuroSAT were).
- **Replay**: of 30 images, how many starting training images are named among 16 suspects each; guessing names 2. The
  outsider has the set, the base and the settings, the insider also the adapter and the secret. Empty where no image
  starts from a training image.
- **Dpd, screened**: EuroSAT's row is of the recipe before 1 December 2026: all candidates from text alone, 10 for each
  prototype.

Source: `benchmarks/results/{SHEET}` (hardware, versions, command), made by `benchmarks/privacy.py`.
"""


def _section(archive: str, name: str, lines: list[dict[str, Any]]) -> str:
    heads = ["set", "OA %, finetune", "OA %, probe", "copies", "nearness", "p", "exposed %"]
    heads += ["found / null %, at 1 %", "at 0.1 %", "replay: outsider, insider"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        rows.append(
            [
                _name(line),
                _with_deviation(line, "finetune"),
                _percent(line["probe_mean"], 1),
                f"{line['copies']} of {line['images']}",
                _range(line, "nearness", _two),
                line["p"],
                _range(line, "exposed", _percent),
                _beside_null(line, "1.0%"),
                _beside_null(line, "0.1%"),
                f"{line['outsider']}, {line['insider']}" if line.get("outsider") else "",
            ]
        )
    picture = f"![Accuracy against images that expose a training image]({_plot(archive)})"
    made = {(line["method"], line["privacy"]) for line in lines}
    left = [_name({"method": method, "privacy": privacy}) for method, privacy in CASES if (method, privacy) not in made]
    open_rows = f"\nNot measured yet: {'; '.join(left)}.\n" if left else ""
    return f"## {name}, base `{UNSEEN_BY[archive]}`\n\n{picture}\n\n{_table(rows)}{open_rows}"


def _range(line: dict[str, Any], name: str, told: Any) -> str:
    return f"{told(line[name])} ({told(line[f'{name}_low'])} to {told(line[f'{name}_high'])})"


def _two(value: str) -> str:
    return f"{float(value):.2f}"


def _beside_null(line: dict[str, Any], rate: str) -> str:
    # With few held-out images there is no rate of 0.1 %.
    if not line.get(f"best_at_{rate}"):
        return ""
    return f"{_percent(line[f'best_at_{rate}'], 1)} / {_percent(line[f'null_at_{rate}'], 1)}"


def _with_deviation(line: dict[str, Any], name: str) -> str:
    return f"{_percent(line[f'{name}_mean'], 1)} ± {_percent(line[f'{name}_std'], 1)}"


def _percent(value: str, digits: int = 0) -> str:
    return f"{100 * float(value):.{digits}f}" if value else ""


_EUROSAT = """
## Accuracy under differential privacy on EuroSAT

64 px, base `aid`, which has not seen EuroSAT; δ = 1e-5, zero-out adjacency; 8,000 training and 2,000 test images; mean
and standard deviation of three classifiers. One set each. DPImageBench (Gong et al., CCS 2025) reports 70.7 % at ε = 1
and 83.6 % at ε = 10 as the best of its methods. What differs there: images of 32 px; more training images; classifiers
that start at random, trained on 60,000 synthetic images. Probe and finetune here start from a network pretrained on
ImageNet, which is worth much, so the figures cannot be compared one to one.

Rows with 120 steps are of the refinement before 29 November 2026, whose error depended on the scale of the weights.
The default is noisy starts, adapter, 20 candidates and 240 steps; `text alone` is `--set sampling.follow=none --set
finetune.steps=0`. The default was kept because text alone is worse under fine-tuning on these test images, so its
figures are not those of an independent test.

Source: `benchmarks/results/private.csv`, made by `benchmarks/private.py`.

"""


_COPIES = """
## Copies that the audit finds

Training images were changed in one way after the other and looked for among all training images; held-out images must
not be taken for copies. Copies: share of the images that count as copies, per cent. Right: share whose nearest training
image is the one they were made from. Nearness: aligned nearness with its 95 % interval (1: as far as held-out images of
equal sharpness, 0: copies).

Source: `benchmarks/results/copies.csv`, made by `benchmarks/copies.py`.

"""


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _eurosat() -> str:
    """Return the section on accuracy against ε on EuroSAT; an empty string if benchmarks/private.py has not run."""
    lines = merged([], private.SHEET, private.KEY)
    if not lines:
        return ""
    heads = ["ε", "images a class", "recipe", "candidates for an image", "steps of refinement", "protocol, network"]
    heads.append("OA %")
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        tested = f"{line['protocol']}, {line['network']}"
        made = [line[name] for name in ("epsilon", "ipc", "recipe", "candidates", "refined")]
        rows.append([*made, tested, _with_deviation(line, "oa")])
    return _EUROSAT + _table(rows)


def _copies() -> str:
    """Return the table of the copies that were found; an empty string if benchmarks/copies.py has not run."""
    lines = merged([], copies.SHEET, copies.KEY)
    if not lines:
        return ""
    heads = ["archive", "change", "copies %", "right %", "nearness"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        near = _range(line, "nearness", _two)
        right = f"{100 * float(line['right']):.0f}" if line["right"] else ""
        rows.append([line["archive"], line["change"], f"{100 * float(line['copies']):.1f}", right, near])
    return _COPIES + _table(rows)


if __name__ == "__main__":
    main()
