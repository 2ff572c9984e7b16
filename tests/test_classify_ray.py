"""Runs on Ray: the rows of one machine, whatever dies meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from runs import RED, TINY, classify, make_photos, names, rows_of, stop_after

from effnet_fast import cli
from effnet_fast.classify import (
    Classifier,
    Image,
    Journal,
    Preprocess,
    Result,
    command,
    find_images,
)
from effnet_fast.classify.journal import BlockJournal
from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError, BackendError, ResultsError

ray = pytest.importorskip("ray")

from effnet_fast.classify import ray_engine  # noqa: E402
from effnet_fast.classify.ray_engine import Pool, RayRun, grouped  # noqa: E402

# The stock model's bits depend on what else is in a batch, the optimised one's do not.
ALONE = [*TINY, "--batch-size", "1"]
OPTIMIZED = [option for option in TINY if option != "--no-optimize"]
# What Ray calls the processes of actors that classify, and of the task that reads the source.
ACTOR, READER = b"ray::MapWorker(MapBatches(_Predictor))", b"ray::Read_"
SMALL = Preprocess((8, 8), (8, 8), interpolation="bilinear")


@pytest.fixture
def folder(tmp_path):
    """40 photos, two of which are none."""
    folder = tmp_path / "photos"
    make_photos(folder, 40)
    (folder / "0011.jpg").write_bytes(b"")
    (folder / "0030.jpg").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def here():
    """A Ray that all runs of this process use, so that each starts its actors alone."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(
        "local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
        logging_level="error", runtime_env={"env_vars": environment},
    )  # fmt: skip
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


def locally(*arguments, model=ALONE):
    return main(["classify", *map(str, arguments), *model])


def on_ray(*arguments, model=ALONE):
    return locally(*arguments, "--engine", "ray", model=model)


def processes(name):
    """Those of Ray's below this one that are called so."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            pids[int(path.name)] = parent, (path / "cmdline").read_bytes()

    def is_ours(pid):
        while pid in pids and pid != os.getpid():
            pid = pids[pid][0]
        return pid == os.getpid()

    return [pid for pid, (_, command) in pids.items() if name in command and is_ours(pid)]


# ---- the same rows -------------------------------------------------------------------------------


@pytest.mark.full
def test_every_source_has_the_rows_of_the_local_engine(folder, tmp_path, capsys, monkeypatch):
    """On a Ray of the run's own."""
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for name in ("0001.jpg", "0030.jpg", "0002.jpg"):
            archive.add(folder / name, name)
    table = {"image": [(folder / "0003.jpg").read_bytes(), None], "id": ["three", "none"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "some.parquet")
    raw = folder / os.fsdecode(b"caf\xe9.jpg")
    RED.save(raw)
    monkeypatch.chdir(tmp_path)
    sources = ["photos", "some.tar", "some.parquet", "gone.jpg", "photos/0001.jpg"]
    sources += ["--key-column", "id", "--logits", "--batch-size", "3"]
    out = ["--results-file", "local.jsonl", "--summary"]
    assert locally(*sources, *out, model=OPTIMIZED) == 1
    expected = capsys.readouterr().out.partition("classes:")[2]
    command = [
        sys.executable, "-m", "effnet_fast.cli", "classify", *sources, *OPTIMIZED,
        "--engine", "ray", "--results-file", "ray.jsonl", "--summary",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert len(rows_of(Path("ray.jsonl"))) == 41 + 3 + 2 + 1
    assert done.stdout.partition("classes:")[2] == expected
    assert done.stderr.count("\n") == 2, done.stderr  # and nothing of Ray's
    first, last = done.stderr.splitlines()
    assert "1 CPU on a node; input 32x32" in first
    assert last.startswith("42 of 47 classified in ")
    assert done.returncode == 1


@pytest.mark.full
def test_parts_are_written_by_actors_and_gone_on_with(here, folder, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert locally(folder, "--embeddings", "--results-file", f"{whole}/") == 1
    monkeypatch.setattr(ray_engine, "PART_ROWS", 6)
    arguments = [folder, "--embeddings", "--results-file", f"{out}/"]
    pool = ["--concurrency", "1:2", "--cpus-per-actor", "0.5", "--gpus-per-actor", "0.5"]
    with monkeypatch.context() as patch:
        fail_after(patch, 15)
        assert on_ray(*arguments, *pool) == 130
    err = capsys.readouterr().err
    assert "Ray, 1 to 2 actors of 0.5 CPU and 0.5 GPU on a node" in err
    assert "interrupted: 12 images are done and saved in" in err
    parts = ["part-0000000000.parquet", "part-0000000006.parquet"]
    assert sorted(path.name for path in out.iterdir()) == [".partial.sqlite", *parts]
    assert locally(*arguments) == 2
    assert 'parts was "by block", is not there' in capsys.readouterr().err
    assert on_ray(*arguments) == 1
    assert "going on after 12 images" in capsys.readouterr().err
    assert rows_of(out) == rows_of(whole)
    assert [len(rows_of(out)[0]["embedding"]), len(list(out.iterdir()))] == [1280, 7]


def fail_after(monkeypatch, count):
    """Ctrl-C, when a run has so many results."""
    real, taken = BlockJournal.add, []

    def add(self, result):
        taken.append(result)
        if len(taken) > count:
            raise KeyboardInterrupt
        real(self, result)

    monkeypatch.setattr(BlockJournal, "add", add)


@pytest.mark.parametrize("options", [[], ["--no-optimize"], ["--backend", "cpu"]])
def test_what_results_depend_on_is_the_same_with_either_engine(options):
    """Or one would not go on with what the other has done."""
    given = ["classify", "photos", "-m", "efficientnet_lite0", "--pretrained", *options]
    found = []
    for engine in ("local", "ray"):
        parsed = cli._parser().parse_args([*given, "--engine", engine])
        *_, arguments = command._prepared(parsed)
        found.append(arguments)
    assert found[0] == found[1]
    parsed = cli._parser().parse_args([*given[:5], "--engine", "ray", "--gpus-per-actor", "1"])
    assert command._prepared(parsed)[2]["backend"] == "gpu"


@pytest.mark.full
def test_each_engine_goes_on_with_what_the_other_has_done(
    here, folder, tmp_path, monkeypatch, capsys
):
    """And `--fail-fast` stops at the first error."""
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert locally(folder, "--results-file", whole) == 1
    with monkeypatch.context() as patch:
        stop_after(patch, 5, KeyboardInterrupt())
        assert locally(folder, "--results-file", out) == 130
    assert on_ray(folder, "--results-file", out, "--fail-fast") == 1
    err = capsys.readouterr().err
    assert "going on after 5 images" in err
    assert "0011.jpg: an empty file (0 bytes)" in err
    assert "11 images are done and saved" in err
    end = time.monotonic() + 30
    while processes(ACTOR) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes(ACTOR) == []  # are left behind
    assert locally(folder, "--results-file", out) == 1
    assert "going on after 11 images" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()


# ---- what dies -----------------------------------------------------------------------------------


class Deadly(torch.nn.Module):
    """Logits that follow the mean colour. A red image kills its process, so many times."""

    def __init__(self, times, folder):
        super().__init__()
        self.times, self.folder = times, folder

    def forward(self, x):
        logits = x.mean(dim=(2, 3))
        if (logits.argmax(dim=1) == 0).any() and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return logits


def deadly_run(tmp_path, times):
    """The rows of 30 images, of which the 14th is red; and how many processes died."""
    folder, dead = tmp_path / "photos", tmp_path / "dead"
    folder.mkdir()
    dead.mkdir()
    for index in range(30):
        picture = RED if index == 13 else RED.point([0] * 256 * 2 + [200 + index] * 256)
        picture.save(folder / f"{index:02}.png")
    classifier = Classifier(None, SMALL, topk=2, batch_size=1, workers=1)
    expected = list(Classifier(Deadly(0, dead), SMALL, topk=2, batch_size=1, workers=1)(folder))
    run = RayRun(classifier, find_images([folder]), Pool(2, 2), backend=None)
    with contextlib.closing(run):
        run.start(Deadly(times, dead))
        results = list(run)
    assert results == expected
    assert run.times.model > 0
    return len(list(dead.iterdir()))


@pytest.mark.full
def test_an_actor_that_is_killed_midway_costs_no_row(here, tmp_path):
    assert deadly_run(tmp_path, times=1) == 1


@pytest.mark.full
def test_an_image_that_kills_each_actor_ends_the_run(here, tmp_path):
    with pytest.raises(BackendError, match=r"died 4 times at the images from .*12.png to .*15.png"):
        deadly_run(tmp_path, times=100)
    assert len(list((tmp_path / "dead").iterdir())) == ray_engine.ATTEMPTS


@pytest.mark.full
def test_the_task_that_reads_the_source_is_killed_midway(here, tmp_path, monkeypatch):
    folder, whole, out = tmp_path / "photos", tmp_path / "whole.csv", tmp_path / "out.csv"
    make_photos(folder, 100)
    assert locally(folder, "--results-file", whole) == 0
    real, killed = Journal.add, []

    def add(self, result):
        real(self, result)
        if result.filename.endswith("0020.jpg"):
            killed.extend(processes(READER))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Journal, "add", add)
    assert on_ray(folder, "--results-file", out) == 0
    assert len(killed) == 1
    assert out.read_bytes() == whole.read_bytes()


# ---- a cluster -----------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one CPU, with a store, processes and a name of its own each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.mark.full
def test_two_nodes_one_of_which_is_lost_and_replaced(cluster, tmp_path):
    """The rows of one machine, from both nodes; and again, with a third for one that is gone."""
    folder, whole, out = tmp_path / "photos", tmp_path / "whole.csv", tmp_path / "out.csv"
    make_photos(folder, 300)
    (folder / "0011.jpg").write_bytes(b"")
    assert locally(folder, "--results-file", whole) == 1
    command = [
        sys.executable, "-m", "effnet_fast.cli", "classify", str(folder), *ALONE,
        "--engine", "ray", "--address", cluster.address,
        "--results-file", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert "Ray, 2 actors of 1 CPU on 2 nodes" in done.stderr
    assert "299 of 300 classified" in done.stderr
    assert done.returncode == 1
    assert out.read_bytes() == whole.read_bytes()
    out.unlink()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial, end = tmp_path / ".out.csv.partial", time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 30_000):  # rows came
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    cluster.remove_node(cluster.second, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    _, err = process.communicate(timeout=120)
    assert "299 of 300 classified" in err
    assert process.returncode == 1
    assert out.read_bytes() == whole.read_bytes()


# ---- refused, before any work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--address", "auto"], "--address is for --engine ray"),
        (["--concurrency", "2"], "--concurrency is for --engine ray"),
        (["--cpus-per-actor", "2"], "--cpus-per-actor is for --engine ray"),
        (["--gpus-per-actor", "2"], "--gpus-per-actor is for --engine ray"),
        (["--engine", "ray", "--address", "ray://a:1"], "of Ray Client, which has no Ray Data"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray at --address 127.0.0.1:1: "),
        (["--engine", "ray", "--concurrency", "0"], "--concurrency is '0'; accepted: N or MIN:MAX"),
        (["--engine", "ray", "--concurrency", "3:2"], "--concurrency is '3:2'"),
        (["--engine", "ray", "--concurrency", "many"], "--concurrency is 'many'"),
        (["--engine", "ray", "--cpus-per-actor", "0"], "--cpus-per-actor is 0; accepted: 0.0001"),
        (["--engine", "ray", "--cpus-per-actor", "nan"], "--cpus-per-actor is nan"),
        (["--engine", "ray", "--gpus-per-actor", "-1"], "--gpus-per-actor is -1"),
        (
            ["--engine", "ray", "--gpus-per-actor", "0", "--backend", "gpu"],
            "--gpus-per-actor is 0; accepted by --backend gpu",
        ),
    ],
)
def test_wrong_usage_is_refused(tmp_path, capsys, options, expected):
    RED.save(tmp_path / "a.jpg")
    options = [tmp_path / "a.jpg", *options, "--results-file", tmp_path / "out.csv"]
    assert locally(*options, model=OPTIMIZED) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jpg"]


def test_without_ray(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "effnet_fast.classify.ray_engine")
    monkeypatch.delattr("effnet_fast.classify.ray_engine")
    monkeypatch.setitem(sys.modules, "ray", None)
    RED.save(tmp_path / "a.jpg")
    assert classify(tmp_path / "a.jpg", "--engine", "ray") == 2
    err = capsys.readouterr().err
    assert "--engine ray needs Ray Data" in err
    assert "pip install 'effnet-fast[ray]'" in err


def test_a_pool_that_the_cluster_has_no_room_for():
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {}]
    assert Pool().fitted(nodes) == Pool(7, 7)
    assert Pool(cpus=0.5).fitted(nodes) == Pool(14, 14, 0.5)
    assert Pool(cpus=2).fitted(nodes) == Pool(3, 3, 2)
    assert Pool(gpus=0.25).fitted(nodes) == Pool(4, 4, 1, 0.25)
    assert Pool(2, 99).fitted(nodes) == Pool(2, 99)  # of a cluster that grows
    with pytest.raises(ArgumentError, match=r"8 or more actors of 1 CPU, and .* room for 7"):
        Pool(8, 8).fitted(nodes)
    with pytest.raises(ArgumentError, match=r"1 or more actors of 5 CPU, and .* room for 0"):
        Pool(cpus=5).fitted(nodes)


def test_blocks_are_bounded_in_rows_and_bytes():
    images = [Image(str(i), Path(str(i)), data=b"x" * size) for i, size in enumerate((1, 1, 9, 2))]
    images += [Image(str(i), Path(str(i))) for i in range(4, 9)]
    groups = [[image.key for image in group] for group in grouped(images, 4, 3)]
    assert groups == [["0", "1"], ["2"], ["3", "4", "5", "6"], ["7", "8"]]


# ---- the journal of parts ------------------------------------------------------------------------


def block(start, stop):
    return [
        Result(f"{i}.jpg", (i,), ("x",), (0.5,), logits=(float(i),)) for i in range(start, stop)
    ]


def opened(tmp_path):
    return BlockJournal(f"{tmp_path / 'out'}/", None, {"a": 1}, topk=1, vectors=["logits"])


def put(journal, results):
    name = journal.writer(results)
    for result in results:
        journal.add(result)
    return name


def test_a_part_is_there_when_its_rows_are_committed(tmp_path):
    journal = opened(tmp_path)
    journal.adopt(put(journal, block(0, 3)))
    put(journal, block(3, 5))  # is not adopted
    (tmp_path / "out" / ".part-0.parquet").touch()  # of an actor that has died
    assert [row["filename"] for row in rows_of(tmp_path / "out")] == ["0.jpg", "1.jpg", "2.jpg"]
    journal.leave()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".partial.sqlite", "part-0000000000.parquet"}
    journal = opened(tmp_path)
    assert [journal.done, journal.holds("2.jpg"), journal.holds("3.jpg")] == [3, True, False]
    journal.adopt(put(journal, block(3, 7)))
    journal.publish()
    assert [row["logits"] for row in rows_of(tmp_path / "out")] == [[float(i)] for i in range(7)]
    assert names(tmp_path / "out") == [f"{i}.jpg" for i in range(7)]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_killed_between_a_part_and_its_rows(tmp_path, monkeypatch):
    journal = opened(tmp_path)
    journal.adopt(put(journal, block(0, 3)))
    name = put(journal, block(3, 5))

    class Killed(BaseException):
        pass

    def commit():
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(journal, "commit", commit)
        journal.adopt(name)
    journal.close()  # and no more of it
    assert len(rows_of(tmp_path / "out")) == 5
    journal = opened(tmp_path)
    assert journal.done == len(rows_of(tmp_path / "out")) == 3
    journal.adopt(put(journal, block(3, 5)))
    journal.publish()
    assert names(tmp_path / "out") == [f"{i}.jpg" for i in range(5)]


def test_a_folder_that_is_not_shared(tmp_path):
    journal = opened(tmp_path)
    put(journal, block(0, 1))
    with pytest.raises(ResultsError, match="accepted: a folder that all nodes share"):
        journal.adopt(".part-elsewhere.parquet")
    journal.leave()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_part_that_cannot_be_written_names_the_node(tmp_path):
    journal = opened(tmp_path)
    writer = journal.writer
    journal.discard()
    (tmp_path / "out").rmdir()
    with pytest.raises(ResultsError, match="no such file or directory, on the node "):
        writer(block(0, 1))
