"""capture: one graph for every size, paddings told apart, traps refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import SameConv2d, Tiny, images, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from effnet_fast.capture import capture, native_size
from effnet_fast.errors import CaptureError, ModelError
from effnet_fast.graph import run_graph


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def outputs(model: nn.Module, x: torch.Tensor, **options) -> list:
    graph = capture(model, **options)
    with torch.no_grad():
        return run_graph(graph, x, tensors_of(model) | dict(graph.constants))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 65), (97, 131), (40, 33)])
def test_a_graph_holds_for_every_size_and_batch(same, size):
    model = tiny(same=same)
    graph = capture(model)
    assert graph.locked is None
    for batch in (0, 1, 2, 17):
        x = images(batch, *size)
        with torch.no_grad():
            (y,) = run_graph(graph, x, tensors_of(model))
            assert torch.equal(y, model(x))


class Padded(nn.Module):
    """A stride-2 convolution after a padding of a kind."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv = SameConv2d(3, 4, 3, 2) if kind == "same" else nn.Conv2d(3, 4, 3, 2)

    def forward(self, x):
        if self.kind == "same":
            return self.conv(x)
        pads = {"static": [0, 1, 0, 1], "symmetric": [1, 1, 1, 1]}[self.kind]
        return self.conv(F.pad(x, pads))


@pytest.mark.parametrize("kind", ["same", "static", "symmetric"])
def test_paddings_that_look_alike_at_an_even_size_are_told_apart(kind):
    model = Padded(kind).eval()
    targets = [call.target for call in capture(model).calls]
    assert ("effnet_fast.same_pad" in targets) == (kind == "same")
    for edge in (16, 17):
        x = images(2, edge, edge + 1)
        assert torch.equal(outputs(model, x)[0], model(x))


class InPlace(nn.Module):
    def __init__(self, view: bool):
        super().__init__()
        self.conv, self.view = nn.Conv2d(3, 4, 3), view

    def forward(self, x):
        y = self.conv(x)
        if self.view:
            y[:, :2].relu_()
            return y
        z = y.add_(1.0)
        return F.silu(y, inplace=True) + z.mul_(2.0)


def test_in_place_calls_become_functional():
    model, x = InPlace(view=False).eval(), images(2, 20, 20)
    with torch.no_grad():
        assert torch.equal(outputs(model, x)[0], model(x))


def test_a_write_into_a_view_is_refused():
    with pytest.raises(CaptureError, match="shares its memory"):
        capture(InPlace(view=True).eval())


class WritesInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x.relu_())


def test_a_write_into_the_input_is_refused():
    with pytest.raises(CaptureError):
        capture(WritesInput().eval())


class Pooled(nn.Module):
    """A head that works at one size: its pool is as large as the map at 224."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 32, 1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(F.avg_pool2d(self.conv(x), 7).flatten(1))


def test_a_model_for_one_size_is_locked_to_it():
    graph = capture(Pooled().eval())
    assert graph.locked == (224, 224)


class Reads(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 3), kind

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "value":
            return y if y.sum() > 0 else -y
        self.last = y
        return F.interpolate(y, size=(y.shape[2] + 2, y.shape[3]))


def test_a_size_that_no_rule_explains_locks_the_graph():
    assert capture(Reads("size").eval(), size=(48, 50)).locked == (48, 50)


def test_control_flow_on_values_is_refused():
    with pytest.raises(CaptureError, match=r"torch\.export failed at 64x64"):
        capture(Reads("value").eval())


def test_tracing_sets_no_attribute_on_the_model():
    model = Reads("size").eval()
    capture(model, size=(48, 50))
    assert not hasattr(model, "last")


def test_hooks_are_refused_by_name():
    model = tiny()
    model.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=r"hooks on blocks\.0 "):
        capture(model)


def test_inference_tensors_are_captured():
    with torch.inference_mode():
        model = tiny()
    x = images(2, 64, 64)
    with torch.inference_mode():
        assert torch.equal(outputs(model, x)[0], model(x))


def test_a_model_on_a_gpu_has_the_graph_that_it_has_on_the_cpu():
    """Fake tensors: no GPU is needed. On it cuDNN would bound the batch."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = Tiny(same=True).eval()
    assert next(model.parameters()).is_cuda
    here, there = capture(Tiny(same=True).eval()), capture(model)
    assert [(a.target, a.args) for a in here.calls] == [(b.target, b.args) for b in there.calls]


def test_a_model_without_convolutions_is_no_cnn():
    with pytest.raises(ModelError, match="no Conv2d"):
        capture(nn.Linear(3, 4).eval())


def test_the_native_size_comes_from_the_model():
    model = tiny()
    assert native_size(model) == (224, 224)
    model.default_cfg = {"input_size": (3, 96, 128)}
    assert native_size(model) == (96, 128)
