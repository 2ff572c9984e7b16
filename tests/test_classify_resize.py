"""The resize kernel: Pillow's pixels, for all sizes, filters and crops, by each instruction set."""

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from effnet_fast import _C
from effnet_fast.classify import Preprocess, resize
from effnet_fast.classify.resize import FILTERS, is_pillows


class Part(NamedTuple):
    start: int
    count: int


def pillows(pixels, size, interpolation, rows, columns):
    image = Pillow.fromarray(pixels).resize(size[::-1], Pillow.Resampling[interpolation.upper()])
    part = np.asarray(image)[rows.start :, columns.start :]
    return part[: rows.count, : columns.count]


edges = st.one_of(st.integers(1, 40), st.integers(1, 400))


@st.composite
def parts(draw, edge):
    start = draw(st.integers(0, edge - 1))
    return Part(start, draw(st.integers(1, edge - start)))


@settings(max_examples=300)
@given(data=st.data())
def test_pixels_are_pillows(data):
    height, width = data.draw(edges), data.draw(edges)
    to_height = data.draw(st.one_of(st.just(height), edges))
    to_width = data.draw(st.one_of(st.just(width), edges))
    rows, columns = data.draw(parts(to_height)), data.draw(parts(to_width))
    interpolation = data.draw(st.sampled_from(FILTERS))
    noise = np.random.default_rng(data.draw(st.integers(0, 9)))
    # Noise, and black and white, whose sums pass 0 and 255.
    pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if data.draw(st.booleans()):
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    arguments = (pixels, (to_height, to_width), interpolation, rows, columns)
    np.testing.assert_array_equal(resize.resize(*arguments), pillows(*arguments))


@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_instruction_set(isa):
    """In a process of its own, for the set is chosen once."""
    code = """
import numpy as np
from effnet_fast import _C
from tests.test_classify_resize import FILTERS, Part, pillows, resize
noise = np.random.default_rng(0)
for (height, width), to in (
    ((300, 401), (57, 76)), ((301, 80), (40, 33)), ((7, 5), (50, 60)), ((1, 9), (3, 3)),
    ((20, 10), (20, 33)), ((20, 10), (9, 10)),
):
    pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name in FILTERS:
        for rows, columns in (
            (Part(0, to[0]), Part(0, to[1])), (Part(1, to[0] - 2), Part(2, 1)),
        ):
            arguments = (pixels, to, name, rows, columns)
            np.testing.assert_array_equal(resize.resize(*arguments), pillows(*arguments))
print(_C.isa())
"""
    environment = {"EFFNET_FAST_ISA": isa, "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == isa, done.stderr


def test_rows_with_gaps_and_other_strides():
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    whole = Part(0, 20), Part(0, 30)
    for view in (noise[10:50, 20:80], noise[::-1], noise[:, ::-1], noise.transpose(1, 0, 2)):
        expected = pillows(np.ascontiguousarray(view), (20, 30), "bicubic", *whole)
        np.testing.assert_array_equal(resize.resize(view, (20, 30), "bicubic", *whole), expected)


def test_the_crop_must_lie_within():
    pixels = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="the crop is not within the resized image"):
        resize.resize(pixels, (5, 5), "box", Part(0, 6), Part(0, 5))


def test_another_pillow_resizes_itself(monkeypatch, caplog):
    """Where its pixels are not the kernel's, as before version 13, they are still what is made."""
    preprocess = Preprocess((32, 32), (40, 40))
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected = preprocess.crop_pixels(pixels)
    right = resize.resize
    monkeypatch.setattr(resize, "resize", lambda *a: right(*a) ^ 1)
    is_pillows.cache_clear()
    try:
        with caplog.at_level("WARNING"):
            assert not is_pillows()
        assert "which takes ten times as long: it has other box pixels" in caplog.text
        np.testing.assert_array_equal(preprocess.crop_pixels(pixels), expected)
        np.testing.assert_array_equal(preprocess.crop(Pillow.fromarray(pixels)), expected)
    finally:
        is_pillows.cache_clear()
