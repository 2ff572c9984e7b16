"""Whole runs: nothing is lost when one ends early, however it ends, and every fault is a row."""

import csv
import fcntl
import io
import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image as Pillow

from effnet_fast.classify import Classifier, Journal, Result, load_model
from effnet_fast.classify import command as command_of
from effnet_fast.classify import journal as journal_of
from effnet_fast.classify.journal import fingerprint
from effnet_fast.classify.load import LoaderProcess
from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError, ResultsError

# The stock model on tiny images: quick to start, and its answers do not matter here.
TINY = (
    "--model", "efficientnet_lite0", "--pretrained", "--no-optimize", "--img-size", "32",
    "--topk", "2", "--threads", "1",
)  # fmt: skip
FORMATS = ("csv", "json", "jsonl", "parquet", "sqlite")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder, 40)
    return folder


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


# ---- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupted_run_is_gone_on_with(folder, tmp_path, monkeypatch, capsys, format):
    whole, out = tmp_path / f"whole.{format}", tmp_path / f"out.{format}"
    assert classify(folder, "--results-file", whole) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 23, KeyboardInterrupt())
        assert classify(folder, "--results-file", out) == 130
    err = capsys.readouterr().err
    assert "interrupted: 23 images are done and saved in" in err
    assert "the same command goes on with the rest" in err
    assert not out.exists()
    assert classify(folder, "--results-file", out) == 0
    assert "going on after 23 images" in capsys.readouterr().err
    assert_same(out, whole)
    assert {p.name for p in tmp_path.iterdir()} == {"photos", whole.name, out.name}


def test_images_are_not_done_twice(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    seen = []
    real = torch.nn.functional.linear
    with monkeypatch.context() as patch:
        stop_after(patch, 25, KeyboardInterrupt())
        assert classify(folder, "--results-file", out) == 130

    def linear(x, *rest):
        seen.append(len(x))
        return real(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert classify(folder, "--results-file", out) == 0
    assert sum(seen) == 40 - 25
    assert len(set(names(out))) == 40


def test_images_that_came_and_went_meanwhile(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stop_after(patch, 30, KeyboardInterrupt())
        assert classify(folder, "--results-file", out) == 130
    (folder / "0003.jpg").unlink()
    (folder / "0035.jpg").unlink()
    (folder / "0000.jpg").rename(folder / "0000a.jpg")
    assert classify(folder, "--results-file", out) == 0
    found = names(out)
    assert len(found) == len(set(found)) == 40
    assert found[:4] == [
        "0000.jpg",
        "0001.jpg",
        "0002.jpg",
        "0003.jpg",
    ]  # done before
    assert "0000a.jpg" in found
    assert "0035.jpg" not in found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--topk", "3"], "topk was 2, is 3"),
        (["--exact"], 'mode was "default", is "exact"'),
        (["--apply-exif"], "apply EXIF was false, is true"),
        (["--crop-pct", "0.5"], "preprocessing was "),
        (["--logits"], "logits was false, is true"),
    ],
)
def test_other_arguments_are_refused(folder, tmp_path, monkeypatch, capsys, options, expected):
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        assert classify(folder, "--results-file", out) == 130
    before = (tmp_path / ".out.csv.partial").read_bytes()
    capsys.readouterr()
    assert main(["classify", str(folder), *TINY, "--results-file", str(out), *options]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "accepted: the same command, or --restart" in err
    assert (tmp_path / ".out.csv.partial").read_bytes() == before
    again = [str(folder), *TINY, "--results-file", str(out), *options, "--restart"]
    assert main(["classify", *again]) == 0
    assert len(names(out)) == 40


def test_what_changes_no_result_may_change(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        assert classify(folder, "--results-file", out) == 130
    assert classify(folder, "--results-file", out, "--batch-size", 3, "--workers", 3) == 0


def test_another_checkpoint_is_refused(folder, tmp_path, monkeypatch, capsys):
    out, weights = tmp_path / "out.csv", tmp_path / "w.pth"
    model = load_model("efficientnet_lite0", pretrained=True).model
    torch.save(model.state_dict(), weights)
    arguments = [
        "classify", str(folder), "--model", "efficientnet_lite0", "--checkpoint", str(weights),
        "--no-optimize", "--img-size", "32", "--results-file", str(out),
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after(patch, 9, KeyboardInterrupt())
        assert main(arguments) == 130
    before = fingerprint(model)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    torch.save(model.state_dict(), weights)
    capsys.readouterr()
    assert main(arguments) == 2
    assert f'weights was "{before}", is "{fingerprint(model)}"' in capsys.readouterr().err


def test_a_second_run_of_the_same_is_refused_meanwhile(tmp_path):
    journal = Journal(tmp_path / "out.csv", None, {}, topk=1)
    with pytest.raises(ArgumentError, match="another run is writing it"):
        Journal(tmp_path / "out.csv", None, {}, topk=1)
    journal.discard()


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()])
def test_a_run_that_breaks_keeps_what_is_done(folder, tmp_path, monkeypatch, error):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 12, error)
        with pytest.raises(type(error)):
            classify(folder, "--results-file", out)
    assert classify(folder, "--results-file", out) == 0
    assert len(set(names(out))) == 40


# ---- killed --------------------------------------------------------------------------------------


def killed_runs(tmp_path, model, images, kills, format, same):
    """How many runs of those that were killed at random instants had something to go on with."""
    folder, out = tmp_path / "photos", tmp_path / f"out.{format}"
    make_photos(folder, images)
    whole = tmp_path / f"whole.{format}"
    assert main(["classify", str(folder), *model, "--results-file", str(whole)]) == 0
    command = [
        sys.executable, "-m", "effnet_fast.cli", "classify", str(folder), *model,
        "--results-file", str(out),
    ]  # fmt: skip
    draw = random.Random(images)
    start = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / f"first.{format}")], check=True)
    seconds = time.monotonic() - start
    done = resumed = 0
    while done < kills:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _, err = process.communicate(timeout=draw.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, err = process.communicate()
            done += 1
        else:
            assert process.returncode == 0, err
        resumed += "going on after" in err
        if out.exists():  # whole, at any instant
            same(out, whole)
            out.unlink()
    subprocess.run(command, check=True)
    same(out, whole)
    left = {path.name for path in tmp_path.iterdir()}
    left -= {"photos", whole.name, out.name, f"first.{format}"}
    assert all(name.endswith(".tmp") for name in left)  # of a kill while results were written
    return resumed


def equal(one, other):
    assert rows_of(one) == rows_of(other)


def test_killed_at_random_instants(tmp_path):
    killed_runs(tmp_path, TINY, 600, 3, "jsonl", assert_same)


@pytest.mark.full
@pytest.mark.parametrize("format", ["csv", "parquet", "sqlite"])
def test_killed_at_twenty_random_instants(tmp_path, format):
    """With the optimised model, whose bits do not depend on what else is in a batch."""
    model = [option for option in TINY if option != "--no-optimize"]
    assert killed_runs(tmp_path, model, 5000, 20, format, equal) > 0


@pytest.mark.parametrize("at", ["insert", "begin", "commit", "after"])
def test_interrupted_within_a_commit(tmp_path, at):
    journal = Journal(tmp_path / "out.jsonl", None, {}, topk=1)
    results = [Result(f"{index}.jpg", (index,), ("x",), (0.5,)) for index in range(9)]
    for result in results[:3]:
        journal.add(result)
    journal.commit()
    for result in results[3:6]:
        journal.add(result)
    real = journal._database

    class Interrupting:
        in_transaction = property(lambda self: real.in_transaction)

        def execute(self, sql, *rest):
            if sql.startswith(at):
                raise KeyboardInterrupt
            found = real.execute(sql, *rest)
            if sql == "commit" and at == "after":
                raise KeyboardInterrupt
            return found

        def executemany(self, *rest):
            if at == "insert":
                raise KeyboardInterrupt
            return real.executemany(*rest)

    journal._database = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        journal.commit()
    journal._database = real
    for result in results[6:]:
        journal.add(result)
    journal.publish()
    assert names(tmp_path / "out.jsonl") == [result.filename for result in results]


def test_a_short_last_part_is_written_again_with_what_came_since(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_of, "PART", 4)
    results = [Result(f"{index}.jpg", (index,), ("x",), (0.5,)) for index in range(9)]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "discard", Journal.close)  # as if killed before
        journal = Journal(f"{tmp_path}/out/", None, {}, topk=1)
        for result in results[:6]:
            journal.add(result)
        journal.publish()
    journal = Journal(f"{tmp_path}/out/", None, {}, topk=1)
    for result in results[6:]:
        journal.add(result)
    journal.publish()
    assert names(tmp_path / "out") == [result.filename for result in results]


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_parts_of_a_folder_of_parquet(tmp_path, monkeypatch, parts):
    """Parts are there while the run goes on, and are not written again."""
    monkeypatch.setattr(journal_of, "PART", 4)
    folder = f"{tmp_path}/out/"
    results = [Result(f"{index}.jpg", (index,), ("x",), (0.5,)) for index in range(4 * parts + 3)]
    journal = Journal(folder, None, {"a": 1}, topk=1)
    for result in results[: 4 * parts]:
        journal.add(result)
    journal.commit()
    there = sorted(Path(folder).glob("part-*"))
    assert len(there) == parts
    written = [path.stat().st_mtime_ns for path in there]
    journal.close()
    journal = Journal(folder, None, {"a": 1}, topk=1)
    for result in results[4 * parts :]:
        journal.add(result)
    journal.publish()
    assert [row["filename"] for row in rows_of(Path(folder))] == [r.filename for r in results]
    assert [path.stat().st_mtime_ns for path in there] == written
    assert not list(Path(folder).glob(".*"))
    with pytest.raises(ArgumentError, match="has parts of an earlier run"):
        Journal(folder, None, {"a": 1}, topk=1)
    Journal(folder, None, {"a": 1}, topk=1, restart=True).discard()
    assert not list(Path(folder).iterdir())


def test_sqlite_has_a_view_of_single_predictions(folder, tmp_path):
    assert classify(folder, "--results-file", tmp_path / "out.db") == 0
    database = sqlite3.connect(tmp_path / "out.db")
    found = list(database.execute('select filename, rank, "index", label, prob from predictions'))
    assert len(found) == 80
    (best,) = database.execute('select "index" from results').fetchone()
    assert [row[1:3] for row in found[:2]] == list(enumerate(json.loads(best)))


# ---- faults --------------------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)


RED = Pillow.new("RGB", (40, 30), "red")
FAULTS = {  # name: (what makes it, the start of the error, the start of the note)
    "corrupt.jpg": (lambda p: p.write_bytes(b"\xff\xd8\xff" + bytes(500)), "damaged|not an", ""),
    "truncated.jpg": (
        lambda p: (RED.resize((400, 400)).save(p), p.write_bytes(p.read_bytes()[:900])),
        "damaged or truncated: ", "",
    ),
    "zero.jpg": (lambda p: p.write_bytes(b""), "an empty file (0 bytes)", ""),
    "text.png": (lambda p: p.write_text("no image"), "not an image", ""),
    "wrong_ending.jpg": (lambda p: save(RED, p, format="PNG"), "", ""),
    "cmyk.jpg": (lambda p: save(RED.convert("CMYK"), p), "", "CMYK converted"),
    "16bit.png": (lambda p: save(RED.convert("I;16"), p), "", "16-bit grey"),
    "alpha.png": (lambda p: save(RED.convert("RGBA"), p), "", "transparency"),
    "rotated.jpg": (lambda p: save(RED, p, exif=_turned()), "", "EXIF orientation 6 not applied"),
    "1x1.png": (lambda p: save(RED.resize((1, 1)), p), "", ""),
    "20000x20000.png": (lambda p: save(Pillow.new("1", (20_000, 20_000)), p), "too large: ", ""),
    "folder.jpg/x.txt": (lambda p: (p.parent.mkdir(), p.write_text("")), None, ""),
    os.fsdecode(b"caf\xe9.jpg"): (lambda p: save(RED, p), "", ""),
}  # fmt: skip


def _turned():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("mode", [(), ("--exact",), ("--fast-decode",)])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_rows_and_the_run_goes_on(tmp_path, name, mode):
    make, error, note = FAULTS[name]
    (tmp_path / "photos").mkdir()
    for good in ("0.jpg", "z.jpg"):
        RED.save(tmp_path / "photos" / good)
    make(tmp_path / "photos" / name)
    out = tmp_path / "out.csv"
    status = classify(tmp_path / "photos", "--results-file", out, *mode)
    rows = {Path(row["filename"]).name: row for row in rows_of(out)}
    assert rows["0.jpg"]["error"] == rows["z.jpg"]["error"] == ""
    assert status == (1 if error else 0)
    if error is None:
        assert len(rows) == 2
        return
    (found,) = (row for key, row in rows.items() if key not in ("0.jpg", "z.jpg"))
    assert any(found["error"].startswith(start) for start in error.split("|"))
    assert bool(found["error"]) == bool(error)
    assert found["note"].startswith(note)
    assert found["mode"] == (mode[0].lstrip("-") if mode else "default")


def test_an_unreadable_file(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything; test_without_permission has it as another user")
    (tmp_path / "a.jpg").touch(mode=0)
    assert classify(tmp_path / "a.jpg") == 1


def test_a_file_that_is_deleted_midway(folder, tmp_path, monkeypatch):
    real = Journal.add

    def add(self, result):
        (folder / "0039.jpg").unlink(missing_ok=True)
        real(self, result)

    monkeypatch.setattr(Journal, "add", add)
    monkeypatch.setattr("effnet_fast.classify.pipeline.AHEAD", 0)
    out = tmp_path / "out.csv"
    files = sorted(folder.iterdir())
    assert classify(*files, "--results-file", out, "--batch-size", 1, "--workers", 1) == 1
    rows = rows_of(out)
    assert len(rows) == 40
    assert [row["error"] for row in rows] == [""] * 39 + ["no such file or directory"]


def test_fail_fast(folder, tmp_path, capsys):
    out = tmp_path / "out.csv"
    (folder / "0020.jpg").write_bytes(b"")
    assert classify(folder, "--results-file", out, "--fail-fast") == 1
    err = capsys.readouterr().err
    assert "0020.jpg: an empty file (0 bytes)" in err
    assert "20 images are done and saved" in err
    assert not out.exists()
    RED.save(folder / "0020.jpg")  # mended, it is not left out
    assert classify(folder, "--results-file", out, "--fail-fast") == 0
    assert names(out) == sorted(path.name for path in folder.iterdir())


def test_fail_fast_on_the_terminal(folder, capsys):
    (folder / "0001.jpg").write_bytes(b"")
    assert classify(folder, "--fail-fast") == 1
    out = capsys.readouterr().out
    assert "0000.jpg" in out
    assert "0002.jpg" not in out


@pytest.fixture
def small_disk():
    folder = tempfile.mkdtemp()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        os.rmdir(folder)
        pytest.skip("a file system can't be mounted here")
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_loses_nothing(tmp_path, small_disk, capsys, format):
    folder = tmp_path / "photos"
    make_photos(folder, 600)
    out = small_disk / f"out.{format}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_of, "_ROWS", 16)
        assert classify(folder, "--results-file", out) == 2
    err = capsys.readouterr().err
    assert "full" in err or "no space left" in err
    assert "the same command goes on with the rest" in err
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert classify(folder, "--results-file", out) == 0
    assert "going on after" in capsys.readouterr().err
    whole = tmp_path / f"whole.{format}"
    assert classify(folder, "--results-file", whole) == 0
    assert rows_of(out) == rows_of(whole)


def test_a_full_disk_when_all_is_done(tmp_path, monkeypatch, capsys):
    """The results alone do not fit: they are made later, from what is saved."""
    journal = Journal(tmp_path / "out.csv", None, {}, topk=1)
    journal.add(Result("a", (1,), ("x",), (0.5,)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(ResultsError, match=r"no space left; 1 images are done and saved"):
            journal.publish()
    assert not (tmp_path / "out.csv").exists()
    journal.publish()
    assert names(tmp_path / "out.csv") == ["a"]


def test_decoders_in_processes_that_are_killed_midway(folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert classify(folder, "--results-file", whole) == 0
    killed = []
    real = LoaderProcess.__call__

    def load(self, image):
        if image.key.endswith(("7.jpg", "12.jpg")):
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return real(self, image)

    monkeypatch.setattr(LoaderProcess, "__call__", load)
    assert classify(folder, "--results-file", out, "--decoders", "processes") == 0
    assert len(set(killed)) == 5
    assert rows_of(out) == rows_of(whole)


# ---- what a person sees, and the rest of the options ---------------------------------------------


def test_summary(folder, capsys, tmp_path):
    (folder / "0001.jpg").write_bytes(b"")
    (folder / "0002.jpg").write_bytes(b"x")
    assert classify(folder, "--results-file", tmp_path / "out.csv", "--summary") == 1
    out = capsys.readouterr().out
    assert "images/s over" in out
    assert "of the threads' time: source " in out
    assert "1  an empty file (0 bytes)" in out
    assert "1  not an image, or of a format that is not read" in out
    counted = out.partition("classes:")[2].partition("errors:")[0].split("\n")[1:-1]
    assert sum(int(line.split()[0]) for line in counted) == 38


def test_a_bar_on_a_terminal_only(folder, tmp_path):
    command = [
        sys.executable, "-m", "effnet_fast.cli", "classify", str(folder), *TINY,
        "--results-file", str(tmp_path / "out.csv"),
    ]  # fmt: skip
    quiet = subprocess.run(command, capture_output=True, text=True)
    assert "images/s" not in quiet.stderr + quiet.stdout
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = subprocess.Popen(command, stderr=follower)
    os.close(follower)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    os.close(leader)
    assert process.wait() == 0
    assert b"40/40" in seen
    assert b"decode " in seen
    assert b"0 errors" in seen


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # its other end is closed
        return b""


def test_a_list_of_files(folder, tmp_path, capsys, monkeypatch):
    files = [folder / "0003.jpg", folder / "gone.jpg", folder / "0001.jpg"]
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in files))
    out = tmp_path / "out.csv"
    assert classify("--list", listing, "--results-file", out) == 1
    assert names(out) == [path.name for path in files]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing.read_bytes())))
    assert classify("--list", "-", "--results-file", tmp_path / "two.csv") == 1
    assert names(tmp_path / "two.csv") == [path.name for path in files]
    assert classify("--list", tmp_path / "gone.txt") == 2
    assert "--list" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_logits_and_embeddings(folder, tmp_path, format):
    out = tmp_path / f"out.{format}"
    assert classify(folder, "--results-file", out, "--logits", "--embeddings") == 0
    row = rows_of(out)[0]
    if format == "sqlite":
        logits, embedding = (memoryview(row[n]).cast("f").tolist() for n in ("logits", "embedding"))
    elif format == "csv":
        logits, embedding = json.loads(row["logits"]), json.loads(row["embedding"])
    else:
        logits, embedding = row["logits"], row["embedding"]
    assert len(logits) == 1000
    assert len(embedding) == 1280
    model = load_model("efficientnet_lite0", pretrained=True).model
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    expected = last(torch.tensor(embedding))
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)


def test_embeddings_of_an_optimised_model(folder):
    options = {"pretrained": True, "embeddings": True, "logits": True}
    classifier = Classifier.load("efficientnet_lite0", **options)
    assert classifier.model.report.fused_share == 1.0
    plain = Classifier.load("efficientnet_lite0", pretrained=True, logits=True)
    found = list(classifier(sorted(folder.iterdir())[:3]))
    for one, other in zip(found, plain(sorted(folder.iterdir())[:3]), strict=True):
        assert len(one.embedding) == 1280
        torch.testing.assert_close(torch.tensor(one.logits), torch.tensor(other.logits))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--logits"], "--logits and --embeddings need --results-file"),
        (["--decoders", "magic", "--results-file", "x.csv"], "decoders is 'magic'"),
        (["--results-file", "x.xml"], "its format is not clear from its name"),
        (["--results-file", "no/such/x.csv"], "no such file or directory"),
        (["--results-file", "out/", "--results-format", "csv"], "a folder, for format 'csv'"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(
    folder, tmp_path, capsys, monkeypatch, options, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_of, "_classify", lambda *_: pytest.fail("work began"))
    assert classify(folder, *options) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.full
def test_memory_is_flat_over_100_000_images(tmp_path):
    """Within 5 % of what it is after 5,000 images, from a tar archive to a file."""
    photos = []
    for index in range(50):
        file = io.BytesIO()
        Pillow.new("RGB", (64, 64), (index, 99, 255 - index)).save(file, "JPEG")
        photos.append(file.getvalue())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for index in range(100_000):
            member = tarfile.TarInfo(f"{index:06}.jpg")
            member.size = len(photos[index % 50])
            archive.addfile(member, io.BytesIO(photos[index % 50]))
    script = f"""
import os, sys, threading, time
from effnet_fast.classify import Journal
from effnet_fast.cli import main
marks = []
real = Journal.commit
def commit(self):
    real(self)
    pages = int(open("/proc/self/statm").read().split()[1])
    marks.append((self.done, pages * os.sysconf("SC_PAGE_SIZE")))
Journal.commit = commit
status = main(["classify", "{tmp_path}/x.tar", "--model", "efficientnet_lite0", "--pretrained",
    "--img-size", "32", "--topk", "5", "--results-file", "{tmp_path}/out.parquet"])
early = max(rss for done, rss in marks if done <= 5_000 or done == marks[0][0])
print(status, marks[-1][0], early, max(rss for _, rss in marks))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    status, done, early, most = map(int, run.stdout.split()[-4:])
    assert (status, done) == (0, 100_000)
    assert most <= 1.05 * early
