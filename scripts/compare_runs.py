"""Curves of several training runs in one picture, and a line on each.

python scripts/compare_runs.py runs/plain20_digits runs/plain56_digits --output curves.png
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from fastvision.training._checkpoint import LAST, load_checkpoint
from fastvision.training._logs import EVALUATION, TRAINING, metrics_in, read_table

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("runs", nargs="+", type=Path, help="folders of fastvision train")
parser.add_argument("--output", type=Path, required=True, help="the picture, PNG")
options = parser.parse_args()

figure = Figure((9, 3.2))
losses, metrics = figure.subplots(1, 2)
for folder in options.runs:
    training, evaluation = read_table(folder / TRAINING), read_table(folder / EVALUATION)
    checkpoint = load_checkpoint(folder / LAST)
    metric = metrics_in(evaluation)[0]
    by_epoch: dict[int, list[float]] = {}
    for row in training:
        by_epoch.setdefault(int(row["epoch"] - 1e-9), []).append(row["loss"])
    means = [statistics.fmean(values) for values in by_epoch.values()]
    losses.plot([epoch + 1 for epoch in by_epoch], means, label=folder.name)
    metrics.plot([row["epoch"] for row in evaluation], [row[metric] for row in evaluation])
    metrics.set_ylabel(f"{metric} on the test data")
    print(
        f"{folder.name}: {checkpoint['seconds']:.0f} s, training loss of the last epoch "
        f"{means[-1]:.4f}, best {metric} {checkpoint['best']:.4f}"
    )
losses.set_ylabel("training loss, mean of the epoch")
losses.set_yscale("log")
losses.legend()
for axes in (losses, metrics):
    axes.set_xlabel("epoch")
    axes.grid(True, alpha=0.3)
figure.set_layout_engine("tight")
figure.savefig(options.output, dpi=100)
