"""plan: sizes, fusions, stages, and an arena in which no two living values overlap."""

from __future__ import annotations

import math

import pytest
import torch
from networks import Unexpanded, calibrated, conv_norm_act, tiny
from test_recognise import network_of
from torch import nn

from effnet_fast.errors import ShapeError
from effnet_fast.plan import make_plan


def operators(plan) -> list[str]:
    return [step.operator for step in plan.steps]


def test_an_efficientnet_is_one_native_stage_with_its_fusions():
    plan = make_plan(network_of(tiny()), (64, 64))
    mbconv = ["expand_depthwise", "squeeze_excite", "pointwise_conv"]
    assert operators(plan) == [
        "stem_conv",
        "fused_mbconv",
        *mbconv,
        *mbconv,
        "pointwise_conv",
        "classifier",
    ]
    assert [stage.native for stage in plan.stages] == [True]
    (stage,) = plan.stages
    assert len(stage.inputs) == 1 and len(stage.outputs) == 1
    # The pooled features: written image by image, read by the classifier for the whole batch.
    assert len(stage.internal) == 1


def test_a_stem_joins_the_depthwise_convolution_for_engines_that_do_both():
    network, joins = network_of(calibrated(Unexpanded())), {"stem_depthwise"}
    rest = ["squeeze_excite", "pointwise_conv"]
    plan = make_plan(network, (33, 40), joins=joins)
    assert operators(plan) == ["stem_depthwise", *rest]
    first = next(plan.steps)
    assert first.reads() == (network.input,) and len(first.makes()) == 2
    assert first.stem.stride == (2, 2) and first.stem.padding == (1, 0, 1, 1)
    assert first.window.kernel == (5, 5) and first.window.stride == (1, 1)
    assert all(first.nodes[0].name not in stage.offsets for stage in plan.stages)
    apart = ["stem_conv", "depthwise_conv", *rest]
    assert operators(make_plan(network, (33, 40))) == apart
    assert operators(make_plan(network, (33, 40), {first.nodes[0].name}, joins=joins)) == apart
    network = network_of(calibrated(Unexpanded(is_read_twice=True)))
    assert operators(make_plan(network, (33, 40), joins=joins)) == apart


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (32, 33)])
def test_living_values_do_not_overlap_in_the_arena(size):
    plan = make_plan(network_of(tiny()), size)
    (stage,) = plan.stages
    spans, alive = {}, {}
    for index, step in enumerate(stage.steps):
        for name in step.makes():
            if name in stage.offsets:
                start = stage.offsets[name]
                spans[name] = (start, start + math.prod(plan.sizes[name]))
                alive[name] = [index, index]
                assert start % 16 == 0 and spans[name][1] <= stage.arena
        for name in step.reads():
            if name in alive:
                alive[name][1] = index
    assert len(spans) == 10
    for a in spans:
        for b in spans:
            at_once = alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1]
            if a != b and at_once:
                assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0]
    assert stage.arena < sum(math.prod(plan.sizes[name]) for name in spans)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 65), (50, 37)])
def test_sizes_are_what_the_model_makes(same, size):
    model = tiny(same=same)
    plan = make_plan(network_of(model), size)
    x = model.blocks(model.fused(model.stem(torch.zeros(1, 3, *size))))
    assert tuple(x.shape[1:]) in plan.sizes.values()


def test_a_map_too_small_is_refused_with_the_layer():
    model = calibrated(nn.Sequential(conv_norm_act(3, 4, 3, 2), nn.Conv2d(4, 4, 5)))
    network = network_of(model)
    make_plan(network, (9, 9))
    with pytest.raises(ShapeError, match=r"8x9 is too small: the 4x4x5 map .* 5x5 window"):
        make_plan(network, (8, 9))


class TwoStages(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv_norm_act(3, 8, 3, 2), conv_norm_act(8, 8)

    def forward(self, x):
        return self.b(nn.functional.max_pool2d(self.a(x), 3, 2))


def test_a_segment_cuts_the_plan_and_its_sizes_are_known():
    plan = make_plan(network_of(calibrated(TwoStages())), (40, 42))
    assert operators(plan) == ["stem_conv", "aten", "pointwise_conv"]
    assert [stage.native for stage in plan.stages] == [True, False, True]
    assert (8, 9, 10) in plan.sizes.values()
