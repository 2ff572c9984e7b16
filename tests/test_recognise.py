"""recognise: what becomes an operator, what does not, and the numbers of folding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Tiny, calibrated, conv_norm_act, images, tiny
from torch import nn

from effnet_fast.capture import capture
from effnet_fast.engine import reference
from effnet_fast.network import (
    Act,
    Activation,
    Classifier,
    DenseConv,
    DepthwiseConv,
    Network,
    PointwiseConv,
    Segment,
    SqueezeExcite,
    StemConv,
)
from effnet_fast.plan import make_plan
from effnet_fast.recognise import recognise


def network_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Network:
    graph = capture(model)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers()),
    }
    return recognise(graph, tensors | dict(graph.constants), dtype)


def kinds(network: Network) -> list[type]:
    return [type(node) for node in network.nodes]


def exact_run(network: Network, model: nn.Module, x: torch.Tensor) -> None:
    """The network in float64 gives the model's float64 numbers: nothing was mistaken for something
    else."""
    values = reference.run(make_plan(network, tuple(x.shape[-2:])), x.double())
    (output,) = network.outputs
    expected = model.double()(x.double())
    y = values[network.aliases.get(output.name, output.name)].reshape(expected.shape)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_an_efficientnet_is_operators_alone():
    model = tiny()
    network = network_of(model, torch.float64)
    mbconv = [PointwiseConv, DepthwiseConv, SqueezeExcite, PointwiseConv]
    assert kinds(network) == [
        StemConv,
        DenseConv,
        PointwiseConv,
        *mbconv,
        *mbconv,
        PointwiseConv,
        Classifier,
    ]
    assert network.fused_share() == 1.0
    assert network.reasons() == []
    project = network.nodes[10]
    assert project.gate and project.residual
    head = network.nodes[11]
    assert head.pool and head.act is Act.SWISH
    exact_run(network, model, images(2, 65, 48))


class Block(nn.Module):
    """conv, then something, then a pointwise convolution."""

    def __init__(self, middle, c: int = 8):
        super().__init__()
        self.conv = conv_norm_act(3, c, 3, 2)
        self.middle = middle if isinstance(middle, nn.Module) else None
        self.function = None if isinstance(middle, nn.Module) else middle
        self.last = nn.Conv2d(c, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.last((self.middle or self.function)(x))


@pytest.mark.parametrize(
    "function, act",
    [
        (F.silu, Act.SWISH),
        (lambda x: x * torch.sigmoid(x), Act.SWISH),
        (lambda x: torch.sigmoid(x) * x, Act.SWISH),
        (F.relu, Act.RELU),
        (F.relu6, Act.RELU6),
        (lambda x: x.clamp(0, 6), Act.RELU6),
        (lambda x: x.clamp(min=0), Act.RELU),
        (F.hardswish, Act.HARD_SWISH),
        (F.hardsigmoid, Act.HARD_SIGMOID),
        (torch.sigmoid, Act.SIGMOID),
        (F.gelu, Act.GELU),
        (lambda x: F.gelu(x, approximate="tanh"), Act.GELU_TANH),
    ],
)
def test_activations_go_into_the_convolution_before_them(function, act):
    model = Block(function)
    model.conv[2] = nn.Identity()
    network = network_of(calibrated(model), torch.float64)
    assert kinds(network) == [StemConv, PointwiseConv]
    assert network.nodes[0].act is act
    exact_run(network, model, images(1, 21, 22))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(-1, 6),
        lambda x: F.leaky_relu(x, 0.1),
        lambda x: F.silu(x) * torch.sigmoid(x),
        lambda x: x * torch.sigmoid(x + 1),
        lambda x: F.hardtanh(x),
        lambda x: x + x,
        lambda x: x + 0.5,
        lambda x: torch.add(x, F.relu(x), alpha=2),
        lambda x: F.pad(x, [1, 1, 1, 1], value=1.0),
        lambda x: F.pad(x, [1, 1, 1, 1], mode="reflect"),
        lambda x: F.pad(x, [-1, 0, 0, -1]),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x * x.amax((2, 3), keepdim=True).sigmoid(),
        lambda x: x * torch.sigmoid(x.mean(2, keepdim=True)),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: x.transpose(2, 3),
        lambda x: F.group_norm(x, 2),
        lambda x: x.softmax(1),
    ],
)
def test_what_only_looks_alike_stays_itself(function):
    model = calibrated(Block(function))
    network = network_of(model, torch.float64)
    assert any(issubclass(kind, Segment | Activation) for kind in kinds(network))
    exact_run(network, model, images(2, 64, 64))


class Gates(nn.Module):
    """Squeeze-excitation with a detail that a kernel would get wrong."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.stem = conv_norm_act(3, 8, 3, 2)
        self.depthwise = conv_norm_act(8, 8, 3, 1, groups=8)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Conv2d(8, 4, 3 if kind == "3x3 after" else 1)
        self.other = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(x)
        pooled = (x if self.kind == "pool of another map" else y).mean((2, 3), keepdim=True)
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(pooled))))
        z = y * gate
        out = self.project(F.relu(z) if self.kind == "activation between" else z)
        if self.kind == "two readers":
            out = out + self.other(z)
        if self.kind == "gate read twice":
            out = out + gate.mean()
        if self.kind == "pool read twice":
            out = out + pooled.mean()
        if self.kind == "map read twice":
            out = out + self.other(y)
        return out


@pytest.mark.parametrize(
    "kind, fused",
    [
        ("plain", True),
        ("map read twice", True),
        ("pool of another map", False),
        ("activation between", False),
        ("two readers", False),
        ("gate read twice", False),
        ("pool read twice", False),
        ("3x3 after", False),
    ],
)
def test_gates_are_fused_only_where_the_kernel_does_the_same(kind, fused):
    model = calibrated(Gates(kind))
    network = network_of(model, torch.float64)
    assert (SqueezeExcite in kinds(network)) is fused
    exact_run(network, model, images(2, 33, 34))


class Norms(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = (
            nn.Conv2d(3, 8, 3, bias=True),
            nn.BatchNorm2d(8, affine=kind != "plain"),
        )
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        y = self.norm(x)
        return self.last(y + x if self.kind == "conv read twice" else y)


@pytest.mark.parametrize("kind", ["affine", "plain", "conv read twice"])
def test_batch_norm_folds_only_when_nothing_else_reads_the_convolution(kind):
    model = calibrated(Norms(kind))
    network = network_of(model, torch.float64)
    assert (Segment in kinds(network)) is (kind == "conv read twice")
    exact_run(network, model, images(2, 17, 18))


@pytest.mark.parametrize(
    "conv, reason",
    [
        (nn.Conv2d(8, 8, 3, groups=2), "grouped convolution (2 groups of 4 to 4 channels)"),
        (nn.Conv2d(8, 16, 3, groups=8), "grouped convolution (8 groups of 1 to 2 channels)"),
        (nn.ConvTranspose2d(8, 8, 2), "aten.conv_transpose2d is not a 2-d convolution"),
    ],
)
def test_convolutions_without_a_kernel_are_named_with_the_reason(conv, reason):
    model = calibrated(
        nn.Sequential(conv_norm_act(3, 8, 3, 2), conv, nn.Conv2d(conv.out_channels, 4, 1))
    )
    network = network_of(model, torch.float64)
    assert reason in network.reasons()
    assert 0.0 < network.fused_share() < 1.0
    exact_run(network, model, images(1, 20, 20))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 4, padding="same", dilation=3, groups=8),
        nn.Conv2d(8, 8, 3, dilation=2, padding=2),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.Conv2d(8, 8, (1, 5), stride=(1, 2), padding=(0, 2), groups=8),
    ],
)
def test_windows_of_every_kind_are_fused(conv):
    model = calibrated(nn.Sequential(conv_norm_act(3, 8, 3, 2), conv))
    network = network_of(model, torch.float64)
    assert network.fused_share() == 1.0 and Segment not in kinds(network)
    exact_run(network, model, images(2, 31, 30))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Tiny(classes=7)

    def forward(self, x):
        x = self.body.blocks(self.body.fused(self.body.stem(x)))
        return {
            "map": x,
            "logits": self.body.classifier(self.body.head(x).mean((2, 3))),
            "scale": 2.0,
        }


def test_values_that_are_outputs_too_stay_whole():
    model = calibrated(TwoHeads())
    network = network_of(model, torch.float64)
    x = images(2, 48, 49)
    values = reference.run(make_plan(network, (48, 49)), x.double())
    expected = model.double()(x.double())
    ours = [values[ref.name] if hasattr(ref, "name") else ref for ref in network.outputs]
    for y, reference_value in zip(ours, torch.utils._pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(y, reference_value, rtol=1e-10, atol=1e-10)


def test_folding_rounds_once():
    model = tiny()
    single, double = network_of(model), network_of(model, torch.float64)
    for a, b in zip(single.nodes, double.nodes, strict=True):
        if hasattr(a, "weight"):
            assert torch.equal(a.weight, b.weight.float())
            assert a.bias is None or torch.equal(a.bias, b.bias.float())
