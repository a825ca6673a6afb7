"""Training images per second of the test bench against the straightforward loop, in one run.

    python benchmarks/harness.py --data ../shared/data/aid

The straightforward loop is what a script in this field does: files, decoded by PIL, a random resized crop and flips of
each image, a DataLoader with a worker for each core, the network as its package has it, in float32. The bench trains
the same network on the same images with the same recipe, a training on each core, as it does when several seeds or
methods are asked for. Rounds of the two alternate; a row has the median of each and their ratio. Nothing is tested:
only time is taken, and that of starting (processes, compiling, first steps) is left out on both sides.
"""

import math
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import joblib
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from record import circumstances, parsed, parser, to_csv
from torch import nn
from torch.utils.data import DataLoader, Dataset

from geodistill.evaluation.protocols import BATCH
from geodistill.evaluation.workers import Job, train_side_by_side
from geodistill.networks import IMAGENET_MEAN, IMAGENET_STD, PRETRAINED, build_network
from geodistill.progress import reported_to
from geodistill.scenes import open_scenes

SIZE, IMAGES = 64, 1920
# Each round starts with steps that are not timed: memory is laid out, processes start.
WARM, TIMED, ROUNDS = 4, 24, 3
# The bench compiles a network from so many steps on, and tells about once a second how many are done: the part between
# these shares of all steps is timed, where every process trains.
BENCH_STEPS, BENCH_FROM, BENCH_TO = 100, 0.2, 0.9


def main() -> None:
    """Time both loops for each network, write the CSV file."""
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=[PRETRAINED, "convnet3"])
    args = parsed(options)
    files = sorted((args.data / "train").glob("*/*.jpg"))[:: max(1, 6000 // IMAGES)]
    to_csv([_row(network, args.data, files) for network in args.networks], "harness.csv")


def _row(network: str, data: Path, files: list[Path]) -> dict[str, str]:
    rounds = [(_bench(network, data, len(files)), _straightforward(network, files)) for _ in range(ROUNDS)]
    bench, straightforward = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    print(f"{network}: bench {bench:.0f} images/s, straightforward {straightforward:.0f}", flush=True)
    figures = {"bench": f"{bench:.0f}", "straightforward": f"{straightforward:.0f}"}
    return {"network": network, **figures, "ratio": f"{bench / straightforward:.2f}", **circumstances()}


class _Clock:
    """Images per second over the steps after the first `WARM`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, *_: int) -> None:
        self.times.append(time.perf_counter())

    def rate(self) -> float:
        """Return images per second."""
        return BATCH * (len(self.times) - WARM) / (self.times[-1] - self.times[WARM - 1])


def _bench(network: str, data: Path, count: int) -> float:
    """Return images per second of all trainings together."""
    train = open_scenes(data).train
    some = train.subset(range(0, len(train), max(1, len(train) // count)))
    pixels, labels = some.pixels(size=SIZE).numpy(), some.labels.numpy()
    protocol = "finetune" if network == PRETRAINED else "scratch"
    job = Job(protocol, network, pixels, labels, pixels[:2], len(train.classes), 0, BENCH_STEPS)
    told: list[tuple[float, int]] = []

    def tell(what: str, done: int, of: int) -> None:
        if BENCH_FROM * of <= done <= BENCH_TO * of:
            told.append((time.perf_counter(), done))

    with reported_to(tell):
        list(train_side_by_side([replace(job, seed=seed) for seed in range(joblib.cpu_count())]))
    (start, first), (end, last) = told[0], told[-1]
    return BATCH * (last - first) / (end - start)


class _Files(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.classes = sorted({path.parent.name for path in files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files[index]
        image = _augmented(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
        mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
        return (pixels.float() / 255 - mean) / std, self.classes.index(path.parent.name)


def _augmented(image: Image.Image) -> Image.Image:
    """Return a random resized crop (area 0.67 to 1, ratio 3/4 to 4/3), flipped at random."""
    area, ratio = random.uniform(0.67, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(SIZE, round(SIZE * math.sqrt(area * ratio)))
    height = min(SIZE, round(SIZE * math.sqrt(area / ratio)))
    left, top = random.randint(0, SIZE - width), random.randint(0, SIZE - height)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        image = image.transpose(flip) if random.random() < 0.5 else image
    return image


def _straightforward(network: str, files: list[Path]) -> float:
    images = _Files(files)
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=torch.get_num_threads())
    model, clock = _stock(network, len(images.classes)).train(), _Clock()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=WARM + TIMED)
    for batch, labels in loader:
        loss = F.cross_entropy(model(batch), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        clock()
        if len(clock.times) == WARM + TIMED:
            break
    return clock.rate()


def _stock(network: str, classes: int) -> nn.Module:
    """Return the network as its package or its usual definition has it, in the default memory layout."""
    if network == PRETRAINED:
        stock: nn.Module = EfficientNet.from_name(PRETRAINED, num_classes=classes)
        return stock
    built = build_network(network, classes, 0).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, layer in list(built.named_children()):
        if isinstance(layer, nn.AvgPool2d):  # ConvNet-3's own pools by a matrix product
            setattr(built, name, nn.AvgPool2d(2))
    return built  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
