"""What int8 inference programs save, and what they cost in accuracy: against fp32 and ONNX.

    python benchmarks/int8_evaluation.py --json int8.json                      # digits
    python benchmarks/int8_evaluation.py --data DIR --json int8.json

DIR holds the official files of (Fashion-)MNIST or of CIFAR-10's binary version. A ConvNet is
trained here; ranges are calibrated on training images; accuracy is of at least 1,000 test images.
Every time is of a fresh process; the arms take turns, so compare only numbers of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training import Dataset, load_digits
from models import ModelSpec
from server_toolkit.datasets import load_dataset
from server_toolkit.datasets.catalogue import has_files

SIDE, CHANNELS = 32, 3
BATCHES, THREADS = (1, 4, 16), (1, 2)
WARM_UP_S, IMAGES_A_MEASUREMENT = 0.2, 64

Times = dict[str, dict[str, float]]
Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def load(data: Path | None, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Return training and test images, 3x32x32; grey ones fill all three channels."""
    if data is None:
        digits = load_digits(SIDE, channels=CHANNELS)
        order = rng.permutation(len(digits))
        return digits.subset(order[:-1000]), digits.subset(order[-1000:])
    if has_files("cifar10", data):
        colour = load_dataset("cifar10", data)
        return colour.train, colour.test
    grey = load_dataset("fashion_mnist", data)
    return three_channels(grey.train), three_channels(grey.test)


def three_channels(data: Dataset) -> Dataset:
    """Repeat the grey channel, and give 28x28 a black border."""
    border = ((0, 0), (0, 0), (2, 2), (2, 2))
    return Dataset(np.repeat(np.pad(data.images, border), CHANNELS, axis=1), data.labels, 10)


def pick(data: Dataset, count: int, rng: np.random.Generator) -> Dataset:
    """Return `count` examples, or all if there are fewer."""
    return data.subset(rng.permutation(len(data))[:count])


def trained(width: int, data: Dataset, epochs: int, rng: np.random.Generator) -> Any:
    """Return a network after a short training in eager PyTorch."""
    import torch

    from models.networks import build_model

    torch.set_num_threads(1)
    mean, std = data.images.mean((0, 2, 3)), data.images.std((0, 2, 3))
    model = build_model(
        ModelSpec(
            channels=CHANNELS,
            image_size=SIDE,
            classes=10,
            width=width,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
        ),
        seed=0,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(data)), len(data) // 16):
            logits = model(torch.from_numpy(data.images[batch]))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def prepare(model: Any, calibration: Dataset, folder: Path) -> dict[str, Path]:
    """Write every arm's files, by arm and batch."""
    from edge_sdk.export import inference_program
    from models.networks import flat_parameters
    from server_toolkit.release.onnx_export import export_onnx
    from server_toolkit.release.quantize import quantize_onnx

    files = {}
    for precision in ("fp32", "int8"):
        images = calibration.images if precision == "int8" else None
        for batch in BATCHES:
            files[f"program {precision} {batch}"] = path = folder / f"{precision}_{batch}.tsp"
            flat = flat_parameters(model)
            file = inference_program(
                model.spec, flat, batch=batch, precision=precision, calibration=images
            )
            file.save(path)
    fp32 = export_onnx(model)
    for precision, data in (("fp32", fp32), ("int8", quantize_onnx(fp32, calibration.images))):
        path = folder / f"{precision}.onnx"
        path.write_bytes(data)
        files |= {f"onnx {precision} {batch}": path for batch in BATCHES}
    return files


def predictor(path: Path, batch: int, threads: int) -> Predict:
    """Return the function from images `(N, C, H, W)` to logits of a file, in batches."""
    if path.suffix == ".tsp":
        from edge_sdk.runtime import ProgramFile
        from edge_sdk.runtime.classifier import Classifier

        return Classifier(ProgramFile.load(path), threads=threads).predict
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        starts = range(0, len(images), batch)
        parts = [session.run(None, {"images": images[i : i + batch]})[0] for i in starts]
        return np.concatenate(parts)

    return predict


def child(path: str, batch: int, threads: int, seconds: float) -> None:
    """Print the least and the median milliseconds an image of one arm as JSON."""
    predict = predictor(Path(path), batch, threads)
    shape = (IMAGES_A_MEASUREMENT, CHANNELS, SIDE, SIDE)
    images = np.random.default_rng(0).random(shape, np.float32)
    start, times = time.perf_counter(), []
    while (now := time.perf_counter()) < start + seconds or not times:
        predict(images)
        if now > start + WARM_UP_S:
            times.append(1e3 * (time.perf_counter() - now) / IMAGES_A_MEASUREMENT)
    print(json.dumps([min(times), float(np.median(times))]))


def measure(
    arms: dict[str, list[Any]], repeats: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Let the arms take turns, each time in a new process; returns milliseconds an image."""
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arguments in arms.items():
            command = [sys.executable, __file__, "--child", json.dumps([*arguments, seconds])]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments[-1])}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {"min_ms": min(low for low, _ in rows), "median_ms": float(np.median(rows, 0)[1])}
        for name, rows in found.items()
    }


def of_width(width: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, export, judge and time one network."""
    rng = np.random.default_rng(args.seed)
    train, test = load(args.data, rng)
    calibration = pick(train, args.calibration_images, rng)
    test = pick(test, args.test_images, rng)
    model = trained(width, pick(train, args.train_images, rng), args.epochs, rng)
    files = prepare(model, calibration, folder)
    sizes = {name.rsplit(maxsplit=1)[0]: path.stat().st_size for name, path in files.items()}
    predicted = {
        arm: predictor(files[f"{arm} 16"], 16, 1)(test.images).argmax(axis=1) for arm in sizes
    }
    right = {arm: predicted[arm] == test.labels for arm in sizes}
    arms = {
        f"{name}, {threads} thread{'s' * (threads > 1)}": [str(files[name]), batch, threads]
        for threads in THREADS
        for name in files
        for batch in [int(name.split()[-1])]
    }
    times = measure(arms, args.repeats, args.seconds)
    fp32, int8 = (times[f"program {p} 16, 1 thread"] for p in ("fp32", "int8"))
    return {
        "test_images": len(test),
        "calibration_images": len(calibration),
        "bytes": sizes,
        "accuracy": {arm: float(r.mean()) for arm, r in right.items()},
        "changed_to_wrong": int((right["program fp32"] & ~right["program int8"]).sum()),
        "changed_to_right": int((~right["program fp32"] & right["program int8"]).sum()),
        "agreement": float(np.mean(predicted["program fp32"] == predicted["program int8"])),
        "ms_an_image": times,
        "int8_speedup": fp32["min_ms"] / int8["min_ms"],
        "int8_speedup_of_medians": fp32["median_ms"] / int8["median_ms"],
        "int8_file_ratio": sizes["program int8"] / sizes["program fp32"],
        "int8_accuracy_loss_points": 100
        * float(right["program fp32"].mean() - right["program int8"].mean()),
    }


def show(width: int, result: dict[str, Any]) -> None:
    """Print one network's results."""
    print(f"\nConvNet width {width}, {CHANNELS}x{SIDE}x{SIDE}, {result['test_images']} test images")
    for arm, accuracy in result["accuracy"].items():
        print(f"  {arm:14} {accuracy:8.2%} right {result['bytes'][arm]:10,} bytes")
    wrong, right = result["changed_to_wrong"], result["changed_to_right"]
    print(
        f"  the programs agree on {result['agreement']:.2%}; int8 turned {wrong} right answers "
        f"wrong and {right} wrong ones right"
    )
    print("  arm, batch, threads             min ms an image   median")
    for name, times in result["ms_an_image"].items():
        print(f"  {name:32}{times['min_ms']:13.4f}{times['median_ms']:11.4f}")
    for key in (
        "int8_speedup",
        "int8_speedup_of_medians",
        "int8_file_ratio",
        "int8_accuracy_loss_points",
    ):
        print(f"  {key} = {result[key]:.3f}")


def main() -> None:
    """Run all widths, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with official files (default: digits)")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--train-images", type=int, default=4000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--calibration-images", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="processes an arm")
    parser.add_argument("--seconds", type=float, default=1.0, help="a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # torch's notices about its own code
    if args.child:
        child(*json.loads(args.child))
        return
    results: dict[str, Any] = {
        "machine": platform.machine(),
        "data": "digits" if args.data is None else args.data.name,
    }
    for width in args.widths:
        with tempfile.TemporaryDirectory() as folder:
            results[f"width_{width}"] = result = of_width(width, args, Path(folder))
        show(width, result)
        if width == args.widths[0]:
            results |= {key: value for key, value in result.items() if key.startswith("int8_")}
        if args.json:
            args.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
