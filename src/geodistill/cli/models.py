"""Commands on classifiers: train one, write it in another format, measure it, use it."""

from pathlib import Path
from typing import Annotated

import typer

from geodistill.cli.options import (
    Device,
    Seed,
    Split,
    check_file,
    console,
    refuse_inside,
    say,
    tell_next,
    tell_of_busy_cores,
    told,
)

app = typer.Typer()

_Model = Annotated[Path, typer.Argument(help="Folder that `geodistill train` wrote.")]
_Any = Annotated[Path, typer.Argument(help="Folder that `geodistill train` wrote, or an exported file.")]
_Labelled = Annotated[
    Path,
    typer.Argument(
        metavar="SET",
        help="A run, a distilled set, or any labelled images: `<class>/<image>` (all of them), or "
        "`<split>/<class>/<image>` (the training part alone).",
    ),
]


@app.command(epilog="Example: **geodistill train runs/aid --network efficientnet-lite0 --out models/aid**")
def train(
    subject: _Labelled,
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    network: Annotated[
        str,
        typer.Option(
            help="efficientnet-lite0 and efficientnet-lite2 (start from ImageNet weights), mobilenetv2, resnet18, "
            "convnet3, vgg16, densenet121, inception_v3 (random weights), timm:NAME with the vision extra."
        ),
    ] = "efficientnet-lite0",
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels [default: the set's, else 64].")
    ] = None,
    bands: Annotated[str, typer.Option(help="As in `distill`, for images that are no distilled set.")] = "rgb",
    scale: Annotated[str, typer.Option(help="As in `distill`, for images that are no distilled set.")] = "auto",
    seed: Seed = None,
    licence: Annotated[
        str, typer.Option("--license", help="Licence of the training data, for the model card [default: the set's].")
    ] = "",
    device: Device = None,
) -> None:
    """Train a classifier on a distilled set, or on any labelled images.

    OUT gets the weights (safetensors), the class map, the preprocessing and a model card. Networks with ImageNet
    weights are fine-tuned, all others are trained from random weights, as `evaluate` does.
    """
    with told(device):
        refuse_inside(subject, out=out)
        from geodistill.commands.train import train as train_model

        tell_of_busy_cores()
        done = train_model(
            subject, network, out=out, size=size, bands=bands, scale=scale, seed=seed or 0, licence=licence
        )
        say(f"{network}, {len(done.about.classes)} classes, trained on {done.about.trained_on}")
        say(f"model: {out}   its card: {out / 'README.md'}")
        tell_next("export", out, "--to", "onnx")


@app.command(epilog="Example: **geodistill export models/aid --to onnx-int8 --calibrate runs/aid**")
def export(
    model: _Model,
    to: Annotated[
        str, typer.Option(help="onnx, onnx-int8 (8-bit integers), torchscript, or litert (the former TFLite).")
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file [default: one in MODEL, where `bench` finds it].")] = None,
    raw_input: Annotated[
        bool,
        typer.Option(
            "--raw-input",
            help="Put the preprocessing into the graph: the input is uint8 [n, size, size, bands] (RGB, unless the "
            "model takes other bands) instead of normalised float32 [n, bands, size, size].",
        ),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="For onnx-int8: the set that the model was trained on. It sets the ranges of the integers."),
    ] = None,
) -> None:
    """Write a trained classifier in another format, with any number of images per call (litert: one).

    The file's metadata have the classes, the preprocessing and the licence. Its logits are compared with the model's: a
    file that differs by more than 0.001 is refused. 8-bit integers differ; `bench` measures what that costs.
    """
    with told():
        from geodistill.commands.export import export as export_model

        done = export_model(model, to, out=out, takes="uint8" if raw_input else "float", calibrate=calibrate)
        say(f"{done.path}: {done.size / 1e6:.2f} MB")
        images = "calibration" if to == "onnx-int8" else "random"
        say(
            f"against the model, on {done.images} {images} images: logits differ by at most {done.largest:.2g}, "
            f"{done.same:.1%} get the same class"
        )
        # `bench` measures the files in MODEL.
        if out is None:
            tell_next("bench", model, "--data", "DATA")
        else:
            tell_next("predict", done.path, "FOLDER", "--out", "classes.csv")


@app.command(epilog="Example: **geodistill bench models/aid --data ~/AID --csv bench.csv**")
def bench(
    model: _Model,
    data: Annotated[
        Path | None, typer.Option(help="Real scenes with the model's classes. Accuracy is measured on their test part.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this CSV file.")] = None,
    split: Split = "auto",
) -> None:
    """Measure a classifier and the files exported beside it: size, latency, memory, and accuracy on real scenes.

    Latency is for one image at a time on the CPU, the median and the 95 % bound of 200 runs, with one thread and with
    all. Memory is the peak of a process that does nothing else.
    """
    with told():
        from geodistill.commands.bench import bench as measure
        from geodistill.commands.bench import bench_table, write_csv
        from geodistill.evaluation.classifier import Classifier
        from geodistill.scenes import open_scenes

        # Measuring takes long: an output that cannot be written is told before.
        if csv is not None:
            check_file(csv)
        tell_of_busy_cores()
        reading = Classifier.load(model).about.reading if data else None
        rows = measure(model, open_scenes(data, split=split, reading=reading) if data else None)
        console.print(bench_table(rows))
        if csv is not None:
            write_csv(rows, csv)
            say(f"table: {csv}")
        tell_next("predict", model, "FOLDER", "--out", "classes.csv")


@app.command(epilog="Example: **geodistill predict models/aid scene.tif --tile 256 --out map.tif**")
def predict(
    model: _Any,
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|RASTER", help="Images, with subfolders, or a GeoTIFF, JPEG 2000 or VRT.")
    ],
    out: Annotated[Path, typer.Option(help="CSV file for a folder, GeoTIFF for a raster.")],
    tile: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side in raster pixels of the squares that are classified. They should show as much ground as the "
            "training scenes [default: the side of the model's images].",
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Raster pixels between tiles [default: as many as --tile].")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes in each row of the CSV file, the most probable first.")] = 1,
    bands: Annotated[str | None, typer.Option(help="As in `distill` [default: the model's].")] = None,
    scale: Annotated[str | None, typer.Option(help="LOW,HIGH as in `distill` [default: the model's].")] = None,
    device: Device = None,
) -> None:
    """Classify the images of a folder, or map the classes of a raster of any size.

    A map has one pixel for each tile, with the raster's georeference, a colour table, and the names of the classes as
    tags. A tile gets nodata if less than half of it is measured. Memory does not depend on the raster's size.
    """
    with told(device):
        from geodistill.commands.predict import predict as classify

        done = classify(model, source, out=out, tile=tile, stride=stride, top=top, bands=bands, scale=scale)
        for name, count in sorted(done.counts.items(), key=lambda one: -one[1])[:10]:
            if count:
                say(f"{count:>8,} {name}")
        if done.unreadable:
            say(f"{done.unreadable} images were unreadable and have no row")
        say(f"written: {done.path}")
