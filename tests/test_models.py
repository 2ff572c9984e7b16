"""The model family: published sizes, other libraries' numbers, checkpoints in every layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from efficientnet_pytorch import EfficientNet as PytorchEfficientNet
from networks import calibrated, images
from safetensors.torch import save_file

from effnet_fast import errors, models
from effnet_fast.models import baselines
from effnet_fast.models.efficientnet import EfficientNet, Style

# Tan and Le 2019: exact parameters, and 10^9 multiply-adds counted from the layers.
PUBLISHED = {
    "efficientnet_b0": (5_288_548, 0.386),
    "efficientnet_b1": (7_794_184, 0.687),
    "efficientnet_b2": (9_109_994, 0.994),
    "efficientnet_b3": (12_233_232, 1.827),
    "efficientnet_b4": (19_341_616, 4.394),
    "efficientnet_b5": (30_389_784, 10.27),
    "efficientnet_b6": (43_040_704, 19.07),
    "efficientnet_b7": (66_347_960, 37.75),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    config = models.model_config(name)
    parameters, giga = PUBLISHED[name]
    assert config.parameters == parameters
    assert config.multiply_adds / 1e9 == pytest.approx(giga, rel=0.005)


@pytest.mark.parametrize("name", [n for n in models.list_models() if n not in PUBLISHED])
def test_the_others_have_as_many_parameters_as_timms(name):
    with torch.device("meta"):
        theirs = timm.create_model(f"tf_{name}")
    assert models.model_config(name).parameters == models.count_parameters(theirs)


def pairs():
    """Ours, and the library's model of the same layers."""
    for ours, padding, theirs in (
        ("efficientnet_b0", "symmetric", "efficientnet_b0"),
        ("efficientnet_b0", "same", "tf_efficientnet_b0"),
        ("efficientnet_b1", "same", "tf_efficientnet_b1"),
        ("efficientnet_lite0", "same", "tf_efficientnet_lite0"),
        ("efficientnetv2_b0", "same", "tf_efficientnetv2_b0"),
    ):
        yield pytest.param(
            ours, padding, lambda n=theirs: timm.create_model(n), id=f"timm-{theirs}"
        )
    for ours, theirs in (
        ("efficientnet_b0", "efficientnet_b0"),
        ("efficientnetv2_s", "efficientnet_v2_s"),
    ):
        build = lambda n=theirs: torchvision.models.get_model(n)  # noqa: E731
        yield pytest.param(ours, "symmetric", build, id=f"torchvision-{theirs}")


@pytest.mark.parametrize("name, padding, build", list(pairs()))
def test_outputs_are_the_librarys(name, padding, build):
    theirs = calibrated(build())
    ours = models.create_model(name, padding=padding, checkpoint=theirs.state_dict())
    for size in ((64, 64), (65, 97)):
        x = images(2, *size)
        with torch.no_grad():
            expected = theirs(x)
            torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4 * expected.std().item())


def test_efficientnet_pytorchs_layout_is_matched_by_structure():
    theirs = calibrated(PytorchEfficientNet.from_name("efficientnet-b0", image_size=None))
    ours = models.create_model("efficientnet_b0", padding="same", checkpoint=theirs.state_dict())
    x = images(2, 65, 66)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-4 * theirs(x).std().item())


def test_the_trained_lite0_comes_from_its_package():
    model = models.lite0_pretrained()
    assert not model.training and model.classifier.out_features == 1000
    twin = models.create_model("efficientnet_lite0", pretrained=True)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "wrap", ["plain", "state_dict", "model", "module", "safetensors", "no counters"]
)
def test_checkpoint_files_of_every_form(wrap, tmp_path):
    source = calibrated(models.create_model("efficientnet_lite0"))
    state = source.state_dict()
    path = tmp_path / f"weights.{'safetensors' if wrap == 'safetensors' else 'pth'}"
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "module":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif wrap == "no counters":
        torch.save({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, path)
    else:
        torch.save(state if wrap == "plain" else {wrap: state, "epoch": 3}, path)
    model = models.create_model("efficientnet_lite0", checkpoint=path)
    x = images(1, 64, 64)
    assert torch.equal(model(x), source(x))


def other_model(path):
    torch.save(timm.create_model("efficientnet_lite1").state_dict(), path)


def other_classes(path):
    torch.save(timm.create_model("efficientnet_lite0", num_classes=10).state_dict(), path)


def other_library(path):
    torch.save(torchvision.models.efficientnet_b0().state_dict(), path)


def truncated(path):
    torch.save(torch.zeros(1000), path)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such file"),
        (truncated, "damaged"),
        (lambda path: path.write_text("text"), "damaged"),
        (lambda path: torch.save([1], path), "no state dict"),
        (lambda path: torch.save({"a": 1}, path), "not a tensor"),
        (other_model, "layer"),
        (other_classes, r"classifier\.weight is \(10, 1280\)"),
        (other_library, "layer features"),
    ],
)
def test_wrong_checkpoints_are_refused_and_change_nothing(make, message, tmp_path):
    path = tmp_path / "weights.pth"
    make(path)
    model = models.create_model("efficientnet_lite0")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(errors.CheckpointError, match=message):
        models.load_checkpoint(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("efficientnet_b9",), errors.ModelError, "efficientnet_b0|efficientnet_b8"),
        (("efficientnet_b0", {"padding": "valid"}), errors.ArgumentError, "padding"),
        (("efficientnet_b0", {"num_classes": 0}), errors.ArgumentError, "num_classes"),
        (("efficientnet_b0", {"in_chans": -1}), errors.ArgumentError, "in_chans"),
        (
            ("efficientnet_b0", {"pretrained": True, "checkpoint": "x"}),
            errors.ArgumentError,
            "one of",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    name, options = (*arguments, {})[:2]
    with pytest.raises(error, match=message):
        models.create_model(name, **options)


def test_channels_and_classes_can_be_others():
    model = models.create_model("efficientnet_lite0", num_classes=7, in_chans=1)
    assert model(images(2, 64, 64, channels=1)).shape == (2, 7)


# Table 3 of the paper: (depth, width, resolution) to 10^9 multiply-adds. Widths are rounded to
# multiples of 8 and depths up, which the paper leaves open: hence 8 %.
TABLE_3 = [
    ("mobilenet_v1", (1, 1, 1), 0.6),
    ("mobilenet_v1", (1, 2, 1), 2.2),
    ("mobilenet_v1", (1, 1, 2), 2.2),
    ("mobilenet_v1", (1.4, 1.2, 1.3), 2.3),
    ("mobilenet_v2", (1, 1, 1), 0.3),
    ("mobilenet_v2", (4, 1, 1), 1.2),
    ("mobilenet_v2", (1, 2, 1), 1.1),
    ("mobilenet_v2", (1, 1, 2), 1.2),
    ("mobilenet_v2", (1.4, 1.2, 1.3), 1.3),
    ("resnet50", (1, 1, 1), 4.1),
    # The table has 16.2 for depth and 14.7 for width. Doubled width is four times the products of
    # every layer but the first: 16.1. The two lines must have changed places.
    ("resnet50", (4, 1, 1), 14.7),
    ("resnet50", (1, 2, 1), 16.2),
    ("resnet50", (1, 1, 2), 16.4),
    ("resnet50", (1.4, 1.2, 1.3), 16.7),
]


@pytest.mark.parametrize("name, factors, giga", TABLE_3)
def test_baselines_scale_as_in_table_3(name, factors, giga):
    depth, width, resolution = factors
    with torch.device("meta"):
        model = getattr(baselines, name)(width, depth)
    # int(224 * 1.3) = 291
    counted = models.multiply_adds(model, int(224 * resolution)) / 1e9
    assert counted == pytest.approx(giga, rel=0.08, abs=0.05)


def test_b0_scales_by_the_compound_rule_as_in_table_7():
    architecture = models.model_config("efficientnet_b0").architecture

    def giga(depth, width, resolution):
        with torch.device("meta"):
            scaled = replace(architecture, depth=depth, width=width)
            model = EfficientNet(scaled, Style(False, 1e-5))
        return models.multiply_adds(model, int(224 * resolution)) / 1e9

    assert giga(1, 1, 1) == pytest.approx(0.4, abs=0.05)
    assert giga(1.4, 1.2, 1.3) == pytest.approx(1.8, abs=0.05)
    # The table's single-dimension rows (1.8, 1.8, 1.9) are more than four times B0's 0.39, which no
    # scaling by 4, 2 and 2 can be: these are the layers' own counts.
    assert giga(4, 1, 1) == pytest.approx(1.58, abs=0.01)
    assert giga(1, 2, 1) == pytest.approx(1.45, abs=0.01)
    assert giga(1, 1, 2) == pytest.approx(1.54, abs=0.01)
