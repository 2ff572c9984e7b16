"""All operators: opcheck, compile, export, threads, implementations, gradients, packed weights."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from operators import LAYOUTS, SAMPLES, Random, as_tuple
from torch._subclasses.fake_tensor import FakeTensorMode

from effnet_fast import ops
from effnet_fast.errors import (
    ArgumentError,
    BackendError,
    DeviceError,
    DtypeError,
    InferenceOnlyError,
    ShapeError,
)
from effnet_fast.ops.packing import ALIGNMENT, CACHE, PackCache, pack_conv, pack_depthwise
from effnet_fast.ops.registry import OPERATORS
from effnet_fast.ops.step import nhwc

NAMESPACE = "effnet_fast::"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def samples(dtype=torch.float32):
    for name, operator in OPERATORS.items():
        for arguments in SAMPLES[name](Random(dtype)):
            yield operator, arguments


# ---- torch ---------------------------------------------------------------------------------------


def test_every_registered_operator_has_samples():
    registered = {
        name.removeprefix(NAMESPACE).partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(NAMESPACE)
    }
    assert registered == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_opcheck(name):
    overload = getattr(torch.ops.effnet_fast, name).default
    for arguments in SAMPLES[name](Random()):
        assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_opcheck_of_the_reference(name):
    for arguments in SAMPLES[name](Random(torch.bfloat16)):
        results = torch.library.opcheck(OPERATORS[name].overload, arguments)
        assert set(results.values()) == {"SUCCESS"}


class Block(torch.nn.Module):
    """Every operator once: a stem, an MBConv and a fused MBConv, a head."""

    def __init__(self):
        super().__init__()
        r = Random()
        for name, weight in {
            "stem": r.weight(8, 3, 3, 3),
            "expand": r.weight(24, 8, 1, 1),
            "depthwise": r.weight(24, 1, 3, 3),
            "squeeze": r.weight(2, 24),
            "excite": r.weight(24, 2),
            "project": r.weight(8, 24, 1, 1),
            "again": r.weight(8, 1, 5, 5),
            "fused": r.weight(16, 8, 3, 3),
            "fused_project": r.weight(8, 16, 1, 1),
            "head": r.weight(32, 8, 1, 1),
            "classes": r.weight(10, 32),
        }.items():
            self.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))

    def forward(self, x, impl="auto"):
        x = ops.stem_conv(x, self.stem, stride=2, padding=(0, 0, 1, 1), act="swish", impl=impl)
        y, sums = ops.expand_depthwise(
            x,
            self.expand,
            None,
            self.depthwise,
            expand_act="swish",
            padding=1,
            act="swish",
            sums=True,
            impl=impl,
        )
        pixels = y.shape[2] * y.shape[3]
        gate = ops.squeeze_excite(sums, pixels, self.squeeze, None, self.excite, None, impl=impl)
        x = ops.pointwise_conv(y, self.project, gate=gate, residual=x, impl=impl)
        x = ops.depthwise_conv(x, self.again, padding=2, impl=impl)
        x = ops.swish(x, "hard_swish", impl=impl)
        x = ops.fused_mbconv(
            x,
            self.fused,
            padding=1,
            act="swish",
            project_weight=self.fused_project,
            residual=x,
            impl=impl,
        )
        x = ops.pointwise_conv(x, self.head, act="swish", pool=True, impl=impl)
        return ops.classifier(x, self.classes, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "cpu"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(impl, backend):
    torch._dynamo.reset()
    block, compilations = Block(), torch._dynamo.utils.counters["stats"]
    compilations.clear()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for batch in (2, 3, 5, 1, 4):
        x = Random(seed=batch)(batch, 3, 16, 16)
        assert torch.equal(compiled(x, impl), block(x, impl))
    # static, then dynamic in the batch, then batch 1, which torch always specialises
    assert compilations["unique_graphs"] <= 3


def test_compile_refuses_gradients():
    torch._dynamo.reset()
    compiled = torch.compile(ops.swish, fullgraph=True, backend="aot_eager")
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(Exception, match="x requires a gradient"):
        compiled(x)
    with torch.no_grad():
        assert torch.equal(compiled(x), ops.swish(x))


def test_compile_reference():
    torch._dynamo.reset()
    block, x = Block(), Random()(2, 3, 16, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(x, "reference")
    assert torch.equal(compiled, block(x, "reference"))


def test_export(tmp_path):
    block = Block()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        block, (Random()(2, 3, 16, 16),), dynamic_shapes={"x": {0: batch}}
    )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    joined = {"stem_depthwise", "stem_depthwise_sums"}
    stems = set(OPERATORS) - {"expand_depthwise", "depthwise_conv_sums"} - joined
    assert targets == {f"effnet_fast.{name}.default" for name in stems} | {
        "<built-in function getitem>"
    }
    torch.export.save(program, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    for size in (1, 2, 5):
        x = Random(seed=size)(size, 3, 16, 16)
        assert torch.equal(loaded(x), block(x))


def test_fake_tensors_meet_the_same_checks():
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.zeros(2, 6, 4, 4))
        assert ops.pointwise_conv(x, torch.empty(8, 6, 1, 1)).shape == (2, 8, 4, 4)
        with pytest.raises(ShapeError, match="weight has shape"):
            ops.pointwise_conv(x, torch.empty(8, 7, 1, 1))


def test_channels_last_whatever_the_sizes():
    """Strides that opcheck leaves open: those of sizes of 1."""
    for shape in ((1, 1, 1, 1), (2, 5, 1, 1), (2, 1, 3, 4), (0, 3, 2, 2)):
        _, c, h, w = shape
        for impl in ("cpu", "reference"):
            y = ops.pointwise_conv(Random()(*shape), Random().weight(4, c, 1, 1), impl=impl)
            assert y.stride() == (h * w * 4, 1, w * 4, 4)


# ---- threads -------------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads(threads):
    big = Random()(3, 3, 65, 47)
    results = []
    for count in (1, 2):
        threads(count)
        outputs = [o for op, args in samples() for o in as_tuple(op(*args, impl="cpu"))]
        results.append([*outputs, Block()(big)])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_bits_do_not_depend_on_batch():
    block, x = Block(), Random()(5, 3, 33, 31)
    assert torch.equal(block(x), torch.cat([block(image[None]) for image in x]))


def test_arguments_stay_untouched():
    for operator, arguments in samples():
        before = copy.deepcopy(arguments)
        operator(*arguments, impl="cpu")
        for now, then in zip(arguments, before, strict=True):
            assert torch.equal(now, then) if isinstance(now, torch.Tensor) else now == then


# ---- implementations -----------------------------------------------------------------------------


def test_auto_is_cpu_for_float32_and_reference_for_the_rest():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        chosen = "cpu" if dtype == torch.float32 else "reference"
        for operator, arguments in samples(dtype):
            auto, explicit = operator(*arguments), operator(*arguments, impl=chosen)
            for ours, theirs in zip(as_tuple(auto), as_tuple(explicit), strict=True):
                assert torch.equal(ours, theirs)
                assert ours.stride() == theirs.stride()


def on_gpu(name):
    """Whether an operator has GPU kernels."""
    return bool(OPERATORS[name].languages)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gpu_tensors_run_on_gpu_kernels_or_are_refused(name):
    with FakeTensorMode():
        x = torch.empty(1, device="cuda")
        call = OPERATORS[name].arguments._make([x] * len(OPERATORS[name].arguments._fields))
        if on_gpu(name):
            assert OPERATORS[name].choose(call) in OPERATORS[name].languages
        else:
            with pytest.raises(DeviceError, match="is on cuda:0; accepted: cpu"):
                OPERATORS[name].choose(call)


@pytest.mark.parametrize("name", [name for name in sorted(OPERATORS) if on_gpu(name)])
def test_an_emulated_gpu(name):
    """Tensors on the CPU run on the PTX machine, through torch.ops too, and are as they were."""
    operator = OPERATORS[name]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for arguments in SAMPLES[name](Random(dtype)):
            with ops.emulated() as device:
                device.take_counts()  # of whoever has the same device
                auto = as_tuple(getattr(torch.ops.effnet_fast, name)(*arguments))
                launches = [count["kernel"] for count in device.take_counts()]
            is_empty = not any(y.numel() for y in auto)
            assert bool(launches) == (dtype != torch.float64 and not is_empty)
            stem = name.removesuffix("_sums").removesuffix("_pool")
            # The samples' channels are too few for a kernel that does both parts of a block.
            stems = {
                "classifier": ("pointwise_conv",),
                "expand_depthwise": ("pointwise_conv", "depthwise_conv"),
                "stem_depthwise": ("stem_conv", "depthwise_conv"),
            }.get(stem, (stem,))
            assert all(launch.startswith(stems) for launch in launches)
            reference = as_tuple(operator(*arguments, impl="reference"))
            for ours, theirs in zip(auto, reference, strict=True):
                assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
                bounds = {}
                if stem in ("expand_depthwise", "stem_depthwise", "fused_mbconv"):
                    # The map between is rounded, too.
                    eps = 4 * torch.finfo(dtype).eps
                    bounds = {"rtol": max(eps, 2e-5), "atol": max(eps, 2e-5)}
                torch.testing.assert_close(ours, theirs, **bounds)
    with pytest.raises(DeviceError, match=r"or cpu in effnet_fast\.ops\.emulated\(\)"):
        operator(*arguments, impl=operator.languages[0])


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_implementations_that_cannot_be_had(name):
    operator, arguments = OPERATORS[name], SAMPLES[name](Random())[0]
    for impl in ("cuda", "triton"):
        if impl in operator.languages:
            match, error = f"is on cpu; accepted by impl='{impl}': cuda", DeviceError
        else:
            match, error = f"impl is '{impl}', which is not built for {name}", BackendError
        with pytest.raises(error, match=match):
            operator(*arguments, impl=impl)
    with pytest.raises(ArgumentError, match="impl is 'gpu'; accepted: 'auto', 'reference', 'cpu'"):
        operator(*arguments, impl="gpu")
    halves = SAMPLES[name](Random(torch.float16))[0]
    with pytest.raises(DtypeError, match=r"float16; accepted by impl='cpu': torch\.float32"):
        operator(*halves, impl="cpu")
    with pytest.raises(DeviceError, match="is on meta; accepted by impl='cpu': cpu"):
        operator(arguments[0].to("meta"), *arguments[1:], impl="cpu")


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gradients_are_refused(name):
    operator, arguments = OPERATORS[name], SAMPLES[name](Random())[0]
    tensors = [i for i, value in enumerate(arguments) if isinstance(value, torch.Tensor)]
    for index in tensors:
        changed = list(arguments)
        changed[index] = changed[index].clone().requires_grad_()
        for impl in ("auto", "cpu", "reference"):
            with pytest.raises(InferenceOnlyError, match="requires a gradient"):
                operator(*changed, impl=impl)
        with torch.no_grad():
            without = operator(*changed)
        with torch.inference_mode():
            inference = operator(*changed)
        for ours, theirs in zip(as_tuple(without), as_tuple(inference), strict=True):
            assert not ours.requires_grad
            assert torch.equal(ours, theirs)


def test_gradients_are_refused_under_torch_func():
    with pytest.raises(InferenceOnlyError, match="x requires a gradient"):
        torch.func.grad(lambda x: ops.swish(x).sum())(torch.ones(3))


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 1, 1), (2, 1, 3, 4), (1, 5, 3, 1)])
def test_maps_with_adjacent_channels_are_used_in_place(layout, shape):
    x = LAYOUTS[layout](Random()(*shape))
    readable, strides = nhwc(x)
    assert strides[1] == 1
    assert torch.equal(readable, x)
    adjacent = (
        layout.startswith("nhwc")
        or (
            # where a size is 1, other layouts coincide with it
            shape[1] == 1 and layout in ("nchw", "nchw_slice", "transposed")
        )
        or (shape[2:] == (1, 1) and layout in ("nchw", "transposed"))
    )
    assert (readable.data_ptr() == x.data_ptr()) == adjacent


def test_packed_weights_are_aligned():
    for size in range(1, 20):
        assert pack_conv(torch.ones(size, 3, 3, 3)).data_ptr() % ALIGNMENT == 0
        assert pack_depthwise(torch.ones(size, 1, 3, 3)).data_ptr() % ALIGNMENT == 0


def test_cache_follows_the_weight():
    ops.clear_cache()
    x, weight = Random()(2, 5, 4, 4), Random().weight(6, 5, 1, 1)
    first = ops.pointwise_conv(x, weight)
    assert len(CACHE) == 1
    assert torch.equal(ops.pointwise_conv(x, weight), first)
    assert len(CACHE) == 1

    weight.mul_(2)
    doubled = ops.pointwise_conv(x, weight)
    assert torch.equal(doubled, 2 * first)
    assert len(CACHE) == 1

    weight.data.mul_(2)  # moves no version counter
    assert torch.equal(ops.pointwise_conv(x, weight), doubled)
    ops.clear_cache()
    assert torch.equal(ops.pointwise_conv(x, weight), 2 * doubled)

    weight.set_(Random(seed=1).weight(6, 5, 1, 1))
    fresh = ops.pointwise_conv(x, weight.clone())
    assert torch.equal(ops.pointwise_conv(x, weight), fresh)

    del weight
    gc.collect()
    assert len(CACHE) == 0


def test_cache_leaves_inference_tensors_alone():
    ops.clear_cache()
    x = Random()(2, 5, 4, 4)
    with torch.inference_mode():
        weight = Random().weight(6, 5, 1, 1)
        first = ops.pointwise_conv(x, weight)
        weight.mul_(2)
        assert torch.equal(ops.pointwise_conv(x, weight), 2 * first)
    assert len(CACHE) == 0


def test_cache_is_bounded():
    cache = PackCache(limit=1000)
    weights = [torch.full((100,), float(i)) for i in range(5)]
    for weight in weights:
        assert torch.equal(cache.get(weight, torch.clone), weight)
    assert (len(cache), cache.bytes) == (2, 800)
    packed = cache.get(weights[3], torch.clone)
    cache.get(weights[0], torch.clone)
    # 3 was used after 4, so 4 went
    assert cache.get(weights[3], torch.clone) is packed
    assert (len(cache), cache.bytes) == (2, 800)
    cache.get(torch.zeros(2000), torch.clone)
    assert (len(cache), cache.bytes) == (0, 0)
