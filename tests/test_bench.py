"""The benchmarks' harness, and the GPU benchmark on the PTX machine."""

import csv
import itertools
import json
import multiprocessing
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_model

from effnet_fast import errors
from effnet_fast.bench import (
    coverage,
    cpu,
    cpu_table,
    gpu,
    gpu_layers,
    gpu_models,
    harness,
    peers,
    shapes,
    stock,
)
from effnet_fast.bench.harness import Budget, Outcome, Results, Times, compare, interleaved
from effnet_fast.cli import main
from effnet_fast.engine import reference
from effnet_fast.ops import gpu_step

TINY = ("--backend", "ptx", "--tiny")
(LITE0,) = gpu.TINY


@pytest.fixture
def machine_kernels():
    try:
        gpu_step.check_cuda()
    except errors.BackendError as error:
        pytest.skip(str(error))


# ---- times ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=40))
def test_percentiles(seconds):
    times = Times.of(seconds)
    expected = np.percentile(seconds, (10, 50, 90))
    np.testing.assert_allclose((times.p10, times.median, times.p90), expected, rtol=1e-9)
    assert times.samples == len(seconds)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True))
def test_samples_are_taken_in_turns(names):
    order = []

    def sample(name):
        order.append(name)
        return 1.0 + len(order)

    times = interleaved({n: lambda n=n: sample(n) for n in names}, seconds=0)
    assert order == names * (harness.LEAST_SAMPLES + 1)
    for i, name in enumerate(names):  # without the first of each
        taken = [1.0 + (turn * len(names) + i + 1) for turn in range(1, harness.LEAST_SAMPLES + 1)]
        assert times[name] == Times.of(taken)


def test_the_wall_clock_counts_every_run():
    runs = itertools.count()
    sample = harness.wall_clock(lambda: next(runs))
    assert sample() > 0 and sample() > 0
    assert next(runs) == 2


# ---- contenders ----------------------------------------------------------------------------------


def clock(run):
    return lambda: float(run())


def contenders(**values):
    """Each returns its value, an output and in this clock its time."""

    def make(value):
        if isinstance(value, BaseException):
            raise value
        return lambda: value

    return {name: lambda v=v: make(v) for name, v in values.items()}


def test_contenders_that_are_wrong_or_fail_are_named_and_not_timed():
    made = contenders(right=1.0, wrong=3.0, nan=float("nan"), broken=ImportError("no\nsuch thing"))
    found = compare(made, lambda y: abs(y - 1), 0.5, clock, 0.0, Budget(60))
    assert list(found) == list(made)
    assert found["right"].times == Times(1.0, 1.0, 1.0, harness.LEAST_SAMPLES)
    assert found["right"].skipped is None
    assert found["wrong"].skipped == "wrong: its error is 2.0e+00, the bound 5.0e-01"
    assert found["nan"].skipped.startswith("wrong")
    assert found["broken"] == Outcome(skipped="ImportError: no")
    assert all(found[n].times is None for n in ("wrong", "nan", "broken"))


def test_what_would_take_too_long_is_left_out():
    made = contenders(short=1.0, long=1.0)
    found = compare(made, lambda y: 0.0, 0.5, clock, 0.0, Budget(60), {"long": 61.0, "short": 10.0})
    assert found["long"] == Outcome(skipped=harness.OUT_OF_TIME)
    assert found["short"].times is not None
    assert not harness.is_complete(harness.outcome_rows(found))
    del found["long"]
    assert harness.is_complete(harness.outcome_rows(found))


def test_without_a_clock_nothing_is_timed():
    found = compare(contenders(a=1.0), lambda y: 0.25, 0.5, None, 0.0, Budget(60))
    assert found["a"].error == 0.25 and found["a"].setup > 0
    assert found["a"].times is None and found["a"].skipped is None


def test_an_interrupt_is_no_failure():
    with pytest.raises(KeyboardInterrupt):
        compare(contenders(a=KeyboardInterrupt()), float, 0.5, clock, 0.0, Budget(60))


def test_table_of_outcomes():
    outcomes = harness.outcome_rows(
        {
            "effnet_fast: a": Outcome(Times.of([2e-3]), 1e-3, 1.0),
            "eager": Outcome(Times.of([5e-3]), 1e-3, 1.0),
            "other": Outcome(skipped="not here"),
        }
    )
    lines = harness.outcome_table(outcomes, batch=10)
    assert "2,000.0" in lines[1] and "5,000" in lines[1] and "1.00x" in lines[1]
    assert "2.50x" in lines[2]
    assert lines[3].endswith("not here")


# ---- results -------------------------------------------------------------------------------------

HEAD = {"machine": {"name": "a", "memory": 5}, "dtype": "float16"}


def test_results_are_gone_on_with(tmp_path):
    path = tmp_path / "results.json"
    Results(path, HEAD).add("first", {"x": (1, 2)})
    results = Results(path, HEAD)
    assert results.rows == {"first": {"x": [1, 2]}}
    results.add("second", 3)
    assert Results(path, HEAD).rows == {"first": {"x": [1, 2]}, "second": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "head, message",
    [
        ({**HEAD, "machine": {"name": "a", "memory": 6}}, "another machine: memory 5, and here 6"),
        ({**HEAD, "more": 1}, "another more: None, and here 1"),
        ({"machine": HEAD["machine"]}, "another dtype: 'float16', and here None"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path, head, message):
    path = tmp_path / "results.json"
    Results(path, HEAD).add("first", 1)
    before = path.read_bytes()
    with pytest.raises(errors.ArgumentError, match=message):
        Results(path, head)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 0, "head": {}, "rows": {}}'])
def test_what_is_no_file_of_results_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(errors.ArgumentError, match=r"no file of results|format 0"):
        Results(path, HEAD)
    assert path.read_text() == text


def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path):
    with pytest.raises(errors.ArgumentError, match="is no folder"):
        Results(tmp_path / "no" / "results.json", HEAD)


def test_a_row_that_cannot_be_written_costs_none(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results = Results(path, HEAD)
    results.add("first", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(errors.ArgumentError, match="No space left"):
        results.add("second", 2)
    monkeypatch.undo()
    assert Results(path, HEAD).rows == {"first": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


# ---- the GPU benchmark ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0():
    """Its engine on the machine, in float16."""
    try:
        gpu_step.check_cuda()
    except errors.BackendError as error:
        pytest.skip(str(error))
    from effnet_fast.optimize import optimize

    model = gpu_models.stock_model(LITE0)
    (part,) = optimize(model, dtype=torch.float16, backend="ptx", verify=False).parts()
    return part.engine((64, 64))


def test_stock_steps_are_the_steps(lite0):
    """In float64, against the operators' references."""
    plan = lite0.plan
    for step in {step.operator: step for step in plan.steps}.values():
        step = stock.widened(step)
        values = {
            name: torch.randn(2, *plan.sizes[plan.network.aliases.get(name, name)]).double()
            for name in step.reads()
        }
        y = stock.stock_steps([step])(values)
        reference.run_step(step, values, "reference")
        for name, found in zip(step.makes(), y, strict=True):
            torch.testing.assert_close(found.reshape(values[name].shape), values[name])


STEM_DEPTHWISE = (
    "stem_depthwise x=3x23x17 mid=8 mid_act=swish stem_k=3x3 stem_s=2x2 stem_p=1,1,1,1 "
    "k=5x3 s=2x1 d=1x2 p=2,2,2,2 act=relu6 sums"
)


def test_a_shape_is_that_of_the_step_that_it_makes():
    lines = (shapes.FOLDER / "efficientnet_b0.txt").read_text().splitlines()[1:]
    texts = {line.split(" ", 2)[1]: line for line in lines}  # one of each operator
    assert "stem_depthwise" in texts
    for line in (*texts.values(), f"2 {STEM_DEPTHWISE}"):
        shape = shapes.Shape.parse(line)
        assert line == f"{shape.times} {shape}"
        (made,) = shapes.shapes_of(shape.plan())
        assert str(made) == str(shape)


def test_a_stem_and_its_depthwise_convolution_in_stock_layers():
    """In float64, against the operator's reference; each has its own window."""
    plan = shapes.Shape.parse(f"1 {STEM_DEPTHWISE}").plan()
    step = stock.widened(next(plan.steps))
    values = {"x": torch.randn(2, 3, 23, 17).double()}
    y = stock.stock_steps([step])(values)
    reference.run_step(step, values, "reference")
    for name, found in zip(step.makes(), y, strict=True):
        torch.testing.assert_close(found, values[name])
    between, behind = 12 * 9, 6 * 9
    assert cpu.costs(plan, step) == {
        "macs": 27 * 8 * between + 15 * 8 * behind,
        "bytes": 4 * (3 * 23 * 17 + 8 * behind + 8 + 27 * 8 + 15 * 8),
    }


def test_layers_of_a_kind_are_measured_once(lite0):
    found = gpu_layers.layers(lite0, 2)
    assert len({layer.name for layer in found}) == len(found)
    assert sum(layer.repeats for layer in found) == len(lite0.choices(2))


def test_a_wrong_kernel_is_noticed(lite0, monkeypatch):
    """Of a layer whose weights are not the network's."""
    (layer,) = (x for x in gpu_layers.layers(lite0, 1) if x.name.startswith("classifier"))
    place = gpu_models.Place.named("ptx", torch.float16)
    bench = gpu_layers.LayerBench(layer, 1, place)
    option = layer.choice.options[0]
    assert bench.error(bench.option(option)()) < 1e-3
    bench.exact[0].neg_()
    assert bench.error(bench.option(option)()) > 1


def test_it_runs_on_the_machine(machine_kernels, tmp_path, capsys):
    """One of each operator and a model, two contenders; the second time nothing is done again."""
    path = tmp_path / "results.json"
    arguments = [
        *TINY, "--sections", "sanitizer", "models", "operators", "--output", str(path),
        "--contenders", "effnet_fast", "eager",
    ]  # fmt: skip
    assert gpu.main(arguments) == 0
    printed = capsys.readouterr()
    assert f"model {LITE0} 64 batch 2" in printed.err
    rows = json.loads(path.read_text())["rows"]
    outcomes = [row["outcomes"] for row in rows.values() if "outcomes" in row]
    assert len(outcomes) >= 6
    for row in outcomes:
        assert "eager" in row and any(name.startswith("effnet_fast") for name in row)
        assert all(o["times"] is None and o["skipped"] is None for o in row.values())
        assert all(0 < o["error"] < 0.1 for o in row.values())
    assert gpu.main(arguments) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out == printed.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*TINY, "--models", "resnet18"], "--models has 'resnet18'; accepted: tf_efficientnet"),
        ([*TINY, "--output", "/no/such/file.json"], "is no folder"),
        (["--backend", "gpu"], "libcuda.so.1"),
    ],
)
def test_what_cannot_be_measured_is_refused(machine_kernels, capsys, arguments, message):
    if "gpu" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.full
def test_all_of_it_runs_on_the_machine(machine_kernels, capsys):
    """With torch.compile and the tests that are marked gpu: minutes."""
    assert gpu.main([*TINY]) == 0
    out = capsys.readouterr().out
    assert "tests: " in out and " passed" in out
    assert "compile max-autotune" in out


def test_times_of_a_clock_are_reported(lite0, monkeypatch):
    """What a GPU's clock would do, with one that counts."""
    ticks = itertools.count(1)
    monkeypatch.setattr(harness, "LEAST_SAMPLES", 1)
    monkeypatch.setattr(gpu_layers, "SECONDS", 0)
    (layer,) = (x for x in gpu_layers.layers(lite0, 1) if x.name.startswith("classifier"))
    place = gpu_models.Place(
        "ptx", lite0.home.device, torch.device("cpu"), torch.float16,
        lambda run: lambda: (run(), next(ticks))[1] * 1e-6,
    )  # fmt: skip
    row = gpu_layers.layer_row(layer, 1, place, ("effnet_fast", "eager"), Budget(60))
    medians = [o["times"]["median"] for o in row["outcomes"].values()]
    assert len(medians) == 3 and statistics.median(medians) > 0
    assert "1.00x" in "\n".join(harness.outcome_table(row["outcomes"], 1))


def test_the_model_beside_what_was_measured(lite0):
    """Results of a GPU that takes twice as long as the model says, and thrice for what it takes."""
    found, rows = gpu_layers.layers(lite0, 1), {}
    for layer in found:
        options = list(gpu_layers.named_options(layer.choice.options))
        times = {
            f"effnet_fast: {name}": {"times": {"median": (2 + (at == 0)) * option.seconds}}
            for at, (name, option) in enumerate(options)
        }
        rows[f"layer {layer.name}"] = {"outcomes": times}
    head, *ratios, _, last = gpu_model.compared(rows, "layer", found)
    assert "measured / modelled" in head
    assert {line.split()[-1] for line in ratios} == {"2.00", "3.00"}
    layers, chosen, fastest = (float(last.split()[at].replace(",", "")) for at in (0, 2, 8))
    assert layers == sum(layer.repeats for layer in found)
    assert 0 < fastest < chosen
    with pytest.raises(errors.ArgumentError, match="no layer of 'other'"):
        gpu_model.compared(rows, "other", found)


# ---- on a CPU, beside other runtimes -------------------------------------------------------------

CELL = {
    "source": "timm", "name": "efficientnet_lite0", "size": (64, 48), "batch": 2, "threads": 1,
    "seconds": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def cell():
    return cpu.measure(**CELL, contenders=("effnet_fast", "eager"))


def test_contenders_run_in_processes_of_their_own(cell):
    assert cell["model"] == f"{CELL['source']}:{CELL['name']}"
    for outcome in cell["outcomes"].values():
        assert outcome["skipped"] is None and outcome["error"] <= cpu.BOUND
        assert 0 < outcome["times"]["p10"] <= outcome["times"]["p90"]
    assert all(value > 0 for value in cell["limits"].values())
    assert not multiprocessing.active_children()


def test_steps_account_for_all_multiply_adds(cell):
    """Of the model as another counts them."""
    model = coverage.build("timm", CELL["name"])
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *CELL["size"]))
    assert 2 * cell["macs"] == counter.get_total_flops()
    assert all(step["seconds"] > 0 and step["bytes"] > 0 for step in cell["steps"])


def test_a_limit_that_cannot_be_had_is_an_error(monkeypatch):
    monkeypatch.setitem(peers.LIMITS, "disk", peers.copy)  # which the other process does not know
    with pytest.raises(errors.BackendError, match="disk, a limit of this machine, can't be had"):
        cpu.measure(**CELL | {"seconds": 0.1}, contenders=("eager",))


def test_a_runtime_that_is_not_there_is_a_row(cell, monkeypatch):
    monkeypatch.setitem(peers.CONTENDERS, "fastest", peers.eager)  # there it is not
    row = cpu.measure(**CELL, contenders=("fastest", "eager"))
    assert row["outcomes"]["fastest"]["skipped"] == "PeerError: KeyError: 'fastest'"
    assert row["outcomes"]["eager"]["times"]
    assert "KeyError" in "\n".join(cpu.describe(row))


def test_a_process_that_dies_is_an_error(tmp_path):
    case = peers.Case("timm", CELL["name"], CELL["size"], 1, 1, tmp_path)
    peer = peers.Peer("eager", case)
    peer._process.kill()
    with pytest.raises(peers.PeerError, match="its process ended with -9"):
        peer.sample()
    peer.close()


def test_bench_writes_what_it_prints(tmp_path, capsys):
    files = ["--output", str(tmp_path / "cpu.json"), "--csv", str(tmp_path / "cpu.csv")]
    sizes = ["--model", "timm:efficientnet_lite0", "--size", "64", "--seconds", "0.1"]
    assert main(["bench", *sizes, "--peers", "effnet_fast", *files]) == 0
    out = capsys.readouterr().out
    assert "of the sgemm rate" in out and "expand_depthwise" in out
    ((name, row),) = json.loads((tmp_path / "cpu.json").read_text())["rows"].items()
    assert name == "timm:efficientnet_lite0 64 b1 t1" and row["outcomes"]["effnet_fast"]["times"]
    (line,) = csv.DictReader((tmp_path / "cpu.csv").open())
    assert float(line["median"]) == row["outcomes"]["effnet_fast"]["times"]["median"]
    assert "effnet_fast" not in "\n".join(cpu_table.summary({name: row}))  # nothing beside it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "fastest"], "--peers has 'fastest'; accepted: effnet_fast, eager, "),
        (["--model", "b0"], "--model is 'b0'; accepted: source:name with a source of "),
        (["--threads", "0"], "--threads is 0; accepted: 1 or more"),
        (["--size", "0"], "--size is 0; accepted: 1 or more"),
        (["--seconds", "nan"], "--seconds is nan; accepted: more than 0"),
        (["--csv", "nowhere/a.csv"], "--csv is nowhere/a.csv: nowhere is no folder; accepted: "),
    ],
)
def test_bench_refuses(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_table_refuses_an_unknown_runtime(capsys):
    assert cpu_table.main(["--peers", "fastest"]) == 2
    assert "--peers has 'fastest'; accepted: effnet_fast, eager, " in capsys.readouterr().err
