"""Archives, tables, lists and patterns: every image under a stable key, and what is wrong with
others."""

import gzip
import io
import os
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image as Pillow

from effnet_fast.classify import Columns, Preprocess, classify, find_images
from effnet_fast.classify.progress import count_images
from effnet_fast.classify.sources import Keys, listed
from effnet_fast.errors import ArgumentError

SMALL = Preprocess((8, 8), (8, 8), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
COLOURS = ("red", "lime", "blue")


def photo(colour, size=(12, 9)):
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


PHOTOS = [photo(colour) for colour in COLOURS]


def classes(found):
    """Key to class, or to the error."""

    def model(x):
        return x.mean(dim=(2, 3)) * 20

    results = classify(found, model, SMALL, batch_size=2)
    return {r.filename: r.error or COLOURS[r.indices[0]] for r in results}


def add(archive, name, data, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data)
    archive.addfile(member, io.BytesIO(data))


def make_tar(path, names=("a/0.png", "1.png", "z/2.PNG"), mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in zip(names, PHOTOS, strict=True):
            add(archive, name, data)
            add(archive, f"{name}.json", b"{}")  # what webdataset shards hold besides
    return path


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_tar(tmp_path, suffix, mode):
    path = make_tar(tmp_path / f"shard.{suffix}", mode=mode)
    expected = {f"{path}/a/0.png": "red", f"{path}/1.png": "lime", f"{path}/z/2.PNG": "blue"}
    found = classes(find_images([path]))
    assert found == expected
    assert list(found) == list(expected)
    assert list(classes(find_images([path, path]))) == list(expected)  # once


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/", b"")
        for name, data in zip(("a/0.png", "1.png", "2.png"), PHOTOS, strict=True):
            archive.writestr(name, data)
        archive.writestr("notes.txt", "x")
    assert classes(find_images([tmp_path / "x.zip"])) == {
        f"{tmp_path}/x.zip/a/0.png": "red",
        f"{tmp_path}/x.zip/1.png": "lime",
        f"{tmp_path}/x.zip/2.png": "blue",
    }


def test_a_damaged_member_of_a_zip_fails_alone(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, data in enumerate(PHOTOS):
            archive.writestr(f"{index}.png", data)
    data = bytearray(path.read_bytes())
    at = data.index(PHOTOS[1])
    data[at + 40] ^= 0xFF
    path.write_bytes(data)
    found = classes(find_images([path]))
    assert found[f"{path}/1.png"].startswith("damaged in the archive: Bad CRC-32")
    assert [found[f"{path}/{i}.png"] for i in (0, 2)] == ["red", "blue"]
    path.write_bytes(data[:-60])
    (error,) = classes(find_images([path])).values()
    assert error.startswith("a damaged or truncated archive, after 0 images: ")


def cuts():
    """Where a tar of three members is cut: in data, in a header, between two members."""
    return {"data": 1024 * 2 + 512 + 700, "header": 2 * 1024 + 100, "between": 2 * 1024}


@pytest.mark.parametrize("where", cuts())
def test_a_truncated_tar_says_so(tmp_path, where):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for index in range(3):
            add(archive, f"{index}.png", PHOTOS[index].ljust(512 if index < 2 else 5000, b"\0"))
    path.write_bytes(path.read_bytes()[: cuts()[where]])
    found = classes(find_images([path]))
    assert [found.get(f"{path}/{i}.png") for i in (0, 1, 2)] == ["red", "lime", None]
    assert found[str(path)].startswith("a damaged or truncated archive, after 2 images: ")


def test_a_truncated_gzipped_tar_says_so(tmp_path):
    path = tmp_path / "x.tar.gz"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for index in range(3):
            add(archive, f"{index}.png", PHOTOS[index] + np.random.default_rng(0).bytes(90_000))
    path.write_bytes(gzip.compress(plain.getvalue())[:200_000])
    found = classes(find_images([path]))
    assert found[f"{path}/0.png"] == "red"
    assert "a damaged or truncated archive, after 2 images" in found[str(path)]
    path.write_bytes(b"no archive")
    assert "after 0 images" in classes(find_images([path]))[str(path)]


def test_duplicate_keys_in_an_archive(tmp_path):
    path = make_tar(tmp_path / "x.tar", names=("a.png", "a.png", "./a.png"))
    found = classes(find_images([path]))
    assert found == {
        f"{path}/a.png": "red",
        f"{path}/a.png#2": f"a duplicate key: {path}/a.png is in the archive 2 times or more",
        f"{path}/a.png#3": f"a duplicate key: {path}/a.png is in the archive 3 times or more",
    }


def test_members_whose_names_are_no_utf8(tmp_path):
    path = make_tar(tmp_path / "x.tar", names=("caf\udce9.png", "b.png", "c.png"))
    assert f"{path}/caf\\xe9.png" in classes(find_images([path]))


def test_links_in_a_tar_have_no_bytes(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "a.png", PHOTOS[0])
        add(archive, "b.png", b"", tarfile.SYMTYPE)
        add(archive, "dir.png", b"", tarfile.DIRTYPE)
    assert classes(find_images([path])) == {
        f"{path}/a.png": "red",
        f"{path}/b.png": "a link or a device, which has no bytes here",
    }


def test_a_tar_of_any_length_takes_the_same_memory(tmp_path):
    path = tmp_path / "x.tar"

    def most(members):
        with tarfile.open(path, "w") as archive:
            for index in range(members):
                add(archive, f"{index}.png", PHOTOS[0])
        tracemalloc.start()
        for _ in find_images([path]):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    most(10)
    assert most(5000) < most(500) + 100_000


# ---- tables --------------------------------------------------------------------------------------


def write(path, table):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        new = pyarrow.ipc.new_stream if path.name == "stream.arrow" else pyarrow.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["x.parquet", "x.feather", "file.arrow", "stream.arrow"])
def test_tables(tmp_path, name):
    table = pyarrow.table({"label": [0, 1, 2], "image": PHOTOS, "id": ["r", "g", "b"]})
    path = write(tmp_path / name, table)
    assert classes(find_images([path])) == {f"{path}/{i}": COLOURS[i] for i in range(3)}
    named = find_images([path], Columns(image="image", key="id"))
    assert classes(named) == {"r": "red", "g": "lime", "b": "blue"}


def test_a_column_of_structs_with_bytes(tmp_path):
    rows = [{"bytes": data, "path": None} for data in PHOTOS]
    path = write(tmp_path / "x.parquet", pyarrow.table({"image": rows}))
    assert list(classes(find_images([path])).values()) == list(COLOURS)


def test_a_column_of_paths_seen_from_the_table(tmp_path):
    (tmp_path / "a.png").write_bytes(PHOTOS[0])
    path = write(tmp_path / "x.parquet", pyarrow.table({"path": ["a.png", "gone.png"]}))
    found = classes(find_images([path]))
    assert found == {
        str(tmp_path / "a.png"): "red",
        str(tmp_path / "gone.png"): "no such file or directory",
    }


def test_rows_without_an_image_and_with_a_key_twice(tmp_path):
    table = pyarrow.table({"image": [*PHOTOS, None], "id": ["a", "b", "a", "c"]})
    path = write(tmp_path / "x.parquet", table)
    assert classes(find_images([path], Columns(key="id"))) == {
        "a": "red",
        "b": "lime",
        "a#2": "a duplicate key: a is in the table 2 times or more",
        "c": "the row has no image",
    }


def test_a_damaged_table_is_an_error_of_its_own(tmp_path):
    path = write(tmp_path / "x.parquet", pyarrow.table({"image": PHOTOS}))
    path.write_bytes(path.read_bytes()[:-20])
    (error,) = classes(find_images([path])).values()
    assert error.startswith("a damaged or truncated table, after 0 rows: ")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (Columns(image="picture"), "no column 'picture'; accepted: image, n"),
        (Columns(key="id"), "no column 'id'; accepted: image, n"),
        (Columns(image="n"), "column 'n' is of int64; accepted: bytes"),
    ],
)
def test_columns_that_a_table_has_not(tmp_path, columns, expected):
    path = write(tmp_path / "x.parquet", pyarrow.table({"image": PHOTOS, "n": [1, 2, 3]}))
    with pytest.raises(ArgumentError, match=expected):
        list(find_images([path], columns))


def test_a_table_without_images(tmp_path):
    path = write(tmp_path / "x.parquet", pyarrow.table({"n": [1]}))
    with pytest.raises(ArgumentError, match="no column holds bytes or is called path"):
        list(find_images([path]))


def test_tables_need_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", pyarrow.table({"image": PHOTOS}))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ArgumentError, match=r"needs pyarrow: pip install 'effnet-fast\[classify"):
        list(find_images([path]))


# ---- patterns, lists, keys, counts ---------------------------------------------------------------


def test_patterns(tmp_path):
    for index, name in enumerate(("b.png", "a.png", "c/d.png", "e.dat")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PHOTOS[index % 3])
    keys = [image.key for image in find_images([tmp_path / "**" / "*.png"])]
    assert keys == [f"{tmp_path}/{name}" for name in ("a.png", "b.png", "c/d.png")]
    (nothing,) = find_images([tmp_path / "*.gif"])
    assert nothing.error == "a pattern that no file fits"
    (tmp_path / "[x].png").write_bytes(PHOTOS[0])  # a name that is there is no pattern
    (image,) = find_images([tmp_path / "[x].png"])
    assert image.error == ""


def test_lists():
    lines = [b"a.png\n", b"\n", b"b c.png\r\n", b"caf\xe9.png"]
    found = [os.fsencode(path) for path in listed(lines)]
    assert found == [b"a.png", b"b c.png", b"caf\xe9.png"]


def test_keys_are_exact_and_small():
    tracemalloc.start()
    keys = Keys()
    assert all(keys.add(f"key {index}") for index in range(20_000))
    assert not any(keys.add(f"key {index}") for index in range(0, 20_000, 7))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_images_are_counted_where_that_is_cheap(tmp_path):
    assert count_images(make_tar(tmp_path / "x.tar")) == 3
    assert count_images(make_tar(tmp_path / "x.tgz", mode="w:gz")) is None
    table = pyarrow.table({"image": PHOTOS})
    assert count_images(write(tmp_path / "x.parquet", table)) == 3
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/0.png", "1.txt", "2.jpg"):
            archive.writestr(name, b"not read")
    assert count_images(tmp_path / "x.zip") == 2
    (tmp_path / "a.png").write_bytes(PHOTOS[0])
    assert count_images(tmp_path) == 1
    assert count_images(tmp_path / "*.*") is None  # the gzipped one is among them
    assert count_images(tmp_path / "*.[tzp][airn][rpg]*") == 3 + 3 + 2 + 1


def test_two_tables_with_the_same_keys_lose_no_row(tmp_path):
    tables = []
    for folder, images in (("a", PHOTOS[:2]), ("b", PHOTOS[1:])):
        (tmp_path / folder).mkdir()
        tables.append(tmp_path / folder / "t.parquet")
        table = pyarrow.table({"id": ["x", "y"], "image": images})
        pyarrow.parquet.write_table(table, tables[-1])
    found = list(find_images([*tables, tables[0]], Columns(key="id")))  # the first one twice
    assert [image.key for image in found] == ["x", "y", "x#2", "y#2"]
    assert [bool(image.error) for image in found] == [False, False, True, True]
    assert found[2].error == "a duplicate key: x is there 2 times or more"


def test_paths_in_two_tables_are_seen_from_each(tmp_path):
    tables = []
    for folder, colour in (("a", "red"), ("b", "lime")):
        (tmp_path / folder).mkdir()
        Pillow.new("RGB", (12, 9), colour).save(tmp_path / folder / "1.png")
        tables.append(tmp_path / folder / "t.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"path": ["1.png"]}), tables[-1])
    assert classes(tables) == {
        str(tmp_path / "a" / "1.png"): "red", str(tmp_path / "b" / "1.png"): "lime"
    }  # fmt: skip


@pytest.mark.parametrize("name", [b"caf\xe9.parquet", b"caf\xe9.arrow", b"caf\xe9.feather"])
def test_a_table_whose_name_is_no_utf8(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    table = pyarrow.table({"image": PHOTOS})
    with open(path, "wb") as file:
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, file)
        else:
            pyarrow.feather.write_feather(table, file)
    assert list(classes(path).values()) == list(COLOURS)
