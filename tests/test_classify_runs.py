"""Runs that end early, however they end: nothing is lost."""

import io
import itertools
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from runs import FORMATS, TINY, assert_same, classify, make_photos, names, rows_of, stop_after

from effnet_fast.classify import Journal, Result, load_model
from effnet_fast.classify import journal as journal_of
from effnet_fast.classify.journal import fingerprint
from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder, 40)
    return folder


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


def test_ctrl_c_while_a_list_comes_from_a_pipe(tmp_path):
    folder, out, partial = tmp_path / "photos", tmp_path / "out.csv", tmp_path / ".out.csv.partial"
    make_photos(folder, 2000)
    command = [
        sys.executable, "-m", "effnet_fast.cli", "classify", "--list", "-", *TINY,
        "--results-file", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # What a shell has started in the background, as these tests, ignores Ctrl-C, and so do its
        # children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    sizes, end = set(), time.monotonic() + 120
    for path in itertools.cycle(sorted(folder.iterdir())):
        assert time.monotonic() < end
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        time.sleep(0.01)
        if partial.exists():
            sizes.add(partial.stat().st_size)
        if len(sizes) > 3:  # rows came to the file
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130  # its standard input stays open
    err = process.stderr.read()
    assert "Traceback" not in err
    assert "images are done and saved" in err
    database = sqlite3.connect(partial)
    (done,) = database.execute("select count(*) from results").fetchone()
    assert f"{done} images" in err
    assert done > 0


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


def test_a_running_run_is_not_restarted(tmp_path):
    journal = Journal(tmp_path / "out.sqlite", None, {"a": 1}, topk=1)
    journal.add(Result("0.jpg", (0,), ("x",), (0.5,)))
    journal.commit()
    with pytest.raises(ArgumentError, match="another run is writing it"):
        Journal(tmp_path / "out.sqlite", None, {"a": 2}, topk=1, restart=True)
    journal.publish()
    assert names(tmp_path / "out.sqlite") == ["0.jpg"]


def test_restart_forgets(tmp_path):
    journal = Journal(tmp_path / "out.csv", None, {"a": 1}, topk=1)
    journal.add(Result("0.jpg", (0,), ("x",), (0.5,)))
    journal.leave()
    journal = Journal(tmp_path / "out.csv", None, {"a": 2}, topk=1, restart=True)
    assert journal.done == 0 and not journal.holds("0.jpg")
    journal.add(Result("1.jpg", (0,), ("x",), (0.5,)))
    journal.publish()
    assert names(tmp_path / "out.csv") == ["1.jpg"]


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
    assert left == {"photos", whole.name, out.name, f"first.{format}"}
    return resumed


def equal(one, other):
    assert rows_of(one) == rows_of(other)


def test_killed_at_random_instants(tmp_path):
    killed_runs(tmp_path, TINY, 600, 3, "jsonl", assert_same)


_KILLED_AFTER = """
import os, signal, sys
from effnet_fast.classify import journal
from effnet_fast.cli import main
journal._ROWS, rows, add = 16, int(sys.argv.pop(1)), journal.Journal.add
def counted(self, result):
    add(self, result)
    if self.done + self.pending - self.before == rows:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.add = counted
sys.exit(main())
"""


def test_killed_after_some_rows(folder, tmp_path):
    """Twice, each time with rows that are committed and rows that are not."""
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert classify(folder, "--results-file", whole) == 0
    arguments = ["classify", str(folder), *TINY, "--results-file", str(out)]
    for rows, kept in ((20, 0), (19, 16), (100, 32)):
        command = [sys.executable, "-c", _KILLED_AFTER, str(rows), *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        assert ("going on after" in done.stderr) == (kept > 0)
        assert f"going on after {kept} images" in done.stderr or not kept
        assert done.returncode == (0 if rows == 100 else -signal.SIGKILL), done.stderr
    assert_same(out, whole)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [0, 3])
def test_what_a_kill_leaves_is_removed(tmp_path, format, rows):
    """As it is at the worst instants: rows committed, or not; results half-written."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    journal = Journal(here / f"out.{format}", None, {}, topk=1)
    for index in range(rows):
        journal.add(Result(f"{index}.jpg", (index,), ("x",), (0.5,)))
    journal.commit()
    shutil.copytree(here, there)  # what the disk has if the process ends now
    journal.leave()
    assert (there / f".out.{format}.partial-journal").exists()
    for name in (f".out.{format}.{'0f' * 8}.tmp", f".other.{format}.{'0f' * 8}.tmp"):
        (there / name).write_bytes(b"half")
    journal = Journal(there / f"out.{format}", None, {}, topk=1)
    assert journal.done == rows
    journal.publish()
    assert {path.name for path in there.iterdir()} == {
        f"out.{format}",
        f".other.{format}.{'0f' * 8}.tmp",  # another run's
    }


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
    Path(folder, f".part-00009.parquet.{'0f' * 8}.tmp").touch()  # of a run that was killed
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
