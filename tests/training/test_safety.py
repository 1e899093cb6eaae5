"""What goes wrong costs the steps since the last checkpoint at most."""

from __future__ import annotations

import csv
import errno
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastvision import training
from fastvision.cli import main
from fastvision.models._registry import _ENTRIES, _Entry
from fastvision.training import _logs
from fastvision.training._checkpoint import load_checkpoint, save_checkpoint, write_whole
from fastvision.training._logs import Table, read_table

pytestmark = pytest.mark.usefixtures("no_pictures")

# the command, with steps that take their time, so that there is some to stop it in
COMMAND = """
import sys, time
import torch
torch.set_num_threads(1)
from fastvision.training import loop
step = loop._step
loop._step = lambda *arguments: (time.sleep(0.05), step(*arguments))[1]
from fastvision.cli import main
sys.exit(main(sys.argv[1:]))
"""
RECIPE = """
task = "sequence"
description = "a test"
steps = 40
batch_size = 8
log = { steps = 1, tensorboard = false }
checkpoint = { steps = 7 }
[model]
name = "transformer_encoder"
symbols = 6
width = 16
depth = 1
[data]
name = "sorting"
steps = 5
symbols = 6
length = 40
[optimizer]
name = "AdamW"
lr = 0.01
"""


class Fragile(nn.Module):
    """A model whose loss, gradient or weights are not finite from the fourth call on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 30)
        self.register_buffer("statistics", torch.zeros(3))
        self.kind = kind
        self.calls = 0

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        scores = self.layer(symbols.float()).unflatten(1, (5, 6))
        if self.calls < 4:
            return scores
        if self.kind == "loss":
            return scores * float("nan")
        if self.kind == "gradient":
            return scores + (scores * 0).sqrt()  # 0, with a slope of 0 times infinity
        self.statistics[1] = float("inf")
        return scores


@pytest.fixture
def fragile(small, monkeypatch):
    def build(kind: str):
        monkeypatch.setitem(_ENTRIES, "fragile", _Entry(Fragile, "sequence"))
        values = {"model": {"name": "fragile", "kind": kind}, "checkpoint.steps": 2}
        return small("sorting", values)

    return build


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "loss",
            r"step 4 \(epoch 0\): the loss is nan\. Its batch is of the training samples \[\d",
        ),
        ("gradient", r"step 4 \(epoch 0\): the loss is \d.*, but the norm of its gradient nan"),
        ("statistics", r"after step 4, statistics is not finite"),
    ],
)
def test_what_is_not_finite_stops_the_run(fragile, tmp_path, kind: str, message: str) -> None:
    with pytest.raises(training.NonFiniteError, match=message):
        training.train(fragile(kind), tmp_path, device="cpu")
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert checkpoint["step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_float16_goes_on_after_an_infinite_gradient(small, tmp_path, monkeypatch) -> None:
    """The scaler begins too high, skips those steps and lowers the scale."""
    recipe = small("sorting", {"amp": "fp16", "steps": 4})
    original = torch.amp.GradScaler

    def scaler(*arguments, **options):
        return original(*arguments, **options, init_scale=2.0**60)

    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    training.train(recipe, tmp_path, device="cpu")
    norms = [row["gradient_norm"] for row in read_table(tmp_path / "training.csv")]
    assert not all(math.isfinite(norm) for norm in norms)
    assert load_checkpoint(tmp_path / "last.pt")["scaler"]["scale"] < 2.0**60


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path) -> None:
    """In a process whose files may have 20 kB."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"value": 1})
    script = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from fastvision.training._checkpoint import save_checkpoint\n"
        "save_checkpoint(Path(sys.argv[1]), {'value': torch.rand(100_000)})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
    )
    assert "OSError" in result.stderr and f"{path} could not be written" in result.stderr
    assert "the older last.pt is still there" in result.stderr
    assert load_checkpoint(path)["value"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_in_a_run(small, tmp_path, monkeypatch) -> None:
    original = os.fsync
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    recipe = small("sorting", {"checkpoint.steps": 1})
    with pytest.raises(OSError, match=r"last\.pt could not be written: No space left on device"):
        training.train(recipe, tmp_path, device="cpu")
    monkeypatch.undo()
    step = load_checkpoint(tmp_path / "last.pt")["step"]
    assert 0 < step < recipe.steps
    assert not list(tmp_path.glob(".*.part"))


def test_a_log_that_cannot_be_written_names_the_file(tmp_path) -> None:
    table = Table(tmp_path / "log.csv", ("step", "loss"), 0)
    table._file = open("/dev/full", "w")  # noqa: SIM115
    table._writer = csv.DictWriter(table._file, ("step", "loss"))
    with pytest.raises(OSError, match="/dev/full could not be written: No space left on device"):
        table.add({"step": 1, "loss": 2.0})


def test_the_command_names_a_log_that_cannot_be_written(tmp_path, monkeypatch, capsys) -> None:
    def full(path, mode, **options):
        return open("/dev/full" if mode == "a" else path, mode, **options)

    monkeypatch.setattr(_logs, "open", full, raising=False)
    (tmp_path / "mine.toml").write_text(RECIPE)
    folder = str(tmp_path / "run")
    arguments = ["train", str(tmp_path / "mine.toml"), "--output", folder, "--quiet"]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert "error: /dev/full could not be written: No space left" in capsys.readouterr().err


def test_damaged_checkpoints(tmp_path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"value": torch.rand(1000)})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        write_whole(path, content)
        with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint"):
            load_checkpoint(path)
    torch.save({"value": 1}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of fastvision.training"):
        load_checkpoint(path)
    torch.save({"format": 1, "value": signal.SIGINT}, path)  # of a type that would run code
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_checkpoint(path)


def test_logs_lose_what_is_later_than_the_checkpoint(tmp_path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.1\n3,0.3\n4,0.")  # killed while it wrote
    table = Table(path, ("step", "loss"), until=2)
    table.add({"step": 3, "loss": 0.25})
    table.close()
    assert read_table(path) == [{"step": s, "loss": x} for s, x in ((1, 0.5), (2, 0.1), (3, 0.25))]


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *map(str, arguments), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "training.csv"
        if path.exists() and (rows := read_table(path)) and rows[-1]["step"] >= step:
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"step {step} did not come: {process.communicate()}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in COMMAND: the number of threads decides the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_and_interrupted(tmp_path, one_thread) -> None:
    """kill -9, then Ctrl-C in the resumed run, then the rest: the losses of a run without them."""
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training.train(training.load_recipe(path), whole, device="cpu")

    killed = start(path, "--output", broken, "--quiet")
    wait_for_step(killed, broken, 10)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    checkpoint = load_checkpoint(broken / "last.pt")["step"]
    last = read_table(broken / "training.csv")[-1]["step"]
    assert 0 < checkpoint <= last <= checkpoint + 7

    stopped = start(path, "--resume", broken, "--quiet")
    wait_for_step(stopped, broken, last + 5)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate()
    assert stopped.returncode == 130
    step = load_checkpoint(broken / "last.pt")["step"]
    assert f"stopped after step {step} by SIGINT" in output and f"--resume {broken}" in output
    assert last + 5 <= step < 40

    training.train(training.load_recipe(path), broken, resume=True, device="cpu")
    rows = [read_table(folder / "training.csv") for folder in (whole, broken)]
    assert [row["step"] for row in rows[0]] == list(range(1, 41))
    for name in ("step", "loss", "gradient_norm"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    evaluations = [(folder / "evaluation.csv").read_text() for folder in (whole, broken)]
    assert evaluations[0] == evaluations[1]


def test_a_signal_to_all_processes_of_a_group(tmp_path) -> None:
    path, folder = tmp_path / "mine.toml", tmp_path / "run"
    path.write_text("workers = 2\nevaluate_epochs = 100\n" + RECIPE)
    process = start(path, "--output", folder, "--quiet", start_new_session=True)
    wait_for_step(process, folder, 10)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)  # until no worker is left to write to them
    assert process.returncode == 143, errors
    step = load_checkpoint(folder / "last.pt")["step"]
    assert f"stopped after step {step} by SIGTERM" in output and step >= 10


def test_checkpoints_by_the_clock(small, tmp_path, monkeypatch) -> None:
    from fastvision.training import loop

    saved = []
    original = loop._Saved.save
    monkeypatch.setattr(
        loop._Saved, "save", lambda self: (saved.append(self._run.step), original(self))
    )
    training.train(small("sorting", {"checkpoint.seconds": 1e6}), tmp_path / "a", device="cpu")
    assert saved == [0, 12]
    saved.clear()
    monkeypatch.setattr(loop, "_MAX_SHARE", 1e6)  # else a slow disk has them rare
    training.train(small("sorting", {"checkpoint.seconds": 0.0}), tmp_path / "b", device="cpu")
    assert saved == list(range(13))
