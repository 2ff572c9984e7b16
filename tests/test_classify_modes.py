"""Decoding and resizing: the same pixels as Pillow's and timm's where that is promised, near them
elsewhere, and the same notes and reasons in every mode."""

import io
import sys

import numpy as np
import pytest
from PIL import Image as Pillow
from skimage import data
from timm.data import create_transform

from effnet_fast.classify import MODES, Image, Preprocess, decode
from effnet_fast.classify.decode import decode_pixels
from effnet_fast.classify.load import Loader, LoaderProcess
from effnet_fast.errors import ArgumentError, BackendError, ImageError

PHOTO = Pillow.fromarray(data.chelsea())
LITE0 = Preprocess((224, 224), (256, 256))


def jpeg(image=PHOTO, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def exif(orientation):
    tags = Pillow.Exif()
    tags[0x0112] = orientation
    return tags


JPEGS = {
    "4:2:0": {"subsampling": 2, "quality": 80},
    "4:2:2": {"subsampling": 1, "quality": 90},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "rgb": {"keep_rgb": True},
    "restarts": {"restart_marker_rows": 2},
    "rough": {"quality": 5},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(451, 300), (33, 47), (1, 1), (8, 1)])
def test_turbos_pixels_are_pillows(kind, size):
    file = jpeg(PHOTO.resize(size), **JPEGS[kind])
    pixels, found, notes = decode_pixels(file)
    np.testing.assert_array_equal(pixels, np.asarray(decode(file)[0]))
    assert (found, notes) == (size, ())


def test_grey_jpegs():
    file = jpeg(PHOTO.convert("L"))
    np.testing.assert_array_equal(decode_pixels(file)[0], np.asarray(decode(file)[0]))


def test_a_cmyk_jpeg_is_pillows():
    file = jpeg(PHOTO.convert("CMYK"))
    pixels, _, notes = decode_pixels(file)
    np.testing.assert_array_equal(pixels, np.asarray(decode(file)[0]))
    assert notes == ("CMYK converted without its colour profile",)


@pytest.mark.parametrize("apply_exif", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpegs(orientation, apply_exif):
    file = jpeg(exif=exif(orientation))
    image, notes = decode(file, apply_exif=apply_exif)
    pixels, size, found = decode_pixels(file, apply_exif=apply_exif)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert (size, found) == (image.size, notes)
    # Scaled, an edge is the same edge.
    small, size, _ = decode_pixels(
        file, apply_exif=apply_exif, least=lambda w, h: (w // 2 + 1, h // 2 + 1)
    )
    assert size == image.size
    assert abs(small.shape[1] / small.shape[0] - image.width / image.height) < 0.02


def test_what_turbo_complains_of_is_pillows_to_judge():
    """Pillow takes a JPEG with damage that libjpeg only warns of, as timm does."""
    file = bytearray(jpeg(quality=90))
    middle = len(file) // 2
    file[middle : middle + 4] = b"\xff\xd9\xff\x00"
    file = bytes(file)
    try:
        expected = np.asarray(decode(file)[0])
    except ImageError as error:
        with pytest.raises(ImageError, match=str(error)[:20]):
            decode_pixels(file)
    else:
        np.testing.assert_array_equal(decode_pixels(file)[0], expected)
    with pytest.raises(ImageError, match="truncated"):
        decode_pixels(jpeg()[:5000])


def test_without_simplejpeg(monkeypatch):
    from effnet_fast.classify import load

    monkeypatch.setattr("effnet_fast.classify.load.HAS_TURBO", False)
    with pytest.raises(BackendError, match=r"needs simplejpeg: pip install 'effnet-fast\[classify"):
        Loader(LITE0, "fast-decode")
    monkeypatch.setitem(load.decode_pixels.__globals__, "simplejpeg", None)
    file = jpeg()
    np.testing.assert_array_equal(decode_pixels(file)[0], np.asarray(decode(file)[0]))


def test_exact_is_decoded_by_pillow_where_its_decoder_has_other_pixels(monkeypatch, caplog):
    import effnet_fast.classify.load  # noqa: F401

    module = sys.modules["effnet_fast.classify.decode"]
    image, real = Image("k", None, data=jpeg(quality=90)), module.simplejpeg.decode_jpeg
    assert module.turbo_is_pillows()
    right = Loader(LITE0, "exact")(image).pixels

    class Other:
        @staticmethod
        def decode_jpeg(*arguments, **options):
            return real(*arguments, **options) ^ 1

    monkeypatch.setattr(module, "simplejpeg", Other)
    module.turbo_is_pillows.cache_clear()
    try:
        with caplog.at_level("WARNING"):
            np.testing.assert_array_equal(Loader(LITE0, "exact")(image).pixels, right)
        assert "its pixels are not libjpeg-turbo's" in caplog.text
        assert (Loader(LITE0, "default")(image).pixels != right).any()
    finally:
        module.turbo_is_pillows.cache_clear()


# ---- crops ---------------------------------------------------------------------------------------

SIZES = [
    (451, 300), (300, 451), (1600, 1200), (1201, 1600), (1999, 1499), (640, 480), (256, 256),
    (100, 80), (1, 1), (700, 20), (4000, 3000), (300, 600), (640, 1280), (100, 900),
]  # fmt: skip


def noise(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("edge", "crop_pct", "mode", "interpolation"),
    [
        (224, 0.875, "center", "bicubic"),  # 256: parts are resized alone
        (240, 0.882, "center", "bilinear"),
        (260, 0.89, "center", "bicubic"),
        (288, 1.0, "squash", "bicubic"),
        (112, 0.875, "center", "lanczos"),
    ],
)
def test_exact_crops_are_timms_pixels(size, edge, crop_pct, mode, interpolation):
    image = noise(*size)
    preprocess = Preprocess((edge, edge), (edge, edge), mode, interpolation, (0, 0, 0), (1, 1, 1))
    preprocess = preprocess.changed(crop_pct=crop_pct)
    transform = create_transform(
        (3, edge, edge), crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    np.testing.assert_array_equal(preprocess(image), transform(image).numpy())


def test_a_crop_larger_than_the_image_is_padded_alike():
    preprocess = Preprocess((300, 260), (200, 200))
    for size in ((500, 300), (200, 230), (290, 200)):
        exact = preprocess._crop_by_pillow(noise(*size), preprocess.resized(*size))
        assert exact.shape == (300, 260, 3)
        np.testing.assert_array_equal(preprocess.crop(noise(*size)), exact)


def test_nearest_is_pillows():
    preprocess = LITE0.changed(interpolation="nearest")
    image = noise(500, 400)
    exact = preprocess._crop_by_pillow(image, preprocess.resized(*image.size))
    np.testing.assert_array_equal(preprocess.crop_pixels(np.asarray(image)), exact)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    image = Image("k", None, data=jpeg(PHOTO.resize((1800, 1200)), quality=90))
    decoded = Loader(LITE0, mode)(image)
    assert (decoded.key, decoded.note, decoded.error) == ("k", "", "")
    assert decoded.pixels.dtype == np.uint8
    exact = LITE0.crop(decode(image.data)[0]).astype(int)
    far = np.abs(decoded.pixels.astype(int) - exact).max()
    assert 0 < far <= 40 if mode == "fast-decode" else far == 0


def test_fast_decode_keeps_small_jpegs_whole():
    loader = Loader(LITE0, "fast-decode")
    for size, scale in (((700, 600), 1), ((1200, 800), 2), ((2000, 1500), 4), ((4000, 3000), 8)):
        assert loader._least(*size) == (size[0] // scale, size[1] // scale)


def test_modes_have_names():
    with pytest.raises(ArgumentError, match="mode is 'slow'"):
        Loader(LITE0, "slow")


FAULTS = {
    "zero bytes": (b"", "an empty file (0 bytes)"),
    "text": (b"hello", "not an image"),
    "truncated": (jpeg()[:3000], "damaged or truncated: "),
    "head only": (jpeg()[:20], "damaged or truncated: |not an image"),
    "elongated": (jpeg(Pillow.new("RGB", (30_000, 1))), "too elongated: 30000x1"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_the_same_in_every_mode(kind, mode):
    data, expected = FAULTS[kind]
    decoded = Loader(LITE0, mode)(Image("k", None, data=data))
    assert decoded.pixels is None
    assert any(decoded.error.startswith(start) for start in expected.split("|"))
    assert decoded.error == Loader(LITE0, "exact")(Image("k", None, data=data)).error


def test_a_jpeg_of_too_many_pixels_is_not_decoded():
    file = bytearray(jpeg(Pillow.new("RGB", (16, 16))))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    for mode in MODES:
        error = Loader(LITE0, mode)(Image("k", None, data=bytes(file))).error
        assert error.startswith("too large: ")
        assert "400000000 pixels" in error


# ---- decoders in processes -----------------------------------------------------------------------


def test_a_decoder_that_is_killed_is_replaced(tmp_path):
    import os
    import signal

    loader = Loader(LITE0)
    image = Image("k", None, data=jpeg())
    process = LoaderProcess(loader)
    try:
        expected = loader(image).pixels
        np.testing.assert_array_equal(process(image).pixels, expected)
        first = process.pid
        os.kill(first, signal.SIGKILL)
        np.testing.assert_array_equal(process(image).pixels, expected)
        assert process.pid != first
    finally:
        process.close()


class Stillborn(Loader):
    """Can't be brought into another process."""

    def __setstate__(self, state):
        raise RuntimeError("never")

    def __getstate__(self):
        return {}


def test_a_process_that_does_not_begin_is_no_images_fault():
    process = LoaderProcess(Stillborn(LITE0))
    with pytest.raises(BackendError, match="ended at its start, by exit status 1; a script that"):
        process(Image("k", None, data=jpeg()))
    process.close()


class Deadly(Loader):
    """Crashes on one image, as a decoder with a bug does."""

    def __call__(self, image):
        import os

        if image.key == "deadly":
            os.abort()
        return super().__call__(image)


def test_an_image_that_kills_its_decoder_gets_a_row():
    process = LoaderProcess(Deadly(LITE0))
    try:
        assert process(Image("deadly", None, data=b"x")).error == (
            "its decoder was ended twice, by SIGABRT"
        )
        assert process(Image("k", None, data=jpeg())).error == ""
    finally:
        process.close()
