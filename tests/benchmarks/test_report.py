"""The report says what the records say, and README what the report says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torchvision")
ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "benchmarks" / "results"
LIMITS = {"copy_bytes_per_second": {"1024": 1e9}, "flops_per_second": 1e9, "how": "made up"}

with_record = pytest.mark.skipif(not COMMITTED.exists(), reason="a tree without its records")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import document, plots, readme, records, report, surface, tables

    modules = {"document": document, "plots": plots, "readme": readme, "records": records}
    return SimpleNamespace(**modules, report=report, surface=surface, tables=tables)


def row(case="one", op="op", note="", **seconds):
    times = {name: {"seconds": s, "rounds": 3} for name, s in seconds.items()}
    times = {name.replace("compile", "torch.compile"): entry for name, entry in times.items()}
    return {"op": op, "case": case, "note": note, "status": "ok", "providers": times}


def record(*rows, **more):
    machine = {"device": "a CPU", "cpu": "a CPU, 2 cores, 2 threads used", "isa level": "avx2 (x)"}
    machine["date"] = "2026-01-01 10:00 UTC"
    return {"machine": machine, "quick": False, "limits": LIMITS, "rows": list(rows)} | more


@with_record
def test_readme_has_the_tables_of_the_records(bench):
    text = (ROOT / "README.md").read_text()
    for name in (*bench.readme.TABLES, *bench.surface.TABLES, "slower"):
        assert re.search(rf"<!-- table: {name} of [\w-]+ end -->", text)
    found = {name: bench.records.load(COMMITTED / name) for name in bench.readme.folders(text)}
    assert bench.readme.rewrite(text, found) == text


@with_record
@pytest.mark.parametrize("folder", sorted(p.name for p in COMMITTED.glob("*")))
def test_committed_reports_are_those_of_the_records(bench, folder, tmp_path, monkeypatch):
    committed, copy = COMMITTED / folder, tmp_path / folder
    copy.mkdir()
    for file in committed.glob("*.json"):
        shutil.copy(file, copy)
    drawn = []
    monkeypatch.setattr(bench.plots, "draw", lambda path, *_: drawn.append(path.name) or True)
    bench.report.write_report(copy)
    for name in ("report.md", "report.html"):
        assert (copy / name).read_text() == (committed / name).read_text()
    assert {path.name for path in committed.glob("*.png")} == set(drawn)


@with_record
def test_every_line_of_readme_finds_its_cases(bench):
    text = (ROOT / "README.md").read_text()
    for name, (_, columns, lines) in bench.readme.TABLES.items():
        folder = re.search(rf"<!-- table: {name} of ([\w-]+) end -->", text)[1]
        found = bench.records.load(COMMITTED / folder)
        for line in lines:
            for figure in line.figures:
                if figure[0] not in found:
                    assert "There is no record" in bench.readme.table(name, found)
                    continue
                for provider in columns.values():
                    assert bench.readme._figure(figure, found, provider) is not None, figure


@with_record
def test_every_function_in_readme_exists_and_has_its_speed(bench):
    from fastvision import ops

    text = (ROOT / "README.md").read_text()
    for name, (_, entries) in bench.surface.TABLES.items():
        folder = re.search(rf"<!-- table: {name} of ([\w-]+) end -->", text)[1]
        found = bench.records.load(COMMITTED / folder)
        for entry in entries:
            assert all(hasattr(ops, function) for function in entry.functions)
            without = entry.functions[0] in ("drop_block2d", "stochastic_depth")
            assert (bench.surface._speed(entry, found) == "-") == without, entry.names


def test_no_table_of_a_record_that_no_longer_holds(bench):
    text = bench.readme.table("models", {"models": record(remark="of an older design")})
    assert text.startswith("The record of `models` is of an older design")


def test_summary_counts_conversions_apart(bench):
    rows = [
        row("forward, contiguous", "roi_align", torchvision=8.0, cpp=2.0),
        row("forward, contiguous, large", "roi_align", torchvision=9.0, cpp=1.0),
        row("forward, channels_last", "roi_align", torchvision=100.0, cpp=1.0),
    ]
    plain, converted = bench.records.summaries({"roi_align": record(*rows)})
    assert (plain.name, plain.count, plain.least, plain.most) == ("roi_align", 2, 4, 9)
    assert plain.mean == pytest.approx(6)
    assert plain.headline is rows[1]
    assert (converted.name, converted.least) == ("roi_align, converted", 100)


def test_short_calls_are_in_microseconds(bench):
    short = row("a call", "calls", eager=12.34e-6, fastvision=5e-6)
    long = row("a model", "fuse", eager=2.0, fastvision=0.4321)
    table = bench.tables.summary_table(bench.records.summaries({"a": record(short, long)}))
    assert [line[-1] for line in table.lines[1:]] == [
        "12.3 to 5 us: a call",
        "2000 to 432 ms: a model",
    ]


def test_first_screen_starts_with_slowdowns(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.plots, "draw", lambda *_: False)
    rows = [row("fast", torchvision=2.0, cpp=1.0), row("slow", torchvision=1.0, cpp=2.0)]
    found = record(*rows)
    found["machine"]["busy"] = "7 processes"
    (tmp_path / "op.json").write_text(json.dumps(found))
    text = bench.report.write_report(tmp_path).read_text()
    places = [text.index(part) for part in ("busy machine", "0.5x", "geometric mean", "<details>")]
    assert places == sorted(places)
    assert "<td class=slow>0.5x</td>" in (tmp_path / "report.html").read_text()


def test_share_of_the_bound(bench):
    one = row(torchvision=8e-6, cpp=2e-6) | {"least_bytes": 1000, "least_flops": 10}  # 1 us
    head, *_, line = bench.tables.case_table([one], LIMITS).lines
    assert head == ["case", "provider", "time", "speed-up", "share", "bound"]
    assert line[1:5] == ["cpp", "2 us", "4x", "50 %"]
    convolution = bench.tables.case_table([one | {"op": "conv_bn_relu"}], LIMITS)
    assert convolution.lines[0][-1] == "direct-sum bound"


def test_limits_are_the_highest_of_all_runs(bench):
    slower = {"copy_bytes_per_second": {"1024": 2e9}, "flops_per_second": 5e8, "how": "made up"}
    slower["flops_per_second_of"] = {"bfloat16": 4e9}
    limits = bench.records.highest_limits([record(), record(limits=slower)])
    assert limits["copy_bytes_per_second"] == {"1024": 2e9}
    assert limits["flops_per_second"] == 1e9
    work = {"least_bytes": 0, "least_flops": 4e9}
    assert bench.records.bound_seconds(work | {"dtype": "bfloat16"}, limits) == 1
    assert bench.records.bound_seconds(work | {"dtype": "float32"}, limits) == 4


def test_html_escapes_and_folds(bench):
    document = bench.document
    table = document.Table([["case"], ["3->64 `a<b`"]])
    page = document.to_html("a & b", [document.Folded("more", [table])])
    assert "<title>a &amp; b</title>" in page
    assert "<td>3-&gt;64 <code>a&lt;b</code></td>" in page
    assert "<details><summary>more</summary>" in page


def test_pictures_fit_a_screen(bench, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    rows = [row(f"case {i}", torchvision=2.0, compile=1.5, cpp=1 + i / 40) for i in range(80)]
    assert bench.plots.draw_op(tmp_path / "op.png", "op", record(*rows))
    height, width, _ = image.imread(tmp_path / "op.png").shape
    assert height <= 900
    assert width <= 1200
    assert not bench.plots.draw_op(tmp_path / "none.png", "op", record())
