"""The GPU engine on the PTX machine: whole networks, memory, graphs, budgets, errors."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import subprocess
import sys
import threading

import pytest
import timm
import torch
from networks import calibrated, images, tiny
from torch import nn

import effnet_fast
from effnet_fast import errors
from effnet_fast.bench.gpu_layers import named_options
from effnet_fast.capture import capture
from effnet_fast.cuda import expand_depthwise
from effnet_fast.engine import gpu, gpu_measure, gpu_report
from effnet_fast.engine.gpu import GpuEngine, Home
from effnet_fast.gpu import Device, cost, fat_binary
from effnet_fast.gpu.device import machine_library
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.model import Fused
from effnet_fast.network import Window
from effnet_fast.ops import gpu_step
from effnet_fast.plan import make_plan
from effnet_fast.verify import FLOORS, relative_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF = torch.float16
MODELS = ["efficientnet_b0", "tf_efficientnetv2_b0", "tf_efficientnet_lite0"]


@pytest.fixture(autouse=True)
def kernels():
    try:
        gpu_step.check_cuda()
    except errors.BackendError as error:
        pytest.skip(str(error))


def engine_of(model, size, dtype=HALF, languages=(), **changes):
    """An engine for images of size x size, on a machine of its own."""
    fused = effnet_fast.optimize(model, backend="reference", dtype=dtype, verify=False).parts()[0]
    device = Device("ptx", threads=1)
    home = Home.on(device, torch.device("cpu"), languages)
    for name, value in changes.items():
        setattr(home, name, value)
    return GpuEngine(make_plan(fused.network, (size, size)), home, dtype), fused


def outputs(engine, fused, x):
    return fused._outputs(engine.run(x))


def errors_of(model, fast, x):
    """Relative errors of a model's copy and of the stock model in x's type."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        stock = copy.deepcopy(model).to(x.dtype)(x)
    return relative_error(fast, exact), relative_error(stock, exact)


# ---- whole networks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(
            name,
            dtype,
            marks=[] if dtype == HALF or name == MODELS[0] else [pytest.mark.full],
            id=f"{name}-{dtype}",
        )
        for name in MODELS
        for dtype in DTYPES
    ],
)
def test_models_are_within_the_networks_bounds(name, dtype):
    """optimize verifies, on images of 97 x 131."""
    model = calibrated(timm.create_model(name))
    fast = effnet_fast.optimize(model, backend="ptx", dtype=dtype)
    assert fast.report.backend == "ptx"
    (parity,) = fast.report.parity
    assert parity.holds
    assert not fast.report.fallbacks


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if "lite" in name else [pytest.mark.full]) for name in MODELS],
)
def test_triton_kernels_alone(name):
    model = calibrated(timm.create_model(name))
    graph = capture(model)
    fused = Fused(model, graph, "ptx", HALF, ("triton",))
    x = images(2, 96, 96).to(HALF)
    y = fused(x)
    assert {t.language for c in fused.engine((96, 96)).choices(2) for t in c.options[0].tasks} == {
        "triton"
    }
    error, stock = errors_of(model, y, x)
    assert error <= max(1.5 * stock, FLOORS[HALF])


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b4", "tf_efficientnetv2_s", "efficientnet_es", "efficientnet_lite4",
        "mobilenetv2_100", "mixnet_s", "tinynet_e", "tf_efficientnet_b7",
    ],
)  # fmt: skip
def test_other_models(name):
    model = calibrated(timm.create_model(name))
    fast = effnet_fast.optimize(model, backend="ptx", dtype=HALF, verify=False)
    x = images(1, 96, 96).to(HALF)
    error, stock = errors_of(model, fast(x), x)
    assert error <= max(1.5 * stock, FLOORS[HALF])


# ---- half precision, block by block --------------------------------------------------------------


def test_blocks_are_in_the_report():
    model = calibrated(timm.create_model("tf_efficientnet_lite0"))
    fast = effnet_fast.optimize(model, backend="ptx", dtype=HALF)
    blocks = fast.report.blocks
    assert len(blocks) == 17  # 16 and the head
    assert blocks[0].shape == (16, 49, 66) and blocks[-1].shape == (1280, 1, 1)
    for block in blocks:
        assert 1e-5 < block.error < 1e-1 and block.largest > 0 and block.overflows == 0
    assert "17 blocks: largest error" in str(fast.report)
    assert "float16 holds 6.55e+04" in str(fast.report)
    # Errors grow with depth: a block's is not the network's.
    assert blocks[0].error < blocks[-2].error


class Wide(nn.Module):
    """Its second convolution leaves some 1e7; what is made of that is 6, or as large as before."""

    def __init__(self, clips):
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 8, 1, bias=False)
        self.last = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU6() if clips else nn.Identity()
        with torch.no_grad():
            self.down.weight.fill_(2e4)
            self.up.bias.fill_(30)
            self.last.weight.fill_(0.1 if clips else 1e-6)

    def forward(self, x):
        return self.act(self.last(self.down(self.up(x).relu()))).mean((2, 3))


def test_a_block_that_overflows_is_named(caplog):
    said = r"conv2d_1 \(8x49x66\) overflows float16, which holds 6.55e\+04: \d+ elements"
    fast = effnet_fast.optimize(Wide(clips=True).eval(), backend="ptx", dtype=HALF)
    assert [block.overflows > 0 for block in fast.report.blocks] == [True, False]
    assert re.search(said, caplog.text)
    assert "; 1 overflow" in str(fast.report)
    with pytest.raises(errors.ParityError, match=said):
        effnet_fast.optimize(Wide(clips=False).eval(), backend="ptx", dtype=HALF)
    # bfloat16 has the range.
    fast = effnet_fast.optimize(Wide(clips=False).eval(), backend="ptx", dtype=torch.bfloat16)
    assert not any(block.overflows for block in fast.report.blocks)


# ---- what a call promises ------------------------------------------------------------------------


def test_outputs_survive_the_next_call():
    model = tiny()
    fast = effnet_fast.optimize(model, backend="ptx", verify=False)
    first, second = images(2, 32, 32), images(2, 32, 32, seed=1)
    y = fast(first)
    kept = y.clone()
    assert not torch.equal(fast(second), kept)
    assert torch.equal(y, kept)
    assert torch.equal(fast(first), kept)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches(batch):
    model = tiny()
    fast = effnet_fast.optimize(model, backend="ptx", verify=False)
    x = images(batch, 32, 32)
    y = fast(x)
    assert y.shape == (batch, 10)
    if batch:
        assert relative_error(y, copy.deepcopy(model).double()(x.double())) <= 2e-6


def test_sizes_share_packed_weights():
    """SAME padding begins at another column with odd images, for which a stem is packed anew."""
    model = calibrated(timm.create_model("tf_efficientnet_lite0"))
    fast = effnet_fast.optimize(model, backend="ptx", dtype=HALF, verify=False)
    for size in (65, 64, 65):
        x = images(1, size, size).to(HALF)
        error, stock = errors_of(model, fast(x), x)
        assert error <= max(1.5 * stock, FLOORS[HALF])


def test_images_in_any_layout():
    fast = effnet_fast.optimize(tiny(), backend="ptx", verify=False)
    x = images(2, 32, 32)
    bigger = torch.full((2, 4, 33, 35), torch.nan)
    bigger[:, 1:, 1:, 3:] = x
    y = fast(x)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(fast(bigger[:, 1:, 1:, 3:]), y)


def test_one_arena_gives_the_same_bits():
    """Each value has a guarded allocation of its own on the machine; a GPU has an arena."""
    x = images(2, 64, 64).to(HALF)
    model = calibrated(timm.create_model("tf_efficientnet_lite0"))
    apart, joined = (
        outputs(*engine_of(model, 64, apart=is_apart), x)[0] for is_apart in (True, False)
    )
    assert torch.equal(apart, joined)


def test_threads_share_an_engine():
    fast = effnet_fast.optimize(tiny(), backend="ptx", verify=False)
    batches = [images(n, 32, 32, seed=n) for n in (1, 2, 3, 2)]
    expected = [fast(x) for x in batches]
    found = [None] * len(batches)

    def run(i):
        for _ in range(5):
            found[i] = fast(batches[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class WithSegment(nn.Module):
    """Something between two convolutions that no kernel does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 20, 1)

    def forward(self, x):
        y = torch.cumsum(self.first(x).relu(), 2)
        return self.second(y).mean((2, 3))


def test_maps_that_torch_sees_lie_as_the_launches_have_them():
    """12 channels of 2 bytes are no multiple of 16: their pixels begin at one all the same."""
    for channels in range(1, 20):
        spec = gpu.Spec((channels, 5, 6), HALF)
        y = gpu._output(spec, 2, {"x": torch.empty(0)})
        assert y.shape == (2, channels, 5, 6) and y.stride() == spec.strides()
        assert y.untyped_storage().nbytes() == spec.bytes(2)


class Features(nn.Module):
    """A map of 12 channels, and what is made of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 20, 1)

    def forward(self, x):
        y = self.first(x).relu()
        return y, self.second(y).relu()


def test_maps_are_outputs():
    fast = effnet_fast.optimize(Features().eval(), backend="ptx", dtype=HALF)
    for y, channels in zip(fast(images(2, 18, 20).to(HALF)), (12, 20), strict=True):
        assert y.shape == (2, channels, 9, 10)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_segments_run_in_torch():
    model = WithSegment().eval()
    fast = effnet_fast.optimize(model, backend="ptx")
    assert fast.report.operators["aten"] >= 1
    x = images(2, 18, 20)
    exact = copy.deepcopy(model).double()(x.double())
    assert relative_error(fast(x), exact) <= 2e-6


def test_it_is_a_module_like_the_others(tmp_path):
    model = tiny()
    fast = effnet_fast.optimize(model, backend="ptx", verify=False)
    assert fast.state_dict().keys() == model.state_dict().keys()
    x = images(2, 32, 32)
    y = fast(x)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(errors.StaleWeightsError):
        fast(x)
    fast.refresh()
    assert not torch.equal(fast(x), y)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), fast(x))
    again = copy.deepcopy(fast)
    assert torch.equal(again(x), fast(x))
    fast.save(tmp_path / "fast.pt")
    assert relative_error(effnet_fast.load(tmp_path / "fast.pt")(x), fast(x)) <= 2e-6


# ---- memory and graphs ---------------------------------------------------------------------------


def test_what_is_between_the_launches_is_captured():
    engine, fused = engine_of(tiny(), 32)
    x = images(2, 32, 32).to(HALF)
    y = outputs(engine, fused, x)[0]
    (native,) = engine._batches[2]
    graphs = [run._graph.nodes for run in native._runs if run.launches is not None]
    assert sum(graphs) == len(native.tasks) - sum(
        len(run.tasks) for run in native._runs if run.launches is None
    )
    assert sum(graphs) >= len(native.tasks) - 2  # all but the first and the last
    assert torch.equal(outputs(engine, fused, x)[0], y)


def test_few_batches_are_kept():
    engine, _ = engine_of(tiny(), 32)
    for batch in range(1, gpu._BATCHES_KEPT + 4):
        engine.run(images(batch, 32, 32).to(HALF))
    assert list(engine._batches) == list(range(4, gpu._BATCHES_KEPT + 4))


def test_out_of_memory_names_the_arena():
    model = effnet_fast.optimize(tiny(), backend="reference", dtype=HALF, verify=False)
    plan = make_plan(model.parts()[0].network, (64, 64))
    with Device("ptx", 1, capacity=200_000) as device:  # nothing else here uses the second one
        engine = GpuEngine(plan, Home.on(device, torch.device("cpu")), HALF)
        with pytest.raises(errors.OutOfMemoryError, match=r"batch of 64 needs an arena of [\d,]+"):
            engine.run(images(64, 64, 64).to(HALF))


# ---- budgets -------------------------------------------------------------------------------------


def report_of(name, size, batch=64, **options):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    return gpu_report.report(model, name, batch=batch, size=(size, size), **options)


@pytest.fixture(scope="module")
def b0():
    return report_of("efficientnet_b0", 224)


def check_counts(report):
    """What was counted is what was planned, within 5 %, launch by launch and in total.

    Of launches of some kB the sectors at both ends of their tensors are more than that.
    """
    for row in report.rows:
        assert row.dram_bytes == pytest.approx(row.planned_bytes, rel=0.05, abs=2000), row
    assert report.total("dram_bytes") == pytest.approx(report.total("planned_bytes"), rel=0.05)


def test_b0_keeps_its_budget(b0):
    assert b0.launches <= 56
    assert b0.total("dram_bytes") <= 17e6
    assert b0.total("l2_bytes") <= 2.5 * 17e6
    check_counts(b0)


def test_b0_at_full_throughput():
    """Modelled from counts, of an H100 at its peak rates."""
    report = report_of("efficientnet_b0", 224, batch=256, images=64)
    check_counts(report)
    assert report.to_dict()["totals"]["modelled_from_counts_images_per_second"] >= 150_000


def test_a_launch_too_many_is_noticed(b0, monkeypatch):
    """A kernel that reads its input a second time, in another launch."""
    made = gpu._Native._launches

    def twice(self, tasks, values):
        launches = made(self, tasks, values)
        return [launch for launch in launches for _ in range(2)] if len(tasks) > 9 else launches

    monkeypatch.setattr(gpu._Native, "_launches", twice)
    with pytest.raises(errors.GpuError, match=r"\d+ launches are planned, \d+ were counted"):
        report_of("efficientnet_b0", 96)


def test_bytes_of_a_launch_are_compared(b0):
    row = dataclasses.replace(b0.rows[3], dram_bytes=1.06 * b0.rows[3].planned_bytes)
    with pytest.raises(AssertionError):
        check_counts(dataclasses.replace(b0, rows=(*b0.rows[:3], row, *b0.rows[4:])))


def test_launches_fill_the_gpu(b0):
    """None above 5 % of the time leaves half of the multiprocessors without a block."""
    for row in b0.rows:
        if row.modelled_us > 0.05 * b0.total("modelled_us"):
            assert row.blocks >= b0.target.multiprocessors / 2, row


def test_gates_are_made_where_it_takes_less_time():
    """At batch 1 by the blocks that need them, where the weights that all of those read are few;
    at batch 64 all by a kernel of their own."""

    def operators(report):
        return [row.kernel.removesuffix(" (cuda)") for row in report.rows]

    small = report_of("efficientnet_b0", 224, batch=1)
    check_counts(small)
    made = operators(small)
    assert made.count("excited_pointwise_conv") + made.count("squeeze_excite") == 16
    # Blocks of B0 are ever larger.
    assert made.index("squeeze_excite") > 10 and "excited_pointwise_conv" in made[:3]
    assert "excited_pointwise_conv" not in made[made.index("squeeze_excite") :]
    for row in small.rows:  # what else there was
        if row.kernel == "squeeze_excite (cuda)":
            assert "excited_pointwise_conv (cuda)" in row.others
    large = operators(report_of("efficientnet_b0", 224, count=False))
    assert large.count("squeeze_excite") == 16


@pytest.mark.full
def test_b7_keeps_its_budget():
    report = report_of("tf_efficientnet_b7", 600)
    assert report.total("dram_bytes") <= 850e6
    assert report.total("l2_bytes") <= 2.5 * 850e6
    check_counts(report)


def test_triton_alone_keeps_its_budget():
    report = report_of("efficientnet_b0", 224, languages=("triton",), count=False)
    assert report.total("planned_bytes") <= 33e6


# ---- choice by measurement -----------------------------------------------------------------------


def test_kernels_are_chosen_by_measurement(tmp_path, monkeypatch):
    """On the machine, whose clock says nothing of a GPU; all else is as there."""
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    model, x = tiny(), images(2, 32, 32).to(HALF)
    engine, fused = engine_of(model, 32, languages=("cuda",), measures=True)
    (y,) = outputs(engine, fused, x)
    error, stock = errors_of(model, y, x)
    assert error <= max(1.5 * stock, FLOORS[HALF])
    choices = engine.choices(2)
    assert any(len(choice.options) > 1 for choice in choices)
    for choice in choices:
        assert list(choice.measured) == sorted(choice.measured)
        assert len(choice.measured) == len(choice.options) and choice.measured[0] > 0

    # Kept on disk: another process launches nothing to find out, and chooses the same.
    again, _ = engine_of(model, 32, languages=("cuda",), measures=True)
    again.home.device.take_counts()
    assert names(again.choices(2)) == names(choices)
    assert again.home.device.take_counts() == []
    # For another batch it is measured anew.
    again.choices(1)
    assert len(again.home.device.take_counts()) > len(choices)

    # What is damaged is measured again.
    for file in tmp_path.iterdir():
        file.write_bytes(b"x" + file.read_bytes())
    third, _ = engine_of(model, 32, languages=("cuda",), measures=True)
    third.choices(2)
    assert third.home.device.take_counts()


def names(choices):
    return [[option.name for option in choice.options] for choice in choices]


# EfficientNet-B0's expansion of 24 channels in front of 3 x 3.
EXPANSION = expand_depthwise.Problem.of(
    DeviceTensor(None, 0, HALF, (1, 24, 56, 56), (24 * 3136, 1, 24 * 56, 24)),
    DeviceTensor(None, 0, HALF, (1, 144, 56, 56), (144 * 3136, 1, 144 * 56, 144)),
    Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    None,
)


def cuts_of(option):
    return [(task.operator, task.cut) for task in option.tasks]


def cuts(choice):
    return list(map(cuts_of, choice.options))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_several_tilings_are_measured(at, monkeypatch):
    """Each of them is right, and the model's choice among them."""
    chosen = []

    def measure(self, steps, options, specs):
        """As if a tiling that is not the model's were the fastest."""
        fused = [option for option in options if "_depthwise" in option.tasks[0].operator]
        if len(fused) > 1:
            chosen.append(fused[1:][at % len(fused[1:])])
        return tuple(float(option not in chosen) for option in options)

    monkeypatch.setattr(gpu_measure.Measure, "__call__", measure)
    model, x = calibrated(timm.create_model("tf_efficientnet_lite0")), images(2, 48, 48).to(HALF)
    engine, fused = engine_of(model, 48, languages=("cuda",), measures=True)
    modelled, _ = engine_of(model, 48, languages=("cuda",))
    (y,) = outputs(engine, fused, x)
    error, stock = errors_of(model, y, x)
    assert error <= max(1.5 * stock, FLOORS[HALF])
    assert {option.tasks[0].operator for option in chosen} == {"expand_depthwise", "stem_depthwise"}
    pairs = list(zip(engine.choices(2), modelled.choices(2), strict=True))
    others = [(cuts(ours), cuts(by_model)) for ours, by_model in pairs if ours.options[0] in chosen]
    assert len(others) > 10
    for ours, by_model in others:
        assert by_model[0] in ours[1:]
        fused = [option for option in by_model if "_depthwise" in option[0][0]]
        assert len(fused) == 1 and fused[0] in ours[1:]
    for ours, by_model in pairs:
        named = dict(named_options(ours.options))
        assert len(named) == len(ours.options)
        for name, option in named_options(by_model.options):  # the plain name is the model's
            assert cuts_of(named[name]) == cuts_of(option)


def test_blocks_that_wait_for_each_other_or_not():
    """Of 10 multiprocessors, blocks of 100 cycles."""

    def cycles(blocks, **waits):
        return cost.cycles(blocks, 10, 100 * cost.ISSUE, **waits)

    assert cycles(30) == 300 and cycles(31) == 400
    assert cycles(20, waits=50) == 300  # one after the other
    assert cycles(20, resident=2, waits=50) == 200  # one works while the other waits
    assert cycles(20, resident=2, waits=150) == 250
    assert cycles(30, resident=2, waits=150) == 500  # the third waits alone
    assert cycles(30, resident=2, waits=150, alone=600) == 600


def test_the_tilings_to_measure():
    """The model's, and then those that take least with their waits."""
    problem, n, multiprocessors = EXPANSION, 64, 132
    every = list(expand_depthwise.tilings(n, problem, multiprocessors))
    first, *others = expand_depthwise.best_tilings(n, problem, multiprocessors, 4)
    assert first == min(every, key=lambda pair: pair[0]) and len(others) == 3
    assert len({cut for _, cut in (first, *others)}) == 4

    def waiting(cut):
        geometry = expand_depthwise.Geometry.of(cut, problem)
        return expand_depthwise._cycles(n, problem, cut, geometry, multiprocessors, waits=True)

    least = min(waiting(cut) for _, cut in every)
    assert waiting(others[0][1]) == least < waiting(first[1])
    assert [waiting(cut) for _, cut in others] == sorted(waiting(cut) for _, cut in others)
    assert expand_depthwise.best_tilings(n, problem, multiprocessors, 1) == [first]


def test_too_little_memory_to_measure(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    modelled, _ = engine_of(tiny(), 32, languages=("cuda",))
    home = Home.on(Device("ptx", 1, threads=1, capacity=1 << 20), torch.device("cpu"), ("cuda",))
    home.measures = True
    choices = GpuEngine(modelled.plan, home, HALF).choices(512)
    modelled.home.target = home.target
    pairs = zip(choices, modelled.choices(512), strict=True)
    unmeasured = [(ours, by_model) for ours, by_model in pairs if ours.measured is None]
    assert len(unmeasured) > len(choices) // 2
    assert all(cuts(ours)[0] == cuts(by_model)[0] for ours, by_model in unmeasured)
    assert "chosen by the model, not measured" in caplog.text


def test_measuring_can_be_switched_off(monkeypatch):
    """And is by default on the machine."""
    device = Device("ptx", threads=1)
    assert not Home.on(device, torch.device("cpu")).measures
    monkeypatch.setattr(device, "backend", "cuda")
    assert Home.on(device, torch.device("cpu")).measures
    monkeypatch.setenv("EFFNET_FAST_TUNE", "0")
    assert not Home.on(device, torch.device("cpu")).measures


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"dtype": torch.float64}, errors.DtypeError, "accepted by the GPU engine"),
        ({"backend": "gpu"}, errors.BackendError, "libcuda|CUDA|driver"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, error, message):
    if arguments.get("backend") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=message):
        effnet_fast.optimize(tiny(), **{"backend": "ptx", **arguments})


def test_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(errors.BackendError, match="is built without CUDA"):
        effnet_fast.optimize(tiny(), backend="gpu")


# A driver that is the machine but for one call: what is asked of a library by name is looked for in
# those that it is linked with, too.
DRIVER = """
extern "C" int cuGetProcAddress_v2(const char*, void**, int, unsigned long long, int*) { return 1; }
extern "C" %s
"""
DRIVERS = {
    "old driver": (
        "int cuDriverGetVersion(int* version) { *version = 11040; return 0; }",
        r"libcuda.so.1 is of CUDA 11.4; 12.0 or newer is needed",
    ),
    "old device": (
        "int cuDeviceGetAttribute(int* value, int which, int) "
        "{ *value = which == 75 ? 7 : which == 76 ? 5 : 32; return 0; }",
        r"sm_80 is sm_75; sm_80 or newer is needed",
    ),
    "no device": (
        "int cuDeviceGetCount(int* count) { *count = 0; return 0; }",
        r"has no device 0",
    ),
}


@pytest.mark.parametrize("name", DRIVERS)
def test_drivers_that_do_not_do(name, tmp_path):
    """One error, and a model as it was."""
    call, says = DRIVERS[name]
    source, machine = tmp_path / "driver.cpp", machine_library()
    source.write_text(DRIVER % call)
    compiler = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-Wl,--no-as-needed"]
    links = [str(machine), f"-Wl,-rpath,{machine.parent}"]
    subprocess.run(
        [*compiler, "-o", tmp_path / "libcuda.so.1", source, *links], check=True, cwd=tmp_path
    )
    code = """
import effnet_fast, torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)).eval()
before = set(vars(model))
try:
    effnet_fast.optimize(model, backend="gpu")
except effnet_fast.errors.BackendError as error:
    print(error)
assert set(vars(model)) == before and not torch.cuda.is_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, text=True, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    assert re.search(says, done.stdout), done.stdout
    assert done.stdout.count("\n") == 1


def test_a_missing_fat_binary_is_named(monkeypatch, tmp_path, caplog):
    """Of any kernel, before anything runs; Triton's kernels take over where they can."""
    for file in fat_binary.FOLDER.glob("*.fatbin"):
        if file.stem != "stem_conv":
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.setattr(fat_binary, "FOLDER", tmp_path)
    missing = f"none in CUDA C++: {tmp_path / 'stem_conv.fatbin'} is not there"
    home = Home.on(Device("ptx", threads=1), torch.device("cpu"))
    assert home.languages == ("triton",)
    assert str(home).startswith("effnet_fast PTX machine") and f"Triton; {missing}" in str(home)
    assert missing in caplog.text
    monkeypatch.setitem(gpu.CHECKS, "triton", lambda: fat_binary.path("no Triton"))
    with pytest.raises(errors.BackendError, match=re.escape(missing) + ".*none in Triton"):
        effnet_fast.optimize(tiny(), backend="ptx")
