"""Graphs that were captured before: taken for the same model alone, and verified like new ones."""

import functools
import os
import subprocess
import sys

import pytest
import torch
from networks import images
from torch import nn

import effnet_fast
from effnet_fast import errors, graph_cache
from effnet_fast.models import create_model


class Net(nn.Module):
    def __init__(self, act=nn.SiLU, stride=2, scale=1.0, extra=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=stride, padding=1)
        self.act = act()
        self.head = nn.Linear(8, 5)
        self.scale = scale
        if extra is not None:
            self.extra = extra

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)) * self.scale)


class OtherNet(Net):
    def forward(self, x):
        return super().forward(x) + 1


def net(kind=Net, **options):
    torch.manual_seed(0)
    return kind(**options).eval()


def key(model, size=None):
    return graph_cache.key_of(model, size, 3, torch.float32)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))


@pytest.fixture
def captures(monkeypatch):
    """How often a model is captured."""
    module = sys.modules["effnet_fast.optimize"]
    counted, real = [], module.capture

    def capture(*arguments, **options):
        counted.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "capture", capture)
    return counted


def test_the_same_model_is_captured_once(captures):
    x = images(2, 64, 64)
    first = effnet_fast.optimize(net())
    torch.manual_seed(1)
    other = Net().eval()  # the same but for its weights
    second = effnet_fast.optimize(other)
    assert len(captures) == 1
    assert torch.equal(first(x), effnet_fast.optimize(net())(x))
    torch.testing.assert_close(second(x), other(x))
    assert second.report.parity and len(captures) == 1


def test_a_network_of_this_package(captures, tmp_path):
    model = create_model("efficientnet_b0").eval()
    first, second = effnet_fast.optimize(model), effnet_fast.optimize(model)
    assert len(captures) == 1 and len(list(tmp_path.glob("*.json"))) == 1
    assert torch.equal(first(images(1, 80, 64)), second(images(1, 80, 64)))
    assert second.report.fused_share == 1.0


def double(x, by=2):
    return x * by


def test_what_makes_another_key():
    models = [
        net(), net(act=nn.ReLU), net(stride=1), net(scale=0.5), net(extra="b"), net(OtherNet),
        net(extra=double), net(extra=functools.partial(double, by=3)), net(extra=(1, {"a": 2.0})),
        net().train(), net().double(),
    ]  # fmt: skip
    shared = net(extra=nn.Conv2d(3, 8, 3, stride=2, padding=1))
    models.append(shared)
    tied = net(extra=nn.Conv2d(3, 8, 3, stride=2, padding=1))
    tied.extra.weight = tied.conv.weight
    models.append(tied)
    twice = net()
    twice.extra = twice.conv
    models.append(twice)
    keys = [key(model) for model in models] + [key(net(), (64, 64))]
    assert None not in keys and len(set(keys)) == len(keys)
    assert key(net()) == keys[0] == key(net(scale=1.0))


def test_the_code_of_a_method_is_part_of_it(monkeypatch):
    before = key(net())
    monkeypatch.setattr(Net, "forward", lambda self, x: self.head(self.conv(x).mean((2, 3))))
    assert key(net()) != before
    monkeypatch.undo()
    assert key(net()) == before


BY = 2.0
IN_ITSELF = []
IN_ITSELF.append(IN_ITSELF)


class Raises:
    """A placeholder for what is not installed."""

    def __getattribute__(self, name):
        raise ImportError(name)


PLACEHOLDER = Raises()


def scaled(x):
    return x * BY


def not_of_forward():
    return OF_THE_PROCESS


OF_THE_PROCESS = 1.0
ACTS = {"scaled": scaled, "unknown": object()}


class Scales(Net):
    """Of a number of its class, one of its module, and a function that reads another."""

    FACTOR = 3.0

    def forward(self, x):
        assert ACTS and IN_ITSELF and PLACEHOLDER is not None
        return self.scaled(super().forward(x)) * self.FACTOR

    def scaled(self, x):
        return scaled(x)

    @staticmethod
    def helper():
        return 1

    def load(self):
        return not_of_forward()


@pytest.mark.parametrize(
    "name, value",
    [
        ("Scales.FACTOR", 4.0),
        ("BY", 5.0),
        ("scaled", lambda x: x),
        ("Scales.helper", staticmethod(lambda: 2)),
    ],
)
def test_what_a_method_reads_is_part_of_it(monkeypatch, name, value):
    before = key(net(Scales))
    monkeypatch.setattr(f"{__name__}.{name}", value)
    assert key(net(Scales)) not in (None, before)
    monkeypatch.undo()
    assert key(net(Scales)) == before


def test_what_only_other_methods_read_is_not(monkeypatch):
    before = key(net(Scales))
    monkeypatch.setattr(f"{__name__}.OF_THE_PROCESS", 2.0)
    assert before == key(net(Scales)) is not None


def test_processes_have_the_same_key():
    code = (
        "import timm, torch, torchvision, transformers; from effnet_fast import graph_cache\n"
        "nets = [timm.create_model('efficientnet_b0'), torchvision.models.efficientnet_b0(),\n"
        "    transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig())]\n"
        "print([graph_cache.key_of(n.eval(), None, 3, torch.float32) for n in nets])\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1 and "None" not in found.pop()


def test_what_cannot_be_told_apart_is_captured_each_time(captures):
    class Local(Net):
        pass

    scale = 2.0
    assert key(net(Local)) is None
    assert key(net(extra=object())) is None
    assert key(net(extra=lambda x: x * scale)) is None
    model = net(extra=object())
    effnet_fast.optimize(model)
    effnet_fast.optimize(model)
    assert len(captures) == 2


def test_hooks_are_still_refused():
    effnet_fast.optimize(net())
    model = net()
    model.conv.register_forward_hook(lambda module, arguments, output: output + 1)
    assert key(model) is None
    with pytest.raises(errors.CaptureError, match="forward hooks on conv"):
        effnet_fast.optimize(model)


def test_a_graph_of_another_model_is_found_out(captures):
    """However it came there: it is verified."""
    model, x = net(), images(2, 64, 64)
    for other in (net(OtherNet), net(act=nn.ReLU), create_model("efficientnet_b0").eval()):
        graph_cache.write(key(model), effnet_fast.optimize(other)._body.graph)
        captures.clear()
        torch.testing.assert_close(effnet_fast.optimize(model)(x), model(x))
        assert len(captures) == 1


def test_a_damaged_entry_is_made_again(captures, tmp_path):
    effnet_fast.optimize(net())
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(file.read_bytes()[:-3])
    effnet_fast.optimize(net())
    assert len(captures) == 2


def test_only_verified_graphs_are_kept_and_taken(captures, tmp_path, monkeypatch):
    effnet_fast.optimize(net(), verify=False)
    assert not list(tmp_path.iterdir())
    effnet_fast.optimize(net())
    effnet_fast.optimize(net(), verify=False)
    assert len(captures) == 3
    monkeypatch.setenv("EFFNET_FAST_GRAPH_CACHE", "0")
    effnet_fast.optimize(net())
    assert len(captures) == 4
