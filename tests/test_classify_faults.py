"""Every fault is a row, and the run goes on; what a person sees of it; the other options."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from runs import FORMATS, RED, TINY, classify, make_photos, names, rows_of

from effnet_fast.classify import Classifier, Journal, Preprocess, Result, load_model
from effnet_fast.classify import command as command_of
from effnet_fast.classify import journal as journal_of
from effnet_fast.classify.load import LoaderProcess
from effnet_fast.errors import ResultsError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder, 40)
    return folder


# ---- faults --------------------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)


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


def test_a_list_of_files(folder, tmp_path, capsys):
    files = [folder / "0003.jpg", folder / "gone.jpg", folder / "0001.jpg"]
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in files))
    out = tmp_path / "out.csv"
    assert classify("--list", listing, "--results-file", out) == 1
    assert names(out) == [path.name for path in files]
    before = os.dup(0)
    with open(listing) as file:
        os.dup2(file.fileno(), 0)
    try:
        assert classify("--list", "-", "--results-file", tmp_path / "two.csv") == 1
    finally:
        os.dup2(before, 0)
        os.close(before)
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


def test_many_bad_files_after_a_good_one(tmp_path):
    """More than are held at a time: none may wait for a batch that they don't fill."""
    RED.save(tmp_path / "0.jpg")
    for index in range(1, 200):
        (tmp_path / f"{index:03}.jpg").write_bytes(b"")
    preprocess = Preprocess((32, 32), (32, 32))
    found = []

    def run():
        found.extend(Classifier(lambda x: x.mean(dim=(2, 3)), preprocess)(tmp_path))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [bool(result.error) for result in found] == [False, *[True] * 199]
