"""What sets give away, beside what they are worth: audits on AID at 64 px, IPC 10.

    python benchmarks/privacy.py --data ../shared/data/aid --out runs/privacy

Random real images (which must be flagged), sets of rivals, DPD's without and with screening and under differential
privacy: each set is made and tested by `geodistill compare`, in a run for each kind of privacy, and audited by
`geodistill audit`. Rows go to benchmarks/results/privacy.csv; all of them are shown in docs/privacy.md and its plot.
Nothing is chosen on the test split, which is what the audit takes fresh images from.

Rows made before 28 November 2026 are of the base that is now `aid`, which was trained on these training images: those
under differential privacy show the cost of the noise, without a guarantee. The compact base has not seen AID.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from record import circumstances, merged, parsed, parser, to_csv

from geodistill.compare import compare
from geodistill.config import Config, load_config
from geodistill.evaluation.rows import Row
from geodistill.privacy.audit import Audit, audit_folder
from geodistill.progress import stages
from geodistill.report.plots import standalone, utility_plot
from geodistill.run import write_atomic
from geodistill.scenes import SceneData, open_scenes

SHEET, KEY, IPC = "privacy.csv", ("method", "privacy"), 10
PROTOCOLS = ("probe", "finetune")
CASES = (
    ("random", "none"),
    ("reconstruction", "none"),
    ("d4m", "none"),
    ("dpd", "none"),
    ("dpd", "screen"),
    *(("dpd", f"dp-{epsilon}") for epsilon in (30, 8, 1)),
)
DELTA = 1e-5
DOCS = Path(__file__).parents[1] / "docs"
PLOT = "images/aid_privacy.svg"


def main() -> None:
    """Make, test and audit one set after the other; write a row after each."""
    args = _arguments()
    data = open_scenes(args.data)
    for method, privacy in [case for case in CASES if "-".join(case) in args.cases]:
        rows, folder = _made(method, privacy, data, args)
        start = time.perf_counter()
        found, *_ = audit_folder(folder, data, out=folder / "audit")
        seconds = f"{time.perf_counter() - start:.0f}"
        print(found.verdict, flush=True)
        line = {"method": method, "privacy": privacy, **_worth(rows), **_given_away(found), "audit_seconds": seconds}
        lines = merged([line | circumstances()], SHEET, KEY)
        order = {case: rank for rank, case in enumerate(CASES)}
        lines.sort(key=lambda one: order[one["method"], one["privacy"]])
        to_csv(lines, SHEET)
        _draw(lines)


def _arguments() -> argparse.Namespace:
    names = ["-".join(case) for case in CASES]
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/privacy"))
    options.add_argument("--cases", nargs="+", choices=names, default=names, metavar="METHOD-PRIVACY")
    return parsed(options)


def _made(method: str, privacy: str, data: SceneData, args: argparse.Namespace) -> tuple[tuple[Row, ...], Path]:
    """Return the rows of the set, tested under the probe and finetune, and the folder of its run."""
    with stages() as advance:
        rows = compare(
            data,
            _settings(privacy),
            out=args.out / privacy,
            methods=[method],
            ipcs=[IPC],
            protocols=PROTOCOLS,
            full=False,
            progress=advance,
        )
    own = tuple(row for row in rows if (row.method, row.ipc) == (method, IPC) and row.protocol in PROTOCOLS)
    return own, args.out / privacy / "sets" / f"{method}-ipc{IPC}"


def _settings(privacy: str) -> Config:
    if not privacy.startswith("dp-"):
        return load_config(privacy=privacy)
    return load_config(privacy="dp", epsilon=float(privacy.removeprefix("dp-")), delta=DELTA)


def _worth(rows: tuple[Row, ...]) -> dict[str, str]:
    found = {"rho": f"{rows[0].rho:.4g}"}
    for row in rows:
        found |= {f"{row.protocol}_mean": f"{row.oa_mean:.4g}", f"{row.protocol}_std": f"{row.oa_std:.4g}"}
    return found


def _given_away(found: Audit) -> dict[str, Any]:
    best = found.best_attack
    assert best is not None
    assert best.judged is not None
    assert found.held_out_flagged is not None
    told = {
        "copies": found.copies,
        "held_out_flagged": f"{found.held_out_flagged:.4g}",
        **{f"nearer_{one.measure}": f"{one.nearer:.4g}" for one in found.readings},
        "leaks": found.leaks,
        "attack": best.name,
        "auc": f"{best.auc.value:.4g}",
    }
    told |= {f"found{end}": f"{getattr(best.judged, name):.4g}" for name, end in _ENDS.items()}
    if found.null is not None:
        told |= {"null": f"{found.null.mean[0]:.4g}", "p": f"{found.null.p:.4g}"}
        told["exposed"] = f"{found.null.exposed[0] / found.null.images:.4g}"
    told["found_at_0.1%"] = f"{best.found[1].value:.4g}" if best.found[1] else ""
    return told | {"recognised": "" if found.attribution is None else f"{found.attribution.recognised:.4g}"}


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _draw(lines: list[dict[str, Any]]) -> None:
    points = {_name(line): (float(line["found"]), float(line["finetune_mean"])) for line in lines}
    spreads = {_name(line): (float(line["found_low"]), float(line["found_high"])) for line in lines}
    write_atomic(DOCS / PLOT, standalone(utility_plot("privacy", points, spreads)))
    write_atomic(DOCS / "privacy.md", _page(lines))


def _name(line: dict[str, Any]) -> str:
    kind = str(line["privacy"])
    told = {"none": "", "screen": ", screened"}.get(kind, f", ε = {kind.removeprefix('dp-')}")
    return f"{line['method']}{told}"


_INTRODUCTION = f"""# What distilled sets give away

AID, 64 px, IPC {IPC}: what each set is worth, and what `geodistill audit` finds in it, against 6,000 training and
2,000 held-out images.
Copies: images that one training image is much more like than any other is, allowing for the changes that are looked
for. Found: training images that the best of nine membership attacks finds at 1 % false positives, with its 95 %
interval; a set of 300 real images holds 5 % of them. Null: the audit replaces the set by held-out images, 199 times,
and takes the mean of what the best attack then finds. p is the share of these 199 sets that give away at least as much
as the distilled set; the set leaks if p is at most 0.01. Rows without p were made before the audit had a null, so they
do not show whether the set leaks. Nearer: images whose distance to the nearest training image (SSIM) is smaller than
that of 99 % of the held-out images. Recognised: images whose starting training image the data owner can identify.

Source: `benchmarks/results/{SHEET}` (hardware, versions, command), made by `benchmarks/privacy.py`.

![Accuracy against training images found]({PLOT})
"""


_EUROSAT = """
## Accuracy under differential privacy on EuroSAT

64 px, base `aid`, which has not seen EuroSAT; δ = 1e-5, zero-out adjacency; 8,000 training and 2,000 test images; mean
and standard deviation of three classifiers. One set each. DPImageBench (Gong et al., CCS 2025) reports 70.7 % at ε = 1
and 83.6 % at ε = 10 as the best of its methods. What differs there: images of 32 px; more training images; classifiers
that start at random, trained on 60,000 synthetic images. Probe and finetune here start from a network pretrained on
ImageNet, which is worth much, so the figures cannot be compared one to one.

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


_PRIVATE = f"""
Under differential privacy (ε, δ = {DELTA:g}) nothing starts as a training image. Those rows show what the noise costs
and hides, on a base that was itself trained on these images, and so have no guarantee. No teacher is trained there: of
what it takes of the budget the adapter makes better use (experiments.md).
"""


def _page(lines: list[dict[str, Any]]) -> str:
    heads = ["set", "OA %, finetune", "OA %, probe", "ρ", "copies", "found %", "null %", "p", "by"]
    heads += ["nearer %", "recognised %"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        found = " to ".join(f"{100 * float(line[f'found{end}']):.1f}" for end in ("_low", "_high"))
        rows.append(
            [
                _name(line),
                f"{100 * float(line['finetune_mean']):.1f} ± {100 * float(line['finetune_std']):.1f}",
                f"{100 * float(line['probe_mean']):.1f}",
                f"{float(line['rho']):.2f}",
                f"{line['copies']} of 300",
                f"{100 * float(line['found']):.1f} ({found})",
                f"{100 * float(line['null']):.1f}" if line.get("null") else "",
                line.get("p", ""),
                line["attack"],
                f"{100 * float(line['nearer_structure']):.0f}",
                f"{100 * float(line['recognised']):.0f}" if line["recognised"] else "",
            ]
        )
    private = _PRIVATE if any(str(line["privacy"]).startswith("dp-") for line in lines) else ""
    return _INTRODUCTION + private + "\n" + _table(rows) + _eurosat() + _copies()


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _eurosat() -> str:
    """Return the section on accuracy against ε on EuroSAT; an empty string if benchmarks/private.py has not run."""
    lines = merged([], "private.csv", ("epsilon", "ipc", "refined", "protocol", "network"))
    if not lines:
        return ""
    heads = ["ε", "images a class", "steps of refinement", "protocol, network", "OA %"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        worth = f"{100 * float(line['oa_mean']):.1f} ± {100 * float(line['oa_std']):.1f}"
        rows.append([line["epsilon"], line["ipc"], line["refined"], f"{line['protocol']}, {line['network']}", worth])
    return _EUROSAT + _table(rows)


def _copies() -> str:
    """Return the table of the copies that were found; an empty string if benchmarks/copies.py has not run."""
    lines = merged([], "copies.csv", ("archive", "change"))
    if not lines:
        return ""
    heads = ["archive", "change", "copies %", "right %", "nearness"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        near = (
            f"{float(line['nearness']):.2f} ({float(line['nearness_low']):.2f} to {float(line['nearness_high']):.2f})"
        )
        right = f"{100 * float(line['right']):.0f}" if line["right"] else ""
        rows.append([line["archive"], line["change"], f"{100 * float(line['copies']):.1f}", right, near])
    return _COPIES + _table(rows)


if __name__ == "__main__":
    main()
