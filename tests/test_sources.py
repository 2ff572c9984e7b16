"""Models of every source: right numbers, every convolution fused, one optimised model for all sizes
and batches."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import images
from torch import nn
from torch.utils import _pytree as pytree

import effnet_fast
from effnet_fast.bench.coverage import EFFICIENTNET_PYTORCH, TORCHVISION, calibrated, cover, models
from effnet_fast.verify import FLOORS, relative_error

# What these sources make of an EfficientNet must be fused operators without a rest.
WHOLE = [
    *(("torchvision", name) for name in TORCHVISION),
    *(("efficientnet_pytorch", name) for name in EFFICIENTNET_PYTORCH),
    ("transformers", "efficientnet-b0"),
    ("transformers", "efficientnet-b7"),
    *(
        ("timm", name)
        for name in (
            *(f"efficientnet_b{i}" for i in range(5)),
            *(f"tf_efficientnet_b{i}" for i in range(8)),
            *(f"efficientnet_lite{i}" for i in range(5)),
            *(f"tf_efficientnetv2_{size}" for size in ("s", "m", "b0", "b1", "b2", "b3")),
            *(f"efficientnetv2_rw_{size}" for size in "ts"),
            *(f"efficientnet_{size}" for size in ("es", "em", "el")),
            "efficientnet_b1_pruned",
        )
    ),
]
# One of each way to write an EfficientNet, for the short run.
SHORT = {
    ("torchvision", "efficientnet_b0"),
    ("torchvision", "efficientnet_v2_s"),
    ("efficientnet_pytorch", "efficientnet-b0"),
    ("transformers", "efficientnet-b0"),
    ("timm", "efficientnet_b0"),
    ("timm", "tf_efficientnet_b0"),
    ("timm", "efficientnet_lite0"),
    ("timm", "tf_efficientnetv2_b0"),
    ("timm", "efficientnet_es"),
    ("timm", "efficientnet_b1_pruned"),
}
OTHERS = sorted(set(models()) - set(WHOLE))
OTHERS_SHORT = {
    ("timm", name) for name in ("test_efficientnet_evos", "mixnet_s", "mobilenetv3_small_050")
}


def selected(keys, short):
    return [
        pytest.param(*key, id="-".join(key), marks=() if key in short else pytest.mark.full)
        for key in keys
    ]


def relative_errors(fast: nn.Module, model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    with torch.no_grad():
        exact = pytree.tree_leaves(copy.deepcopy(model).double()(x.double()))[0]
        ours, stock = (pytree.tree_leaves(m(x))[0] for m in (fast, model))
    return relative_error(ours, exact), relative_error(stock, exact)


@pytest.mark.parametrize("source, name", selected(WHOLE, SHORT))
def test_every_convolution_is_fused_and_right(source, name):
    model = calibrated(models()[source, name]())
    fast = effnet_fast.optimize(model)
    assert fast.report.fused_share == 1.0
    assert fast.report.fallbacks == ()
    # A static padding is right at its own size alone, and there is nothing to compare with
    # elsewhere.
    for shape in ((3, 97, 131), (1, 65, 64)):
        x = images(shape[0], *shape[1:])
        error, stock = relative_errors(fast, model, x)
        # Twice the stock model's own error: a single draw of rounding errors varies by as much.
        assert error <= FLOORS[torch.float32] * max(1.0, stock / 1e-6)


@pytest.mark.parametrize("source, name", selected(OTHERS, OTHERS_SHORT))
def test_what_is_not_fused_is_named_and_the_answer_right(source, name):
    covered = cover(source, name)
    assert covered.report is not None, covered.error
    assert covered.report.parity
    assert covered.report.fused_share == 1.0 or covered.report.fallbacks
