"""What the commands of the command line share: options, errors in one sentence, what is printed."""

import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand

from geodistill.errors import ConfigError, GeodistillError

console = Console()
# Seconds from which a command says how long it took.
_LONG = 10.0
# Commands that several processes can share.
_SHARED = (["distill"], ["audit"])
# Commands that keep finished parts of their work: a stage, a row, a classifier's predictions, a part of a download.
_RESUMING = (["distill"], ["compare"], ["pretrain"], ["evaluate"], ["fetch"])


def command_line() -> str:
    """Return the command as it was typed, for the record of a run."""
    return shlex.join(["geodistill", *sys.argv[1:]])


def unless(option: str, value: str, default: str) -> list[str]:
    """Return `option` and its value for a command to type; [] if it has its default.

    >>> unless("--split", "spatial", "auto")
    ['--split', 'spatial']
    """
    return [] if value == default else [option, value]


def say(text: str, style: str | None = None) -> None:
    """Print a sentence as it is: a path may hold what rich would take for markup."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


# Options that several commands have.
Data = Annotated[
    Path,
    typer.Argument(
        help="Scenes: `DATA/<split>/<class>/<image>`, `DATA/<class>/<image>` (20 % become test images), a list (CSV, "
        "Parquet or metadata.jsonl), an archive with one of these (ZIP, TAR, TAR.GZ), or the name of a fetched archive."
    ),
]
Bands = Annotated[
    str,
    typer.Option(
        help="Bands of multi-band files: one or three numbers or names, such as 4,3,2. 'rgb' takes what the files say "
        "are red, green and blue; 'all' keeps all bands (2 to 16), and the images become GeoTIFFs in the files' units."
    ),
]
Scale = Annotated[
    str,
    typer.Option(
        help="Values that become black and white: LOW,HIGH, or a pair for each band. 'auto' takes 8 bits as they are, "
        "and the 1st and 99th percentile of the training scenes for other types."
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="How DATA is split: 'auto' (its own splits, else 'hash'), 'hash' (by content), 'spatial' or "
        "'spatial:METRES' (by squares of the ground, so that neighbours stay together), 'column' (of a list), or a "
        "folder of lists such as NAME-train.txt."
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Stop if a test or validation scene is also in another part: as a file, as a picture (compressed again, "
        "resized, turned or mirrored), or on the ground. The default is a warning.",
    ),
]
Subject = Annotated[Path, typer.Argument(metavar="RUN-OR-IMAGE-FOLDER", help="A run, or a folder `<class>/<image>`.")]
Out = Annotated[Path, typer.Option(help="Run folder. The same command again continues a run that stopped.")]
Ipc = Annotated[int | None, typer.Option(help="Images per class [default: 10].")]
Size = Annotated[
    int | None, typer.Option(help="Side of the images in pixels. The compact base draws 64 and 128 [default: 64].")
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "--preset",
        help="TOML file with settings, or a preset. For `distill`: fast (for Stable Diffusion on a GPU), paper and "
        "paper-r1 (the preprint's recipe and the released code), demo, tiny. For `pretrain`: pretrain, pretrain-gpu.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting, such as finetune.steps=500; can be repeated. `geodistill settings` has all."),
]
Privacy = Annotated[
    str | None,
    typer.Option(
        help="'screen': by default no image starts from a training image, and images that are too similar to one are "
        "drawn again. 'dp': differential privacy, with --epsilon and --delta; the base must not have seen these scenes "
        "[default: none]."
    ),
]
Epsilon = Annotated[
    float | None, typer.Option(help="For --privacy dp: 1 is strict, 8 is usual. A smaller value adds more noise.")
]
Delta = Annotated[float | None, typer.Option(help="For --privacy dp: less than 1 / number of images, such as 1e-5.")]
SoftLabels = Annotated[
    bool, typer.Option("--soft-labels", help="Also store the class probabilities of each image, in the manifest.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed [default: 0].")]
Device = Annotated[
    str | None,
    typer.Option(help="Where models run: cpu, cuda, cuda:N or mps [default: cuda or mps if there is one, else cpu]."),
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of repetitions, each with another random seed.")]
Full = Annotated[bool, typer.Option(help="Also train on all real training scenes. This takes longest.")]
Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        "--networks",
        help="Classifiers: efficientnet-lite0 and efficientnet-lite2 (ImageNet weights), resnet18, convnet3, "
        "mobilenetv2, vgg16, densenet121, inception_v3 (random weights), timm:NAME with the vision extra. Several give "
        "a table across networks [default: efficientnet-lite0].",
    ),
]
Describe = Annotated[
    str | None,
    typer.Option(
        help="What describes the prototypes: 'measured' (statistics of the pixels), 'template' (class name only), a "
        "vision-language model (folder or hub name), or 'openai:URL', a server that receives training images "
        "[default: measured]."
    ),
]


@contextmanager
def told(device: str | None = None) -> Iterator[None]:
    """Show the user the message of an error raised on purpose, and nothing else.

    After Ctrl-C, say whether the same command goes on.
    """
    _refuse_company(sys.argv[1:])
    _stop_whole()
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    _quiet_libraries()
    start = time.monotonic()
    try:
        with _on_device(device):
            yield
        _tell_of_time(time.monotonic() - start)
        _end_together()
    except typer.Exit:
        _tell_of_time(time.monotonic() - start)
        _end_together()
        raise
    except GeodistillError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {plain(str(error))}", highlight=False)
        raise typer.Exit(2) from None
    except OSError as error:
        # Ours name what to do; this is for a file that nobody thought of, such as an --out that cannot be written.
        if error.filename is None:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/] {plain(str(error.filename))}: {error.strerror}", highlight=False
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        resumes = sys.argv[1:2] in _RESUMING or "--shadows" in sys.argv
        Console(stderr=True).print(f"stopped; the same command {'goes on from here' if resumes else 'begins anew'}")
        raise typer.Exit(130) from None


def _end_together() -> None:
    """Leave no process behind that others still need, if several run this command."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from geodistill.processes import end_together  # brings torch

        end_together()


def _tell_of_time(seconds: float) -> None:
    """Print how long a command took, if a user had to wait for it."""
    if seconds < _LONG:
        return
    # Not above: they bring torch.
    from geodistill.processes import processes
    from geodistill.progress import duration

    if processes().main:
        say(f"all of it took {duration(seconds)}")


def _stop_whole() -> None:
    """Make SIGTERM end this process as Ctrl-C does: its workers are stopped, not left to notice."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Signals are set in the main thread alone.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, stop)


def _refuse_company(arguments: list[str]) -> None:
    """End here when several processes were started for a command that only one can do."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and arguments[:1] not in _SHARED:
        reason = "only distill and audit run in several processes: start this without torchrun or accelerate"
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {reason}", highlight=False)
        raise typer.Exit(2)


def tell_of_busy_cores() -> None:
    """Print a hint before long work if other processes keep cores busy."""
    from geodistill.devices import told_of_busy_cores
    from geodistill.processes import processes

    # Started together, processes keep each other's cores busy.
    hint = told_of_busy_cores() if processes().count == 1 else ""
    if hint:
        say(hint)


def refuse_inside(data: Path, **written: Path | None) -> None:
    """Raise ConfigError if an option says to write into DATA, where a new folder would be taken for a class.

    `written` are the values of options by name, such as out.
    """
    for name, path in written.items():
        if path is not None and path.absolute().resolve().is_relative_to(data.absolute().resolve()):
            raise ConfigError(f"--{name} {path} is in {data}, which is only read: give a place outside")


def check_file(path: Path) -> None:
    """Raise ConfigError if no file can be written to `path`, because of what is in its place."""
    blocked = next((one for one in path.parents if one.is_file()), None)
    if blocked or path.is_dir():
        raise ConfigError(f"{path} cannot be a file: {blocked or path} is a {'file' if blocked else 'folder'}")


def check_there(what: Path) -> None:
    """Raise ConfigError if there is no `what`, before the data are read, which takes long."""
    if not what.exists():
        raise ConfigError(f"{what}: no such folder")


def plain(text: str) -> str:
    """Return `text` such that rich prints it as it is."""
    return text.replace("[", "\\[")


def _on_device(device: str | None) -> AbstractContextManager[None]:
    if device is None:
        return nullcontext()
    # Not above: it brings torch, which --help and `scenes` do without.
    from geodistill.devices import on_device

    return on_device(device)


def _quiet_libraries() -> None:
    """Hide advice that the model libraries give to their own users."""
    # The hub's client logs each attempt to reach it; our error says what came of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # One line for each odd file; what is wrong with the files as a whole is logged by `open_scenes`.
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")
    # `distill` prints at its end what this logger says.
    logging.getLogger("geodistill.self_test").setLevel(logging.ERROR)
    # Read when the libraries are imported, which not every command does.
    os.environ |= {
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="huggingface_hub")
    # Raised by diffusers' `is_torch_version`, whose answer never changes.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")


def tell_next(*command: object) -> None:
    """Print the command that most users type next."""
    say(f"next: {shlex.join(['geodistill', *map(str, command)])}")


class ManyValues(TyperCommand):
    """A command whose repeatable options take several values at once: `--ipc 1 10 50`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write `--ipc 1 10` as `--ipc 1 --ipc 10`, which is what the parser knows."""
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, list(one_by_one(args, repeatable)))


def one_by_one(args: Iterable[str], repeatable: set[str]) -> Iterator[str]:
    """Yield `args` with the name of a `repeatable` option before each of its values.

    >>> list(one_by_one(["--ipc", "1", "10"], {"--ipc"}))
    ['--ipc', '1', '--ipc', '10']
    """
    open_option, taken = "", 0
    for arg in args:
        if arg.startswith("-"):
            open_option, taken = arg if arg in repeatable else "", 0
        elif open_option:
            if taken:
                yield open_option
            taken += 1
        yield arg
