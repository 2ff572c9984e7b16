"""The CPU's choice by measurement: what it decides, and that the numbers don't depend on it."""

import pytest
import torch
from networks import images, tiny

from effnet_fast import optimize
from effnet_fast.engine import cpu_measure

is_on = cpu_measure.is_on  # which conftest.py puts aside


@pytest.fixture(autouse=True)
def tuned(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_measure, "is_on", is_on)
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_measure, "_known", {})


def measured(monkeypatch, joined, apart):
    """Decide so, and count."""
    asked = []

    def answer(plan, step, weights):
        asked.append(cpu_measure._signature(plan, step))
        return joined, apart

    monkeypatch.setattr(cpu_measure, "_measured", answer)
    return asked


def operators(fast, size=(64, 48)):
    return [step.operator for step in fast.plan(size).steps]


def test_what_is_faster_apart_has_steps_of_its_own(monkeypatch):
    model, x = tiny(), images(2, 64, 48)
    measured(monkeypatch, 1.0, 2.0)
    joined = optimize(model)
    assert operators(joined).count("expand_depthwise") == 2
    measured(monkeypatch, 1.0, 0.9)
    monkeypatch.setattr(cpu_measure, "_known", {})
    monkeypatch.setenv("EFFNET_FAST_CACHE", "/nowhere")
    apart = optimize(model)
    assert "expand_depthwise" not in operators(apart)
    assert len(operators(apart)) == len(operators(joined)) + 3
    assert torch.equal(apart(x), joined(x))


def test_little_is_no_reason(monkeypatch):
    measured(monkeypatch, 1.0, 0.96)
    assert "expand_depthwise" in operators(optimize(tiny()))


def test_a_shape_is_measured_once_and_kept(monkeypatch):
    asked = measured(monkeypatch, 1.0, 0.5)
    first = operators(optimize(tiny(), verify=False))
    assert len(asked) == len({str(signature) for signature in asked})
    asked.clear()
    operators(optimize(tiny(seed=1), verify=False))
    assert not asked
    cpu_measure._known.clear()  # as another process, which finds it on disk
    assert operators(optimize(tiny(seed=1), verify=False)) == first
    assert not asked


def test_off_is_off(monkeypatch):
    asked = measured(monkeypatch, 1.0, 0.5)
    monkeypatch.setenv("EFFNET_FAST_TUNE", "0")
    assert "expand_depthwise" in operators(optimize(tiny()))
    assert not asked


def test_both_ways_are_run(monkeypatch):
    fast = optimize(tiny(), verify=False)
    (part,) = fast.parts()
    plan = fast.plan((64, 48))
    for step in cpu_measure._pairs(plan):
        times = cpu_measure._measured(plan, step, part.packed)
        assert len(times) == 2 and min(times) > 0


def test_a_size_that_is_new_to_torch_compile():
    """Traced on tensors without memory, which nothing can be measured on."""
    fast, x = optimize(tiny(), verify=False), images(1, 72, 56)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), fast(x))
