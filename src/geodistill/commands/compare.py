"""The comparison: every method on the same scenes, prior and protocols, in one table.

The run holds one folder for each set (`sets/<method>-ipc<k>`), the predictions (`evaluation/`) and the table
(`compare.json`, `compare.csv`), which is rewritten after each row. Existing sets and predictions are reused, so adding
a method or an IPC costs only what is new.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from geodistill.config import Config, recorded, to_toml, without_self_test
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.evaluation.bench import Bench, Task, Training, open_store
from geodistill.evaluation.columns import BY_FIELD, Column
from geodistill.evaluation.measures import measure
from geodistill.evaluation.protocols import check_protocol
from geodistill.evaluation.rows import FULL, Row, summarise
from geodistill.evaluation.table import Ledger, load_table, pair_key
from geodistill.methods import METHODS, check_method, make_distilled
from geodistill.methods.dpd import check as check_own
from geodistill.networks import PRETRAINED, check_side
from geodistill.pipeline import BASE, OWN
from geodistill.provenance import Kind
from geodistill.run import Run, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.stages.base import load_base, tell_of_base
from geodistill.stages.checks import check_base, check_counts, warn_of_seen_tests
from geodistill.stages.context import Context, reading_of, run_settings


@dataclass(frozen=True)
class _Plan:
    """The request of one call; `cells` are pairs of protocol and network."""

    methods: tuple[str, ...]
    ipcs: tuple[int, ...]
    cells: tuple[tuple[str, str], ...]
    seeds: int
    full: bool


def compare(
    data: SceneData,
    config: Config | None = None,
    *,
    out: Path | str,
    methods: Sequence[str] = tuple(METHODS),
    ipcs: Sequence[int] = (10,),
    protocols: Sequence[str] = ("finetune",),
    networks: Sequence[str] = (PRETRAINED,),
    seeds: int = 3,
    full: bool = True,
    command: str = "",
) -> tuple[Row, ...]:
    """Make the sets of `methods` at each of `ipcs`, test them under each protocol and network, and return the table.

    A set of real images is selected anew for each seed. Any other set is made once, with the config's seed, and the
    seeds vary only the training of the classifier. No method sees the test scenes.

    Args:
        data: train and test scenes.
        config: settings of all methods; its `ipc` is not used.
        out: the run folder; rows, sets and predictions there are kept.
        methods: names in METHODS.
        ipcs: images per class.
        protocols: probe, finetune, scratch; the probe uses the pretrained network only.
        networks: names of classifiers.
        seeds: number of repetitions.
        full: also train on all real images; without it there is no share of full-data OA and no HLR.
        command: the command line, for the record.

    Raises:
        ConfigError: a name is unknown, or an IPC or the number of seeds is below 1.
        PriorError: the base does not exist, or does not draw images of the config's size.
        RunError: `out` holds a comparison with other settings or another kind of run.
        SceneError: a class has fewer images than an IPC needs, or there are no test images.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32)
    >>> out, config = tempfile.mkdtemp(), geodistill.load_config("tiny", size=32)
    >>> asked = {"methods": ["random", "kmeans"], "ipcs": [2], "protocols": ["probe"], "seeds": 1, "full": False}
    >>> [row.method for row in geodistill.compare(data, config, out=out, **asked)]
    ['random', 'kmeans']
    """
    # No self-test is made: all methods get the same scenes and are tested on real test images anyway. The sets are
    # reproducible, because they serve a table that others can repeat, and are not shared.
    config = without_self_test(config or Config()).model_copy(update={"reproducible": True})
    ordered = tuple(name for name in METHODS if name in methods)
    plan = _Plan(ordered, tuple(ipcs), _cells(protocols, networks), seeds, full)
    _check(data.train, methods, plan, config)
    check_base(config)
    bench = Bench(data, config.size)
    settings = {
        "kind": "compare",
        "config": {name: value for name, value in recorded(config).items() if name != "ipc"},
        "scenes": data.train.fingerprint(),
        "test": bench.test.fingerprint(),
        **reading_of(data.train),
    }
    with Run(Path(out), settings, command) as run:
        write_atomic(run.folder / "config.toml", to_toml(config))
        tell_of_base(data.train, config, run)
        warn_of_seen_tests(config.base, data)
        bench.store = open_store(run.folder)
        ledger = Ledger(run.folder, data.train.classes, bench.test.labels, tuple(METHODS))
        for row, predicted in _rows(plan, config, run, bench):
            ledger.enter(row, predicted)
        return ledger.rows


def _cells(protocols: Sequence[str], networks: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the (protocol, network) pairs; the probe is paired with the pretrained network only."""
    cells = [("probe", PRETRAINED)] if "probe" in protocols else []
    cells += [(p, n) for p, n in product(protocols, networks) if p != "probe"]
    for protocol, network in cells:
        check_protocol(protocol, network)
    return tuple(cells)


def _check(train: Scenes, methods: Sequence[str], plan: _Plan, config: Config) -> None:
    """Raise what is known to fail later, before the first method is run."""
    privacy = config.privacy
    check_side(config.size)
    for name in methods:
        check_method(name)
    if not (plan.methods and plan.ipcs and plan.cells):
        raise ConfigError("nothing to compare: give at least one method, IPC, protocol and network")
    if min(plan.ipcs) < 1 or plan.seeds < 1:
        raise ConfigError(f"IPC is {min(plan.ipcs)} and seeds is {plan.seeds}: both have to be at least 1")
    check_counts(train, max(plan.ipcs), privacy)
    others = [name for name in plan.methods if name != OWN]
    if privacy != "none" and others:
        raise ConfigError(f"privacy {privacy!r} is {OWN}'s alone: leave out {', '.join(others)}")
    if OWN in plan.methods:
        # Once, as it may load a describer: only the number of images in a class depends on the IPC.
        check_own(train, config.model_copy(update={"ipc": max(plan.ipcs)}))


def _rows(plan: _Plan, config: Config, run: Run, bench: Bench) -> Iterator[tuple[Row, torch.Tensor]]:
    """Yield each row with its predictions, int64 [seeds, n_test]."""
    # Loaded before the first method, so that its cost is not counted for that method. The setting `base` stays a name,
    # as the run and the package may be moved.
    load_base(Context(bench.train, config, run))
    for ipc, method in product(plan.ipcs, plan.methods):
        sets, cost = _make(method, bench.train, config.model_copy(update={"ipc": ipc}), run, plan.seeds)
        facts = {**cost, **_of_set(sets[0], bench)}
        trainings = [Training.on_set(f"{method}-ipc{ipc}", distilled) for distilled in sets]
        for tasks in _trained(trainings, plan, bench):
            yield _row(method, ipc, tasks, bench, kind=METHODS[method].kind, **facts)
    # Training on all real images takes longest and comes last; until then the columns that need it are empty.
    everything = [Training.on_scenes(FULL, bench.train, bench.size)] * plan.seeds
    for tasks in _trained(everything, plan, bench) if plan.full else ():
        yield _row(FULL, 0, tasks, bench, kind="real")


def _trained(trainings: Sequence[Training], plan: _Plan, bench: Bench) -> list[list[Task]]:
    """Return the tasks of each cell, one for each seed, after training all of them."""
    cells = [[Task(one, *cell, seed) for seed, one in enumerate(trainings)] for cell in plan.cells]
    bench.train_all(chain.from_iterable(cells))
    return cells


def _make(
    method: str, train: Scenes, config: Config, run: Run, seeds: int
) -> tuple[list[DistilledSet], dict[str, float]]:
    """Return a set for each seed (the same one if the method makes it only once) and the cost of making the first."""
    folder = run.folder / "sets" / f"{method}-ipc{config.ipc}"
    first, cost = _make_one(method, train, config, run, folder)
    if METHODS[method].kind != "real":
        return [first] * seeds, cost
    sets = [first]
    for seed in range(1, seeds):
        other = config.model_copy(update={"seed": config.seed + seed})
        sets.append(_make_one(method, train, other, run, folder.with_name(f"{folder.name}-seed{seed}"))[0])
    return sets, cost


def _make_one(
    method: str, train: Scenes, config: Config, lender: Run, folder: Path
) -> tuple[DistilledSet, dict[str, float]]:
    """Return the set and the cost of making it."""
    with Run(folder, run_settings(method, config, train), lender=lender) as run:
        write_atomic(folder / "config.toml", to_toml(config))
        distilled = make_distilled(method, Context(train, config, run)).value
        used = [run.record_of(stage) for stage in dict.fromkeys(run.used) if stage is not BASE]
    wall = sum(record["wall_seconds"] for record in used)
    return distilled, {
        "wall_seconds": round(wall, 2),
        "images_per_second": round(len(distilled) / max(wall, 0.01), 3),
        "peak_memory_mib": max(record["peak_memory_mib"] for record in used),
    }


def _of_set(distilled: DistilledSet, bench: Bench) -> dict[str, float | None]:
    """Return the nearness of a set to the real images, its FID and its KID, as fields of its rows."""
    found = bench.likeness(distilled)
    near = {"rho": found.nearness.ratio, "rho_pixel": found.nearness.pixel, "rho_feature": found.nearness.feature}
    return {**near, "nearest_similarity": found.nearest_similarity, "fid": found.fid.value, "kid": found.kid.value}


def _row(
    method: str,
    ipc: int,
    tasks: Sequence[Task],
    bench: Bench,
    *,
    kind: Kind,
    **facts: Any,
) -> tuple[Row, torch.Tensor]:
    """Return the row of a cell's tasks, one for each seed, and the predictions of each."""
    predicted = torch.stack([bench.logits(task).argmax(1) for task in tasks])
    measures = [measure(each, bench.test.labels, len(bench.test.classes)) for each in predicted]
    cell, seeds = (tasks[0].protocol, tasks[0].network), [task.seed for task in tasks]
    return summarise(method, ipc, *cell, seeds, measures, kind=kind, **facts), predicted


def comparison_tables(folder: Path) -> list[Table]:
    """Return the comparison in `folder` as rich tables, accuracies in per cent; see `evaluation.columns`.

    There is one table for each protocol and network, and one for the cost of the sets; each fits 80 columns.
    """
    table = load_table(folder)
    rows, verdicts = table.rows, {pair_key(pair): pair for pair in table.pairs}
    cells = dict.fromkeys((row.protocol, row.network) for row in rows)
    tables = [
        _accuracy_table(cell, [row for row in rows if (row.protocol, row.network) == cell], verdicts) for cell in cells
    ]
    tables[-1].caption = _CAPTION
    return [*tables, _cost_table(rows)]


def _accuracy_table(cell: tuple[str, str], rows: Sequence[Row], verdicts: Mapping[Any, dict[str, Any]]) -> Table:
    columns = [BY_FIELD[name] for name in ("oa_mean", "share_of_full", "hlr", "ior", "rho")]
    table = _table(", ".join(cell), columns)
    table.add_column(f"{OWN} against it", justify="right")
    for row in rows:
        figures = [column.text(row) + ("*" if column.field == "rho" and row.copying else "") for column in columns]
        table.add_row(*_named(row), *figures, _verdict(verdicts.get(row.key)))
    return table


def _cost_table(rows: Sequence[Row]) -> Table:
    columns = [BY_FIELD[name] for name in ("images_per_second", "wall_seconds", "peak_memory_mib")]
    table = _table("making the sets", columns)
    made = {(row.method, row.ipc): row for row in rows if row.images_per_second is not None}
    for row in made.values():
        table.add_row(*_named(row), *(column.text(row) for column in columns))
    return table


def _table(title: str, columns: Sequence[Column]) -> Table:
    table = Table(title=title, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("IPC", *(column.narrow for column in columns)):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _named(row: Row) -> tuple[str, str]:
    return row.method, str(row.ipc) if row.ipc else "all"


_CAPTION = (
    "share, HLR: of and below the full data's OA; IOR: above random real images, in points; ρ: 1 no nearer to training "
    "images than fresh real ones, 0 copies (* below 0.5); against it: points of OA, with the 95 % interval over test "
    "images and seeds"
)


def _verdict(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    points = "{:+.1f}\n({:+.1f} to {:+.1f})".format(*(100 * pair[name] for name in ("difference", "low", "high")))
    return f"{pair['verdict']}, {points}"
