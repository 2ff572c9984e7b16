"""optimize: its promises, one by one."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import Scaled, Tiny, Unexpanded, calibrated, images, tiny
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize

import effnet_fast
from effnet_fast import errors
from effnet_fast.engine import reference
from effnet_fast.plan import make_plan
from effnet_fast.verify import FLOORS, Tally


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


@pytest.fixture(scope="module")
def fast(model) -> effnet_fast.OptimizedModel:
    return effnet_fast.optimize(model)


def close(y: torch.Tensor, model: nn.Module, x: torch.Tensor) -> None:
    """The network bound of the tolerances: 1.5x the stock model's own error, or the floor."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        stock = model(x)
    tally = Tally(torch.float32)
    parity = tally.add([y], [stock], [exact], tuple(x.shape))
    assert parity.holds, parity


# ---- the answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (33, 40), (225, 223)])
def test_batches_and_sizes_of_every_kind_through_one_model(model, fast, size):
    for batch in (1, 3, 17):
        x = images(batch, *size, seed=batch)
        close(fast(x), model, x)


def test_tensors_that_a_forward_makes():
    model = Scaled().eval()
    x = images(3, 40, 40)
    close(effnet_fast.optimize(model)(x), model, x)


def test_an_empty_batch_gives_an_empty_result(fast):
    assert fast(images(0, 64, 64)).shape == (0, 10)


def test_an_image_does_not_depend_on_its_batch_or_on_threads(fast):
    x = images(5, 70, 50)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [fast(x), torch.cat([fast(image[None]) for image in x])]
    finally:
        torch.set_num_threads(threads)
    for y in results[1:]:
        assert torch.equal(y, results[0])


def test_a_stem_and_its_depthwise_convolution_are_one_step():
    """On the CPU, with the bits of two."""
    model = calibrated(Unexpanded()).eval()
    fast = effnet_fast.optimize(model)
    assert fast.report.operators == {"stem_depthwise": 1, "squeeze_excite": 1, "pointwise_conv": 1}
    x = images(3, 2 * 33, 2 * 40)[:, :, ::2, 1::2]
    close(fast(x), model, x)
    (part,) = fast.parts()
    values = reference.run(make_plan(part._recognised(), (33, 40)), x, "auto")
    assert torch.equal(part._outputs(values)[0], fast(x))
    program = torch.export.export(fast, (x,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "effnet_fast.stem_depthwise_sums.default" in targets
    assert torch.equal(program.module()(x), fast(x))


@pytest.mark.parametrize("layout", ["channels_last", "slice", "expanded", "permuted"])
def test_images_of_any_layout(model, fast, layout):
    x = {
        "channels_last": lambda: images(3, 48, 56).to(memory_format=torch.channels_last),
        "slice": lambda: images(3, 100, 120, channels=5)[:, 1:4, 10:58, 20:76],
        "expanded": lambda: images(1, 48, 56).expand(3, -1, -1, -1),
        "permuted": lambda: images(3, 56, 48).transpose(2, 3),
    }[layout]()
    assert torch.equal(fast(x), fast(x.contiguous()))


def test_threads_may_share_a_model(fast):
    batches = [images(3, 40 + 8 * i, 64, seed=i) for i in range(4)]
    expected = [fast(x) for x in batches]
    wrong = []

    def work(x, y):
        for _ in range(20):
            if not torch.equal(fast(x), y):
                wrong.append(x.shape)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(batches, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_new_resolution_is_planned_without_another_export(fast, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("exported again")

    monkeypatch.setattr(torch.export, "export", refuse)
    assert fast(images(2, 81, 47)).shape == (2, 10)


def test_plans_are_bounded(fast):
    for edge in range(32, 72):
        fast(images(1, edge, 40))
    assert len(fast.parts()[0].plans()) <= 16


# ---- the user's model ----------------------------------------------------------------------------


def test_the_model_and_the_process_stay_as_they_were():
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = {name: id(p) for name, p in model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    state = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    rng = torch.get_rng_state()
    fast = effnet_fast.optimize(model)
    fast(images(2, 64, 64))
    assert fast.original is model
    assert {name: id(p) for name, p in model.named_parameters()} == ids
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert state == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    assert torch.equal(rng, torch.get_rng_state())
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_state_dict_is_the_originals(model, fast):
    ours, theirs = fast.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_give_the_same_bits(fast, way, tmp_path):
    x = images(3, 65, 64)
    if way == "save":
        fast.save(tmp_path / "fast.pt")
        twin = effnet_fast.load(tmp_path / "fast.pt")
        assert [p.name for p in tmp_path.iterdir()] == ["fast.pt"]
        assert torch.equal(twin.original(x), fast.original(x))
    else:
        twin = copy.deepcopy(fast) if way == "deepcopy" else pickle.loads(pickle.dumps(fast))
    assert torch.equal(twin(x), fast(x))
    assert list(twin.state_dict()) == list(fast.state_dict())
    assert str(twin.report) == str(fast.report)
    assert twin.original is not fast.original
    with torch.no_grad():
        next(t for n, t in twin.original.state_dict().items() if n == "stem.0.weight").mul_(2.0)
    twin.refresh()
    assert not torch.equal(twin(x), fast(x))


def test_a_saved_model_needs_no_class_of_the_original(fast, tmp_path):
    x = images(2, 64, 64)
    fast.save(tmp_path / "fast.pt")
    torch.save((x, fast(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch, effnet_fast\n"
        f"x, y = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"assert torch.equal(effnet_fast.load({str(tmp_path / 'fast.pt')!r})(x), y)\n"
        "assert 'networks' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "foreign", "newer"])
def test_a_file_that_is_no_saved_model_is_refused(fast, damage, tmp_path):
    path = tmp_path / "fast.pt"
    fast.save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save({"weight": torch.ones(1)} if damage == "foreign" else {"effnet_fast": 99}, path)
    with pytest.raises(errors.CheckpointError, match=str(path)):
        effnet_fast.load(path)


# ---- weights that change -------------------------------------------------------------------------


def replace_parameter(model):
    model.stem[0].weight = nn.Parameter(model.stem[0].weight.detach() * 2)


def write_in_place(model):
    with torch.no_grad():
        model.stem[0].weight.mul_(2)


def swap_storage(model):
    model.stem[0].weight.data = model.stem[0].weight.data * 2


def write_buffer(model):
    model.stem[1].running_mean.add_(1)


@pytest.mark.parametrize("change", [replace_parameter, write_in_place, swap_storage, write_buffer])
def test_changed_weights_are_an_error_until_refresh(change):
    model = tiny()
    fast = effnet_fast.optimize(model, verify=False)
    x = images(2, 48, 48)
    before = fast(x)
    change(model)
    with pytest.raises(errors.StaleWeightsError, match=r"stem\.\d\.(weight|running_mean) changed"):
        fast(x)
    with pytest.raises(errors.StaleWeightsError):
        copy.deepcopy(fast)
    fast.refresh()
    assert not torch.equal(fast(x), before)
    close(fast(x), model, x)


def test_changed_inference_tensors_are_noticed_by_checksum():
    with torch.inference_mode():
        model = tiny()
    fast = effnet_fast.optimize(model, verify=False)
    fast(images(1, 48, 48))
    with torch.inference_mode():
        model.stem[0].weight.mul_(2)
    with pytest.raises(errors.StaleWeightsError, match=r"stem\.0\.weight"):
        fast(images(1, 48, 48))


def test_load_state_dict_loads_into_the_original_and_refreshes():
    model, other = tiny(seed=1), tiny(seed=2)
    fast = effnet_fast.optimize(model, verify=False)
    fast.load_state_dict(other.state_dict())
    x = images(2, 48, 48)
    close(fast(x), other, x)


# ---- models of every kind ------------------------------------------------------------------------


class Standardised(nn.Module):
    def forward(self, w):
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


def test_parametrised_weights_are_folded_and_followed():
    model = Tiny()
    parametrize.register_parametrization(model.stem[0], "weight", Standardised())
    model = calibrated(model)
    fast = effnet_fast.optimize(model)
    assert fast.report.fused_share == 1.0 and not fast.report.fallbacks
    with torch.no_grad():
        model.stem[0].parametrizations.weight.original.add_(torch.randn(8, 3, 3, 3))
    with pytest.raises(errors.StaleWeightsError, match="parametrizations"):
        fast(images(1, 64, 64))
    fast.refresh()
    close(fast(images(2, 64, 64)), model, images(2, 64, 64))


def test_tied_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    model[2].weight = model[1].weight
    fast = effnet_fast.optimize(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    close(fast(images(2, 32, 32)), model, images(2, 32, 32))
    with torch.no_grad():
        model[2].weight.mul_(2)
    fast.refresh()
    close(fast(images(2, 32, 32)), model, images(2, 32, 32))


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Tiny()

    def forward(self, x):
        a = self.net.stem(x)
        b = self.net.blocks(self.net.fused(a))
        return [a, b]


def test_feature_maps_keep_their_type():
    model = calibrated(Features())
    fast = effnet_fast.optimize(model)
    x = images(2, 64, 65)
    ours, theirs = fast(x), model(x)
    assert type(ours) is list and [y.shape for y in ours] == [y.shape for y in theirs]
    for ours_map, theirs_map in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-4, atol=1e-4)


def test_timms_features_only_models():
    model = calibrated(timm.create_model("test_efficientnet", features_only=True))
    fast = effnet_fast.optimize(model)
    assert fast.report.fused_share == 1.0
    x = images(2, 96, 97)
    ours, theirs = fast(x), model(x)
    assert [y.shape for y in ours] == [y.shape for y in theirs]
    for ours_map, theirs_map in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-4, atol=1e-4)


def test_hooks_keep_firing():
    model, seen = tiny(), []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    fast = effnet_fast.optimize(model)
    seen.clear()
    x = images(2, 64, 64)
    y = fast(x)
    assert len(seen) == 1
    assert any("hooks on blocks.0" in line for line in fast.report.fallbacks)
    assert "blocks.1" in fast.report.parts and "stem" in fast.report.parts
    close(y, model, x)
    with pytest.raises(errors.CaptureError, match="pickle"):
        fast.save("never written")


class Branching(nn.Module):
    """A head with Python control flow on values."""

    def __init__(self):
        super().__init__()
        self.net, self.other = Tiny(), nn.Linear(10, 10)

    def forward(self, x):
        y = self.net(x)
        return self.other(y) if y.sum() > 0 else -y


def test_a_head_with_control_flow_leaves_the_body_fused():
    model = calibrated(Branching())
    fast = effnet_fast.optimize(model)
    assert fast.report.parts == ("net",) and fast.report.fused_share == 1.0
    for seed in range(4):
        x = images(2, 64, 64, seed=seed)
        close(fast(x), model, x)
    twin = pickle.loads(pickle.dumps(fast))
    assert torch.equal(twin(x), fast(x))
    with pytest.raises(errors.FallbackError, match="data-dependent"):
        effnet_fast.optimize(model, strict=True)


class Signature(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Tiny()

    def forward(self, pixels, scale=None, *, flag=False, **extra):
        return {"logits": self.net(pixels)}


def test_the_signature_is_the_originals():
    model = calibrated(Signature())
    fast = effnet_fast.optimize(model)
    x = images(2, 64, 64)
    expected = fast(x)["logits"]
    for args, kwargs in (((), {"pixels": x}), ((x, None), {}), ((x,), {"flag": False})):
        assert torch.equal(fast(*args, **kwargs)["logits"], expected)
    for args, kwargs, message in (
        ((x, 2.0), {}, "scale is 2.0"),
        ((x,), {"flag": True}, "flag is True"),
        ((x,), {"extra": 1}, "extra is 1"),
        ((), {"flag": False}, "pixels"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            fast(*args, **kwargs)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(3, 64, 64), errors.ShapeError, r"4 axes, \(N, 3, H, W\)"),
        (torch.zeros(1, 4, 64, 64), errors.ShapeError, "4 channels; accepted: 3"),
        (
            torch.zeros(1, 3, 64, 64).double(),
            errors.DtypeError,
            r"torch\.float64; accepted: torch\.float32",
        ),
        (torch.zeros(1, 3, 64, 64, device="meta"), errors.DeviceError, "on meta; accepted: cpu"),
        (torch.zeros(1, 3, 0, 64), errors.ShapeError, "too small"),
        (
            torch.zeros(1, 3, 64, 64, requires_grad=True),
            errors.InferenceOnlyError,
            "inference only",
        ),
        ("image", errors.ArgumentError, "str; accepted"),
    ],
)
def test_bad_images_are_refused(fast, x, error, message):
    with pytest.raises(error, match=message):
        fast(x)


def test_gradients_may_be_off_around_an_image_that_has_them(fast):
    with torch.no_grad():
        assert not fast(torch.zeros(1, 3, 64, 64, requires_grad=True)).requires_grad


@pytest.mark.parametrize("call", ["train", "half", "to"])
def test_training_and_moving_are_refused(fast, call):
    with pytest.raises(errors.InferenceOnlyError):
        {"train": fast.train, "half": fast.half, "to": lambda: fast.to(torch.float64)}[call]()
    assert fast.eval() is fast and not fast.training


def with_nan():
    model = tiny()
    model.blocks[0].se.reduce.bias.data[1] = float("nan")
    return model


def with_infinite_buffer():
    model = tiny()
    model.stem[1].running_var[0] = float("inf")
    return model


@pytest.mark.parametrize(
    "make, options, error, message",
    [
        (lambda: "resnet", {}, errors.ArgumentError, "str; accepted: a torch.nn.Module"),
        (lambda: nn.Linear(3, 3).eval(), {}, errors.ModelError, "no Conv2d"),
        (lambda: tiny().train(), {}, errors.ModelError, "train mode"),
        (with_nan, {}, errors.WeightsError, r"blocks\.0\.se\.reduce\.bias holds NaN"),
        (with_infinite_buffer, {}, errors.WeightsError, r"stem\.1\.running_var"),
        (tiny, {"backend": "tpu"}, errors.ArgumentError, "accepted: 'auto'"),
        (tiny, {"backend": "gpu"}, errors.BackendError, "libcuda"),
        (tiny, {"device": "cuda"}, errors.DeviceError, "cuda"),
        (tiny, {"dtype": torch.int8}, errors.DtypeError, "int8"),
        (tiny, {"dtype": torch.float16, "backend": "cpu"}, errors.DtypeError, "float32"),
        (tiny, {"example_input": torch.zeros(3, 64, 64)}, errors.ShapeError, "example_input"),
        (tiny, {"colour": "red"}, TypeError, "colour"),
    ],
)
def test_bad_arguments_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        effnet_fast.optimize(make(), **options)


def test_an_optimised_model_is_not_optimised_again(fast):
    with pytest.raises(errors.ArgumentError, match="original"):
        effnet_fast.optimize(fast)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, training=True)


def test_a_model_that_is_no_function_of_its_input_fails_verification():
    with pytest.raises(errors.ParityError, match="random"):
        effnet_fast.optimize(Random().eval())


class Surprise(nn.Module):
    """Computes something else at sizes that capture does not look at."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y * (1 + 1e-4) if x.shape[2] == 97 else y


def test_verification_notices_a_graph_that_is_not_the_model():
    with pytest.raises(errors.ParityError, match="captured graph"):
        effnet_fast.optimize(Surprise().eval())


def test_verification_notices_a_wrong_answer():
    exact = torch.randn(4, 10, dtype=torch.float64)
    stock = exact.float()
    floor = FLOORS[torch.float32]
    wrong = (exact * (1 + 2 * floor)).float()
    assert not Tally(torch.float32).add([wrong], [stock], [exact], (4, 3, 8, 8)).holds
    assert Tally(torch.float32).add([stock], [stock], [exact], (4, 3, 8, 8)).holds
    nan = torch.full_like(stock, float("nan"))
    assert not Tally(torch.float32).add([nan], [stock], [exact], (4, 3, 8, 8)).holds
    with pytest.raises(errors.ParityError, match=r"\(4, 9\)"):
        Tally(torch.float32).add([stock[:, :9]], [stock], [exact], (4, 3, 8, 8))


def drawn(error: float, exact: torch.Tensor) -> torch.Tensor:
    """At that relative distance from the exact values."""
    return exact * (1 + error)


def test_every_batch_has_the_same_weight_in_the_verdict():
    exact = torch.ones(1, 10, dtype=torch.float64)
    tally, shape = Tally(torch.float64), (1, 3, 8, 8)
    # An image that either model amplifies: an unlucky draw there ...
    assert not tally.add([drawn(1.7e-3, exact)], [drawn(1e-3, exact)], [exact], shape).holds
    # ... counts as one, among others with smaller errors.
    parity = tally.add([drawn(1e-6, exact)], [drawn(1e-6, exact)], [exact], shape)
    assert parity.holds
    assert parity.error / parity.bound == pytest.approx(((1.7**2 + 1) / 2) ** 0.5 / 1.5, rel=1e-3)


def test_one_wrong_batch_is_not_outvoted():
    exact = torch.ones(1, 10, dtype=torch.float64)
    tally, shape = Tally(torch.float64), (1, 3, 8, 8)
    tally.add([drawn(1e-6, exact)], [drawn(1e-7, exact)], [exact], shape)
    for _ in range(11):
        parity = tally.add([drawn(1e-7, exact)], [drawn(1e-7, exact)], [exact], shape)
        assert not parity.holds


def test_outputs_that_are_infinite_in_both_models_decide_nothing():
    exact = torch.ones(1, 10, dtype=torch.float64)
    infinite, tally = exact / 0, Tally(torch.float64)
    assert tally.add([infinite], [infinite], [exact], (1, 3, 8, 8)).holds
    assert not tally.add([drawn(1e-3, exact)], [exact], [exact], (1, 3, 8, 8)).holds


# ---- no silence ----------------------------------------------------------------------------------


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, x):
        return self.b(self.a(x))


def test_what_is_not_fused_is_in_the_report_and_the_log(caplog):
    with caplog.at_level(logging.WARNING, logger="effnet_fast"):
        fast = effnet_fast.optimize(Grouped().eval())
    assert fast.report.fallbacks == ("grouped convolution (2 groups of 4 to 4 channels)",)
    assert "grouped convolution" in caplog.text
    assert "not fused: grouped convolution" in str(fast.report)
    with pytest.raises(errors.FallbackError, match="grouped"):
        effnet_fast.optimize(Grouped().eval(), strict=True)


def test_other_dtypes_run_on_the_reference_and_say_so(caplog):
    model = tiny().to(torch.bfloat16)
    with caplog.at_level(logging.WARNING, logger="effnet_fast"):
        fast = effnet_fast.optimize(model)
    assert fast.report.backend == "reference"
    assert "float32, not torch.bfloat16" in caplog.text and "bfloat16" in str(fast.report)
    assert fast(images(2, 64, 64).bfloat16()).dtype == torch.bfloat16
    assert effnet_fast.optimize(model, dtype=torch.float32).report.backend == "cpu"


def test_the_report_says_what_was_done(fast):
    report = fast.report
    assert report.backend == "cpu" and report.fused_share == 1.0 and report.fallbacks == ()
    assert report.operators == {
        "pointwise_conv": 3,
        "expand_depthwise": 2,
        "squeeze_excite": 2,
        "stem_conv": 1,
        "fused_mbconv": 1,
        "classifier": 1,
    }
    (parity,) = report.parity
    assert 0 < parity.error <= parity.bound
    assert "100 % of convolution multiply-adds" in str(report) and "verified" in str(report)
    assert report.to_dict()["operators"]["stem_conv"] == 1


# ---- torch.export and torch.compile --------------------------------------------------------------


def test_export_holds_operators_and_gives_the_same_bits(fast, tmp_path):
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(fast, (images(2, 64, 64),), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(target.startswith("effnet_fast.") for target in targets)
    assert not any("conv" in target and target.startswith("aten.") for target in targets)
    torch.export.save(program, tmp_path / "program.pt2")
    cases = [(x, fast(x)) for x in (images(1, 64, 64), images(5, 64, 64))]
    torch.save(cases, tmp_path / "cases.pt")
    code = (
        "import torch, effnet_fast\n"
        f"module = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()\n"
        f"for x, y in torch.load({str(tmp_path / 'cases.pt')!r}):\n"
        "    assert torch.equal(module(x), y)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compile_has_no_graph_break_and_few_compilations(fast):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in (1, 2, 3, 5, 8):
            x = images(batch, 64, 64)
            assert torch.equal(compiled(x), fast(x))
    assert counter.frame_count <= 2
