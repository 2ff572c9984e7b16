"""`effnet-fast verify`, and the benchmark of batch classification."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import nn

from effnet_fast.bench import classify as bench
from effnet_fast.bench.photos import make_photos
from effnet_fast.classify import Result
from effnet_fast.classify.embeddings import with_embeddings
from effnet_fast.classify.progress import Summary
from effnet_fast.classify.verify import STOCK, Tally
from effnet_fast.classify.workers import Times
from effnet_fast.cli import main
from effnet_fast.demo import PHOTOS, photos
from effnet_fast.errors import ModelError

LITE0 = ("--model", "efficientnet_lite0", "--pretrained")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    for image in photos():
        place = folder / PHOTOS[image.key][0].replace(" ", "_")
        place.mkdir(parents=True)
        Pillow.open(image.path).convert("RGB").save(place / f"{image.key}.jpg", quality=95)
    return folder


def cells(out):
    head, *rows = [line for line in out.splitlines() if "  " in line]
    return head, {row.split("  ")[0]: row.split() for row in rows}


def test_verify(folder, capsys):
    assert main(["verify", str(folder), *LITE0, "--labels", "folders"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("effnet_fast:efficientnet_lite0, 3 images, input 224x224")
    head, rows = cells(out)
    assert "same top-1" in head
    assert "accuracy" in head
    names = ["exact", "default", "fast-decode"]
    assert list(rows) == [STOCK, *(f"optimised, {name}" for name in names)]
    exact = rows["optimised, exact"]
    assert "100.00%" in exact
    assert float(exact[-4]) < 1e-3  # of logits
    assert rows[STOCK][-1] in ("66.67%", "100.00%")


def test_verify_with_a_csv_of_labels_and_bad_images(folder, tmp_path, capsys):
    (folder / "bad.jpg").write_bytes(b"")
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,label\nrocket.jpg.jpg,657\ncoffee.png.jpg,Espresso\n")
    assert main(["verify", str(folder), *LITE0, "--labels", str(labels)]) == 1
    captured = capsys.readouterr()
    assert "bad.jpg: an empty file (0 bytes)" in captured.err
    assert "1 images have no answer" in captured.err
    _, rows = cells(captured.out)
    assert rows[STOCK][-1] == "100.00%"  # of the two that have labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("a.jpg,unicorn\n", "label 'unicorn' is no class of the model; accepted: numbers below"),
        ("a.jpg\n", "row 1 is 'a.jpg'; accepted: a file name or key, and a class"),
        (None, "No such file"),
    ],
)
def test_bad_labels(tmp_path, capsys, labels, expected):
    Pillow.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    if labels is not None:
        (tmp_path / "labels.csv").write_text(labels)
    arguments = [str(tmp_path / "a.jpg"), *LITE0, "--labels", str(tmp_path / "labels.csv")]
    assert main(["verify", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_without_an_image(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "gone.jpg"), *LITE0]) == 2
    assert "no image could be decoded" in capsys.readouterr().err


def test_a_tally():
    tally = Tally()
    stock = torch.tensor([[5.0, 0.0], [0.1, 0.0], [0.0, 9.0]])
    logits = torch.tensor([[5.0, 0.5], [0.0, 0.1], [0.0, 9.0]])
    tally.add(logits, stock, [0, 1, None])
    assert (tally.images, tally.same) == (3, 2)
    assert (tally.sure, tally.sure_same) == (3, 2)  # of two classes one is above 0.5
    assert (tally.labelled, tally.right) == (2, 2)
    assert tally.logit == pytest.approx(0.5)
    assert tally.mean_logit == pytest.approx((0.25 + 0.1 + 0) / 3)


# ---- the benchmark -------------------------------------------------------------------------------


def test_photos_are_the_same_each_time(tmp_path):
    first = make_photos(tmp_path / "a", 4)
    second = make_photos(tmp_path / "b", 3)
    assert [p.read_bytes() for p in first[:3]] == [p.read_bytes() for p in second]
    sizes = [sorted(Pillow.open(path).size) for path in first]
    assert all(480 <= short <= 1500 and 640 <= long <= 2000 for short, long in sizes)
    before = first[0].stat().st_mtime_ns
    assert make_photos(tmp_path / "a", 4)[0].stat().st_mtime_ns == before


def test_a_command_is_timed_with_its_children(tmp_path):
    script = (
        "import subprocess, sys\n"
        "hold = b'x' * 50_000_000\n"
        "subprocess.run([sys.executable, '-c', 'import time; b = b\"x\" * 90_000_000; "
        "time.sleep(1)'])\n"
        "print('7.5 images/s after the first 64')\n"
    )
    found = bench.timed([sys.executable, "-c", script], 10)
    assert found["steady"] == 7.5
    assert found["rss"] > 140_000_000
    assert found["pss"] > 140_000_000


def test_the_steady_rate_of_marks():
    marks = [json.dumps({"done": done, "time": done / 10 + 3 * (done > 8)}) for done in (8, 16, 32)]
    assert bench._steady("\n".join(marks)) == pytest.approx(10.0)
    assert bench._steady("") is None


def test_timms_loop_gives_the_exact_answers(tmp_path):
    make_photos(tmp_path / "photos", 5, largest=(800, 600))
    found = bench.agreement(tmp_path / "photos", ["exact"])["exact"]
    assert found["images"] == 5
    assert found["top1"] == 1.0
    assert found["largest"] < 1e-4


def test_the_table_of_the_benchmark():
    run = {"whole": 10.0, "steady": 20.0, "rss": 10**9, "pss": 10**9}
    row = {
        "images": 7,
        "sizes": [(640, 480), (2000, 1500)],
        "runs": {"timm as it is": run, "effnet_fast exact": {**run, "steady": 50.0}},
        "bound": {"exact": {"decode": 100.0, "model": 150.0, "both": 60.0}},
        "agreement": {
            "exact": {
                "images": 7, "top1": 1.0, "sure": 3, "sure_same": 3, "largest": 1e-6, "mean": 1e-7
            }
        },
    }  # fmt: skip
    text = "\n".join(bench.describe(row))
    assert "2.50x" in text
    assert "83 %" in text
    assert "3 of 3" in text


def test_the_csv_of_timms_loop(tmp_path):
    from effnet_fast.bench.timm_inference import main as timm_main

    make_photos(tmp_path / "photos", 3, largest=(700, 525))
    out, array = tmp_path / "out.csv", tmp_path / "all.npy"
    arguments = [str(tmp_path / "photos"), "--results-file", str(out), "--workers", "1"]
    assert timm_main([*arguments, "--batch-size", "2", "--probabilities", str(array)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["filename"] for row in rows] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert [int(row["index_0"]) for row in rows] == np.load(array).argmax(1).tolist()


def test_what_is_no_number_is_far_away():
    tally = Tally()
    tally.add(torch.tensor([[torch.nan, 1.0]]), torch.tensor([[3.0, 1.0]]), [None])
    assert tally.logit == tally.mean_logit == torch.inf
    assert tally.probability == tally.mean_probability == torch.inf


def test_embeddings_need_the_linear_layer_at_the_end():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, *end):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.end = nn.Sequential(nn.Linear(4, 5), *end)

        def forward(self, x):
            return self.end(self.stem(x).mean((2, 3)))

    x = torch.randn(2, 3, 32, 32)
    good = Net().eval()
    logits, embedding = with_embeddings(good)(x)
    assert torch.equal(logits, good(x)) and embedding.shape == (2, 4)
    for end in ([nn.Softmax(1)], [nn.ReLU(), nn.Linear(5, 5), nn.ReLU()]):
        with pytest.raises(ModelError, match="is not the last thing that it does"):
            with_embeddings(Net(*end).eval())
    with pytest.raises(ModelError, match="has no linear layer"):
        with_embeddings(nn.Conv2d(3, 4, 3).eval())


def test_a_rate_is_of_this_run_alone():
    summary = Summary()
    for index in range(3000):
        summary.add(Result(f"{index}", error="bad"), is_new=index >= 2000)
    assert summary.done == 3000 and summary._marks == [(512, summary._marks[0][1])]
    assert "after the first" not in summary.lines(Times(), 1000, 1.0)[0]
