"""What a GPU has to show. Marked gpu: with EFFNET_FAST_GPU_TESTS=ptx the PTX machine stands in."""

import copy
import dataclasses
import gc
import os
import threading

import gpu_cases as cases
import pytest
import timm
import torch
from networks import Scaled, calibrated, images, tiny
from test_gpu_mutants import targets

import effnet_fast
from effnet_fast import errors, ops
from effnet_fast.cuda import expand_depthwise, pointwise_conv
from effnet_fast.gpu import Device
from effnet_fast.verify import FLOORS, relative_error

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF = torch.float16
STANDS_IN = os.environ.get("EFFNET_FAST_GPU_TESTS") == "ptx"


@pytest.fixture(autouse=True)
def gpu():
    if not STANDS_IN and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def torch_gpu():
    """A GPU that torch has too."""
    if STANDS_IN:
        pytest.skip("torch has no streams on the PTX machine")
    return torch.device("cuda", 0)


def device():
    return Device("ptx", threads=1) if STANDS_IN else Device("cuda")


def optimized(model, **options):
    """The model on the GPU, or on the machine, and where its images are."""
    if STANDS_IN:
        return effnet_fast.optimize(model, backend="ptx", **options), torch.device("cpu")
    there = torch.device("cuda", 0)
    return effnet_fast.optimize(model.to(there), backend="gpu", **options), there


# ---- kernels -------------------------------------------------------------------------------------


def kernels():
    """(name, cases): the launches that take every path through each kernel."""
    for target in targets():
        yield str(target), target.cases
    for dtype in DTYPES:
        for variant in expand_depthwise.variants(dtype):
            name = "-".join(("expand_depthwise", *map(str, variant), str(dtype)))
            yield name, lambda v=variant, d=dtype: cases.expand_cases(*v, d)
        for cut in pointwise_conv.variants(dtype):
            for gated in (False, True):
                name = f"pointwise_conv{'_gated' * gated}_{cut.m}x{cut.n}-{dtype}"
                yield name, lambda c=cut, g=gated, d=dtype: cases.pointwise_cases("cuda", d, c, g)
        yield f"pointwise_conv_excited-{dtype}", lambda d=dtype: cases.excited_cases(d)
    for dtype in DTYPES[1:]:
        yield f"stem_depthwise-{dtype}", lambda d=dtype: cases.stem_cases(d)


@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in kernels()])
def test_kernels(made):
    """The launches of the catalogue's tests."""
    with device() as there:
        for case in made():
            placed = {name: operand.place(there) for name, operand in case.operands.items()}
            own = there.attributes
            there.attributes = own | dict(case.attributes)
            launch = case.launch(there, placed)
            there.attributes = own
            there.launch(launch)
            there.synchronize()
            for name, operand in case.operands.items():
                if operand.expected is not None:
                    operand.check(placed[name].memory)


def test_a_case_can_fail():
    """Of a kernel whose grid has a block less."""
    with device() as there:
        case = next(cases.expand_cases(3, 1, "wide", 3, HALF))
        placed = {name: operand.place(there) for name, operand in case.operands.items()}
        launch = case.launch(there, placed)
        assert launch.grid[0] > 1
        there.launch(dataclasses.replace(launch, grid=(launch.grid[0] - 1, *launch.grid[1:])))
        there.synchronize()
        with pytest.raises(AssertionError):
            for name, operand in case.operands.items():
                if operand.expected is not None:
                    operand.check(placed[name].memory)


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0", "efficientnet_b0", "tf_efficientnetv2_b0", "efficientnet_b4",
        "mixnet_s", "mobilenetv3_large_100",
    ],
)  # fmt: skip
def test_models(name, dtype):
    """optimize verifies."""
    if STANDS_IN and (name, dtype) != ("tf_efficientnet_lite0", HALF):
        pytest.skip("the PTX machine runs this in test_gpu_engine.py")
    fast, _ = optimized(calibrated(timm.create_model(name)), dtype=dtype)
    assert fast.report.parity[0].holds
    assert fast.report.backend in ("gpu", "ptx")


def test_tensors_that_a_graph_holds_or_makes_are_on_the_models_device():
    there = torch.device("cpu" if STANDS_IN else "cuda")
    model = Scaled(there).eval()
    fast, _ = optimized(model)
    x = images(3, 40, 40).to(there)
    with torch.no_grad():
        assert relative_error(fast(x), model.double()(x.double())) <= FLOORS[torch.float32]


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_batches(batch):
    model = tiny()
    exact = copy.deepcopy(model).double()
    fast, there = optimized(model, verify=False)
    x = images(batch, 32, 32)
    y = fast(x.to(there)).cpu()
    assert y.shape == (batch, 10)
    if batch:
        assert relative_error(y, exact(x.double())) <= FLOORS[torch.float32]


def test_the_same_bits_every_time():
    fast, there = optimized(tiny(), dtype=HALF, verify=False)
    x = images(5, 40, 36).to(there, HALF)
    first = fast(x).clone()
    for _ in range(5):
        assert torch.equal(fast(x), first)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), first)


def test_threads_share_a_model():
    fast, there = optimized(tiny(), verify=False)
    batches = [images(n, 32, 32, seed=n).to(there) for n in (1, 2, 3, 2)]
    expected = [fast(x) for x in batches]
    found = [None] * len(batches)

    def run(i):
        for _ in range(20 if not STANDS_IN else 2):
            found[i] = fast(batches[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- with torch's streams ------------------------------------------------------------------------


def test_streams_run_side_by_side(torch_gpu):
    """The memory between launches is one: a stream waits for the other's use of it."""
    fast, _ = optimized(calibrated(timm.create_model("tf_efficientnet_lite0")), verify=False)
    batches = [images(8, 128, 128, seed=seed).to(torch_gpu) for seed in range(4)]
    expected = [fast(x) for x in batches]
    streams = [torch.cuda.Stream(torch_gpu) for _ in batches]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for x, stream in zip(batches, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(fast(x))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_caller_captures(torch_gpu):
    fast, _ = optimized(tiny(), dtype=HALF, verify=False)
    x = images(3, 32, 32).to(torch_gpu, HALF)
    graph = torch.cuda.CUDAGraph()
    refused = pytest.raises(errors.ArgumentError, match="captured before it was ever run")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        fast(x)
    fast(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = fast(x)
    for seed in range(3):
        x.copy_(images(3, 32, 32, seed=seed).to(torch_gpu, HALF))
        expected = fast(x).clone()
        graph.replay()
        assert torch.equal(y, expected)


def test_outputs_survive_later_calls(torch_gpu):
    fast, _ = optimized(tiny(), verify=False)
    batches = [images(2, 32, 32, seed=seed).to(torch_gpu) for seed in range(30)]
    kept = [fast(x) for x in batches]
    assert all(torch.equal(y, fast(x)) for x, y in zip(batches, kept, strict=True))


def test_memory_of_the_caller_is_reused_only_after_use(torch_gpu):
    """Inputs that are freed at once: torch's allocator gives their memory to the next."""
    fast, _ = optimized(tiny(), verify=False)
    batches = [images(4, 32, 32, seed=seed) for seed in range(10)]
    expected = [fast(x.to(torch_gpu)) for x in batches]
    torch.cuda.synchronize()
    found = []
    for x in batches:
        there = x.to(torch_gpu)
        found.append(fast(there))
        there = None
        torch.empty(4, 3, 32, 32, device=torch_gpu).fill_(torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_memory_is_given_back(torch_gpu):
    def run():
        fast, _ = optimized(tiny(), verify=False)
        fast(images(64, 64, 64).to(torch_gpu))
        torch.cuda.synchronize()

    run()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        run()
        gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_out_of_memory_names_the_arena(torch_gpu):
    fast, _ = optimized(calibrated(timm.create_model("efficientnet_b0")), dtype=HALF, verify=False)
    x = images(256, 224, 224).to(torch_gpu, HALF)
    fast(x[:1])
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + (64 << 20)) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(errors.OutOfMemoryError, match=r"needs an arena of [\d,]+ bytes"):
            fast(x)
        assert fast(x[:1]).isfinite().all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fast(x).isfinite().all()


def test_every_device(torch_gpu):
    """A model on each GPU, whichever is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    model, x = tiny(), images(3, 32, 32)
    expected = effnet_fast.optimize(model, backend="cpu", verify=False)(x)
    for index in range(torch.cuda.device_count()):
        there = torch.device("cuda", index)
        fast = effnet_fast.optimize(copy.deepcopy(model).to(there), backend="gpu", verify=False)
        y = fast(x.to(there))
        assert y.device == there
        assert relative_error(y.cpu(), expected.double()) <= FLOORS[torch.float32]


def test_torch_compile(torch_gpu):
    fast, _ = optimized(tiny(), verify=False)
    x = images(2, 32, 32).to(torch_gpu)
    assert torch.equal(torch.compile(fast, fullgraph=True)(x), fast(x))


@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_maps_beyond_2_to_the_31_elements(torch_gpu, impl):
    """EfficientNet-B7's first widened map at 600 pixels, a batch of 128."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("24 GiB of free memory are needed")
    n, cin, size = 128, 32, 300
    generator = torch.Generator(device=torch_gpu).manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, device=torch_gpu, dtype=HALF)

    x = random(n, cin, size, size).contiguous(memory_format=torch.channels_last)
    weight, bias = random(6 * cin, cin, 1, 1) / cin**0.5, random(6 * cin)
    wide = ops.pointwise_conv(x, weight, bias, act="swish", impl=impl)
    assert wide.numel() > 1 << 31
    one = ops.pointwise_conv(x[-1:], weight, bias, act="swish", impl=impl)
    assert torch.equal(wide[-1:], one)
    taps = random(6 * cin, 1, 3, 3) / 3
    options = {"stride": 2, "padding": (0, 0, 1, 1), "act": "swish", "impl": impl}
    y = ops.depthwise_conv(wide, taps, bias, **options)
    assert torch.equal(y[-1:], ops.depthwise_conv(one, taps, bias, **options))
