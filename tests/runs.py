"""Runs of `effnet-fast classify` on tiny images, and what they leave."""

import csv
import json
import random
import sqlite3
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image as Pillow

from effnet_fast.classify import Journal
from effnet_fast.cli import main

# The stock model on tiny images: quick to start, and its answers do not matter here.
TINY = (
    "--model", "efficientnet_lite0", "--pretrained", "--no-optimize", "--img-size", "32",
    "--topk", "2", "--threads", "1",
)  # fmt: skip
FORMATS = ("csv", "json", "jsonl", "parquet", "sqlite")


def make_photos(folder, count):
    folder.mkdir()
    draw = random.Random(0)
    for index in range(count):
        colour = tuple(draw.randrange(256) for _ in range(3))
        Pillow.new("RGB", (40, 40), colour).save(folder / f"{index:04}.jpg")


def rows_of(path):
    """As dictionaries, whatever the format."""
    if path.is_dir():
        parts = sorted(path.glob("part-*.parquet"))
        return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".sqlite":
        database = sqlite3.connect(path)
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("select * from results order by id")]
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same(one, other):
    """Row for row. In the last bits PyTorch's sums depend on how many images a batch has."""
    rows, others = rows_of(one), rows_of(other)
    for row in (*rows, *others):
        for name in [name for name in row if name.startswith("prob")]:
            text = row[name] if isinstance(row[name], str) else json.dumps(row[name])
            row[name] = json.loads(text or "null")
    for row in others:
        row.update({k: pytest.approx(v, rel=1e-5) for k, v in row.items() if k.startswith("prob")})
    assert rows == others


def classify(*arguments):
    return main(["classify", *map(str, arguments), *TINY])


def names(path):
    return [Path(row["filename"]).name for row in rows_of(path)]


def stop_after(monkeypatch, count, error):
    """A run that ends, by an error, when it has so many results."""
    real = Journal.add

    def add(self, result):
        if self.done + self.pending >= count:
            raise error
        real(self, result)

    monkeypatch.setattr(Journal, "add", add)


RED = Pillow.new("RGB", (40, 30), "red")
