"""Batches of pixels to a model and back: the same on the CPU, and over a GPU's bus."""

import copy
import io
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import calibrated, tiny
from PIL import Image as PillowImage
from torch import nn

import effnet_fast
from effnet_fast.classify import Classifier, Preprocess, feed
from effnet_fast.classify.feed import (
    Calls,
    DeviceFeed,
    HostFeed,
    calls_of,
    device_for,
    device_of,
    dtype_for,
)
from effnet_fast.classify.sources import Image
from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError, BackendError
from effnet_fast.verify import FLOORS, relative_error

PREPROCESS = Preprocess((40, 32), (48, 38))
BATCH = 6
DTYPES = ("float32", "float16", "bfloat16")


def crops(count, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*PREPROCESS.size, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_any_number_of_images_is_one_batch_to_the_model(model):
    """And no other than on the host: what fills it up is not seen."""
    host, seen = HostFeed(model, PREPROCESS), []
    handle = model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    there = DeviceFeed(model, PREPROCESS, BATCH)
    for count in (BATCH, 1, 4, BATCH):
        y = there(crops(count, seed=count))
        assert y.shape == (count, 10)
        # Convolutions of a batch of another size may sum in another order.
        assert torch.allclose(y, host(crops(count, seed=count)), rtol=1e-5, atol=1e-6)
    handle.remove()
    assert seen == [BATCH, BATCH, BATCH, 1, BATCH, 4, BATCH, BATCH]


@given(
    st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.booleans(),
    st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)  # fmt: skip
def test_bytes_are_normalised_bit_for_bit(count, height, width, is_built, numbers):
    """By the kernel, and by PyTorch where it is missing, as torchvision's arithmetic has it."""
    preprocess = Preprocess((height, width), (50, 50), mean=numbers[:3], std=numbers[3:])
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width + 2, 3), np.uint8)
    batch = list(pixels[:, :, 1:-1])
    expected = preprocess.normalise(torch.from_numpy(np.stack(batch)))
    with pytest.MonkeyPatch.context() as patch:
        if not is_built:
            patch.setattr(feed, "extension", _missing)
        host = HostFeed(lambda x: x.clone(), preprocess)
    for some in (batch[:1], batch, batch[:2]):
        assert torch.equal(host(some), expected[: len(some)])


def test_a_model_gets_its_own_dtype(model):
    fast = effnet_fast.optimize(model, dtype=torch.float16, backend="reference", verify=False)
    y = HostFeed(fast, PREPROCESS)(crops(2))
    assert y.dtype == torch.float16
    exact = HostFeed(copy.deepcopy(model).double(), PREPROCESS)(crops(2))
    assert relative_error(y, exact) <= 4 * FLOORS[torch.float16]


def test_torchs_defaults_are_the_callers_own(model):
    expected = HostFeed(model, PREPROCESS)(crops(2))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        host, there = HostFeed(model, PREPROCESS), DeviceFeed(model, PREPROCESS, 2)
        assert torch.equal(host(crops(2)), expected)
        assert torch.allclose(there(crops(2)), expected, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_default_dtype(before)


def test_an_output_that_only_has_logits(model):
    def net(x):
        return types.SimpleNamespace(logits=model(x), other=object())

    assert DeviceFeed(net, PREPROCESS, BATCH)(crops(2)).shape == (2, 10)


def _missing():
    raise BackendError("not built")


def test_outputs_of_every_kind(model):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            y = self.body(x)
            return y, {"half": y[:, :5]}

    y, more = DeviceFeed(Pair(), PREPROCESS, BATCH)(crops(2))
    assert y.shape == (2, 10) and torch.equal(more["half"], y[:, :5])


@pytest.mark.parametrize(
    "place, dtype",
    [
        ("cpu", "float32"),
        *(pytest.param("cuda", d, marks=pytest.mark.gpu) for d in DTYPES),
    ],
)
def test_threads_have_memory_of_their_own(model, place, dtype):
    """On a GPU one's copies are under way while the other's batch is computed."""
    dtype, wide = dtype_for(dtype), copy.deepcopy(model).double()
    if place == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batches = [crops(1 + i % BATCH, seed=i) for i in range(24)]
    exact = []
    for batch in batches:
        x = PREPROCESS.normalise(torch.from_numpy(np.stack(batch))).double()
        with torch.no_grad():
            exact.append(wide(x))
    fast = effnet_fast.optimize(copy.deepcopy(model).to(place), dtype=dtype, verify=False)
    there, found = DeviceFeed(fast, PREPROCESS, BATCH), [None] * len(batches)

    def run(first):
        for i in range(first, len(batches), 2):
            found[i] = there(batches[i])

    threads = [threading.Thread(target=run, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(y.device.type == "cpu" for y in found)
    worst = max(relative_error(y, e) for y, e in zip(found, exact, strict=True))
    # A few images of ten classes each, where FLOORS is of whole networks' batches.
    assert worst <= 4 * FLOORS[dtype]


def test_who_calls_a_model(model):
    fast = effnet_fast.optimize(model, verify=False)
    assert calls_of(fast) is Calls.ALL
    assert calls_of(model) is calls_of(lambda x: x) is Calls.ONE
    assert calls_of(effnet_fast.optimize(model, backend="reference", verify=False)) is Calls.ONE
    assert device_of(fast) == device_of(lambda x: x) == torch.device("cpu")


def test_two_threads_of_a_gpu_do_not_decode(model):
    """Their number is seen from what the model is called by; here a CPU stands in."""
    callers = set()

    def infer(x):
        callers.add(threading.current_thread())
        return model(x)

    classifier = Classifier(None, PREPROCESS, batch_size=2, workers=3)
    images = [pillow_file(i) for i in range(40)]
    images = (Image(str(i), Path(), data=data) for i, data in enumerate(images))
    run = classifier.run(images, Calls.GPU)
    try:
        run.start(infer)
        assert [result.filename for result in run] == [str(i) for i in range(40)]
        assert len(run._workers._threads) == 3 + 2
    finally:
        run.close()
    assert 1 <= len(callers) <= 2


def pillow_file(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), np.uint8)
    out = io.BytesIO()
    PillowImage.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.png").write_bytes(pillow_file(i))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights whose answers differ from image to image."""
    path = tmp_path_factory.mktemp("weights") / "lite0.pt"
    torch.save(calibrated(timm.create_model("tf_efficientnet_lite0")).state_dict(), path)
    return path


def classify(photos: Path, checkpoint: Path, *options: str) -> tuple[int, list[list[str]]]:
    results = photos.parent / f"results{''.join(options)}.csv"
    status = main([
        "classify", str(photos), "-m", "timm:tf_efficientnet_lite0", "--checkpoint",
        str(checkpoint), "-b", "4", "--results-file", str(results), *options,
    ])  # fmt: skip
    rows = [line.split(",") for line in results.read_text().splitlines()] if not status else []
    return status, rows


def test_what_is_not_there_is_refused_before_work(photos, checkpoint, capsys):
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="libcuda"):
            device_for("gpu")
        assert classify(photos, checkpoint, "--backend", "gpu")[0] == 2
        assert "libcuda" in capsys.readouterr().err
    assert device_for("cpu") == device_for("ptx") == torch.device("cpu")
    assert classify(photos, checkpoint, "--backend", "cpu", "--dtype", "float16")[0] == 2
    assert "computes in float32" in capsys.readouterr().err
    assert classify(photos, checkpoint, "--no-optimize", "--dtype", "float16")[0] == 2
    with pytest.raises(ArgumentError, match="'int8'; accepted: float32"):
        dtype_for("int8")


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_answers(photos, checkpoint, capsys):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, expected = classify(photos, checkpoint, "--backend", "cpu")
    status, auto = classify(photos, checkpoint)
    assert status == 0 and "gpu backend" in capsys.readouterr().err
    status, half = classify(photos, checkpoint, "--dtype", "float16")
    assert status == 0 and "float16 on NVIDIA" in capsys.readouterr().err
    at = expected[0].index("prob_0")
    for a, b, c in zip(expected[1:], auto[1:], half[1:], strict=True):
        assert a[:2] == b[:2]  # the file and its class
        # A change of a logit is one of the probability's logarithm: of some 10 a float32 network is
        # off by 1e-5 of them, one in half precision by 1e-3 to 1e-2.
        assert float(b[at]) == pytest.approx(float(a[at]), rel=1e-3)
        assert float(c[at]) == pytest.approx(float(a[at]), rel=0.1)
