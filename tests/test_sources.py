"""Models of every source: right numbers, every convolution fused, one optimised model for all sizes
and batches."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import images
from torch.utils import _pytree as pytree

import effnet_fast
from effnet_fast.bench.coverage import EFFICIENTNET_PYTORCH, TORCHVISION, build, cover, models
from effnet_fast.verify import FLOORS, Tally

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


@pytest.mark.parametrize("source, name", selected(WHOLE, SHORT))
def test_every_convolution_is_fused_and_right(source, name):
    model = build(source, name)
    fast = effnet_fast.optimize(model)
    assert fast.report.fused_share == 1.0
    assert fast.report.fallbacks == ()
    # Pooled over images: of one image, our error is 0.5 to 2 times the stock model's, either way.
    twin, tally = copy.deepcopy(model).double(), Tally(torch.float32)
    for shape in ((3, 97, 131), (1, 65, 64), (9, 80, 81)):
        x = images(shape[0], *shape[1:])
        with torch.no_grad():
            outputs = (fast(x), model(x), twin(x.double()))
        parity = tally.add(*(pytree.tree_leaves(output) for output in outputs), shape)
    assert parity.error <= FLOORS[torch.float32] * max(1.0, parity.stock_error / 1e-6)


@pytest.mark.parametrize("source, name", selected(OTHERS, OTHERS_SHORT))
def test_what_is_not_fused_is_named_and_the_answer_right(source, name):
    covered = cover(source, name)
    assert covered.report is not None, covered.error
    assert covered.report.parity
    assert covered.report.fused_share == 1.0 or covered.report.fallbacks
