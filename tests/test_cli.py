"""The command line: exit statuses, what goes where, one line for an error."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import effnet_fast.demo
from effnet_fast.classify import Result, classify, load_model
from effnet_fast.classify.command import printable
from effnet_fast.cli import main
from effnet_fast.demo import PHOTOS, photos, wrong_with
from effnet_fast.errors import BackendError
from effnet_fast.info import collect, describe
from effnet_fast.ops import gpu_step

LITE0 = ("--model", "efficientnet_lite0", "--pretrained")
STOCK = (*LITE0, "--no-optimize")


@pytest.fixture
def folder(tmp_path):
    """The three photos, and a file of every kind that is refused or noted."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in photos():
        (folder / image.key).write_bytes(image.path.read_bytes())
    cat = Image.open(folder / "chelsea.png")
    odd = folder / "odd"
    odd.mkdir()
    cat.convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    cat.quantize(256).save(odd / "palette.png")
    cat.save(odd / "animated.gif", save_all=True, append_images=[Image.new("RGB", cat.size)])
    grey = np.asarray(cat.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(odd / "sixteen_bit.png")
    Image.new("1", (20_000, 20_000)).save(odd / "huge.png")
    (odd / "truncated.png").write_bytes((folder / "chelsea.png").read_bytes()[:100_000])
    (odd / "text.jpg").write_text("not an image")
    (odd / "zero.jpg").write_bytes(b"")
    return folder


NOTES = {
    "cmyk.jpg": "CMYK converted without its colour profile",
    "palette.png": "",
    "animated.gif": "the first of 2 frames",
    "sixteen_bit.png": "16-bit grey scaled to 8 bits",
}
ERRORS = {
    "huge.png": "too large: ",
    "truncated.png": "damaged or truncated: ",
    "text.jpg": "not an image",
    "zero.jpg": "an empty file (0 bytes)",
    "missing.jpg": "no such file or directory",
}


def rows_of(path):
    """Rows with lists, whatever the format."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {
                "filename": row["filename"],
                "index": [int(row[f"index_{i}"]) for i in range(3) if row[f"index_{i}"]],
                "label": [row[f"label_{i}"] for i in range(3) if row[f"label_{i}"]],
                "prob": [float(row[f"prob_{i}"]) for i in range(3) if row[f"prob_{i}"]],
                "note": row["note"],
                "error": row["error"],
            }
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_bad_images_are_rows_and_the_rest_goes_on(folder, tmp_path, capsys, format):
    out = tmp_path / f"results.{format}"
    arguments = [
        "classify", str(folder), str(folder / "missing.jpg"), "--topk", "3", "--batch-size", "4",
        "--results-file", str(out), *(LITE0 if format == "csv" else STOCK),
    ]  # fmt: skip
    assert main(arguments) == 1
    rows = {os.path.basename(row["filename"]): row for row in rows_of(out)}
    assert list(rows) == [*PHOTOS, *sorted({*NOTES, *ERRORS} - {"missing.jpg"}), "missing.jpg"]
    for name, expected in ERRORS.items():
        assert rows[name]["error"].startswith(expected)
        assert rows[name]["index"] == rows[name]["label"] == rows[name]["prob"] == []
    for name, classes in PHOTOS.items():
        assert rows[name]["label"][0] in classes
        assert rows[name]["note"] == rows[name]["error"] == ""
    for name, note in NOTES.items():
        assert (rows[name]["note"], rows[name]["error"]) == (note, "")
        assert len(rows[name]["label"]) == 3
    for name in ("cmyk.jpg", "palette.png"):  # the same cat in other clothes
        assert rows[name]["label"][0] in PHOTOS["chelsea.png"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "7 of 12 classified" in captured.err
    assert "5 failed" in captured.err
    assert [path.name for path in tmp_path.iterdir() if path.name != "photos"] == [out.name]


def test_results_are_the_models(tmp_path):
    out = tmp_path / "results.json"
    files = [str(image.path) for image in photos()]
    assert main(["classify", *files, *STOCK, "--topk", "1000", "--results-file", str(out)]) == 0
    loaded = load_model("effnet_fast:efficientnet_lite0", pretrained=True)
    expected = classify(photos(), loaded.model, loaded.preprocess, topk=1000)
    for row, result in zip(rows_of(out), expected, strict=True):
        assert tuple(row["index"]) == result.indices
        assert tuple(row["prob"]) == result.probs


def test_the_table(folder, capsys):
    assert main(["classify", str(folder / "chelsea.png"), *STOCK, "--topk", "2"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == str(folder / "chelsea.png")
    assert "%" in first
    assert float(first.split("%")[0]) > float(second.split("%")[0]) > 0
    assert any(name in first for name in PHOTOS["chelsea.png"])


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\nb.png"
    path.write_bytes(b"")
    assert main(["classify", str(path), *STOCK]) == 1
    out = capsys.readouterr().out
    assert "a\\x1b[31m\\nb.png" in out
    assert "\x1b" not in out
    assert printable("plain é") == "plain é"


def test_preprocessing_options_are_used(folder, tmp_path):
    rows = []
    for index, options in enumerate(([], ["--crop-mode", "squash"], ["--mean", "0", "--std", "1"])):
        out = tmp_path / f"{index}.json"
        arguments = [str(folder / "rocket.jpg"), *STOCK, "--img-size", "96", *options]
        assert main(["classify", *arguments, "--results-file", str(out)]) == 0
        rows.append(rows_of(out)[0]["prob"])
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_class_map(folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("".join(f"name {i}\n" for i in range(1000)))
    arguments = ["classify", str(folder / "coffee.png"), *STOCK]
    assert main([*arguments, "--class-map", str(tmp_path / "names.txt")]) == 0
    assert "name 967" in capsys.readouterr().out


def test_threads_are_the_models(folder, capsys):
    before = torch.get_num_threads()
    try:
        assert main(["classify", str(folder / "coffee.png"), *STOCK, "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
        assert "3 threads" in capsys.readouterr().err
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([*LITE0, "--topk", "0"], "--topk is 0; accepted: 1 and up"),
        ([*LITE0, "--batch-size", "0"], "--batch-size is 0"),
        ([*LITE0, "--threads", "0"], "--threads is 0"),
        ([*STOCK, "--topk", "1001"], "topk is 1001; accepted: at most the model's 1000 classes"),
        ([*LITE0, "--results-format", "csv"], "--results-format needs --results-file"),
        ([*STOCK, "--backend", "cpu"], "--no-optimize runs the stock model"),
        ([*LITE0, "--backend", "warp"], "backend is 'warp'; accepted: 'auto', 'cpu'"),
        ([*LITE0, "--backend", "gpu"], "libcuda.so.1: cannot open"),
        ([*STOCK, "--crop-pct", "2"], "crop_pct is 2.0"),
        ([*STOCK, "--class-map", "gone.txt"], "class map gone.txt: "),
        (["--model", "efficientnet_b99", "--pretrained"], "model is 'efficientnet_b99'"),
        (["--model", "efficientnet_b0", "--checkpoint", "gone.pth"], "gone.pth: no such file"),
    ],
)
def test_wrong_usage_is_one_line(folder, tmp_path, capsys, options, expected):
    assert main(["classify", str(folder / "coffee.png"), *options]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(err) == 1
    assert err[0].startswith("effnet-fast: error: ")
    assert expected in err[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["classify", "x.png", "--pretrained"], "--model"),
        (["classify", "x.png", "--model", "efficientnet_b0"], "--checkpoint --pretrained"),
        (["classify", "x.png", *LITE0, "--checkpoint", "x"], "not allowed with"),
        (["classify", "x.png", *LITE0, "--topk", "many"], "invalid int value: 'many'"),
        (["unknown"], "invalid choice: 'unknown'"),
    ],
)
def test_argparse_errors(capsys, arguments, expected):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert expected in capsys.readouterr().err


def test_interrupted_leaves_no_file(folder, tmp_path, capsys, monkeypatch):
    def interrupt(self, x):
        raise KeyboardInterrupt

    loaded = load_model("effnet_fast:efficientnet_lite0", pretrained=True)
    monkeypatch.setattr(type(loaded.model), "forward", interrupt)
    out = tmp_path / "results.csv"
    assert main(["classify", str(folder), *STOCK, "--results-file", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


def test_something_to_classify_is_needed(capsys):
    assert main(["classify", *LITE0]) == 2
    assert "PATH is missing; accepted: a PATH or more, or --list" in capsys.readouterr().err


def effnet_fast_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "effnet_fast.cli", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def test_as_a_process(folder):
    images = (str(folder / "rocket.jpg"), str(folder / "odd" / "huge.png"))
    done = effnet_fast_command("classify", *images, *LITE0, "--topk", "1")
    assert done.returncode == 1
    assert "missile" in done.stdout
    assert "error: too large" in done.stdout
    assert "Traceback" not in done.stderr
    assert "100 % of multiply-adds fused" in done.stderr

    done = effnet_fast_command("classify", str(folder), "--model", "nothing", "--pretrained")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_reader_that_closes_the_pipe(folder):
    arguments = f"-m effnet_fast.cli classify '{folder}' {' '.join(STOCK)}"
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' {arguments} --batch-size 1 | head -c 1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# ---- info, models, demo --------------------------------------------------------------------------


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["effnet_fast"] == effnet_fast.__version__
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["extension"]["loaded"]
    assert found["extension"]["isa"] in found["extension"]["isas"]
    assert found["backends"]["cpu"] == {"runs": True}
    if not torch.cuda.is_available():
        assert "libcuda.so.1" in found["backends"]["gpu"]["reason"]
    assert "PTX machine" in found["backends"]["ptx"]["on"]
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"in use: {found['extension']['isa']}" in out
    assert "PTX machine: built" in out
    cuda = found["cuda_kernels"]
    assert ("CUDA kernels: 160, for sm_80, " in out) == cuda["built"] == ("reason" not in cuda)
    assert found["cpu"]["model"] in out


def test_info_without_the_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "effnet_fast._C", None)
    monkeypatch.delattr(effnet_fast, "_C", raising=False)
    found = collect()
    assert not found["extension"]["loaded"]
    assert "effnet_fast._C" in found["backends"]["cpu"]["reason"]
    assert found["backends"]["reference"] == {"runs": True}
    assert "kernels: not loaded: " in describe(found)
    assert not found["cuda_kernels"]["built"]


def test_models(capsys):
    assert main(["models", "*[bs]0"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "input", "parameters", "multiply-adds"]
    assert [line.split()[0] for line in lines] == ["efficientnet_b0", "efficientnetv2_b0"]
    assert lines[0].split()[1:] == ["224x224", "5,288,548", "0.39", "G"]
    assert main(["models", "*9"]) == 2
    assert "pattern is '*9', which no model's name matches" in capsys.readouterr().err


def test_demo(capsys):
    assert effnet_fast.demo.main(["--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    for photo in PHOTOS:
        assert photo in out
    assert "WRONG" not in out
    assert "batch  1: stock " in out
    assert "batch 16: stock " in out


def test_demo_on_the_ptx_machine(capsys):
    """Trained weights in float16, through the GPU engine's own kernels."""
    try:
        gpu_step.check_cuda()
    except BackendError as error:
        pytest.skip(str(error))
    assert effnet_fast.demo.main(["--backend", "ptx"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    assert out.count("largest difference") == len(PHOTOS)


def test_demo_notices_wrong_answers():
    right = Result("coffee.png", (967, 504), ("espresso", "coffee mug"), (0.75, 0.25))
    assert wrong_with(right, right) == []
    near = replace(right, probs=(0.75 - 5e-6, 0.25 + 5e-6))
    assert wrong_with(near, right) == []
    far = replace(right, probs=(0.75 - 2e-5, 0.25 + 2e-5))
    assert wrong_with(far, right) == ["2.0e-05 from the stock model; accepted: 1e-05"]
    mug = Result("coffee.png", (504, 967), ("coffee mug", "espresso"), (0.75, 0.25))
    assert wrong_with(mug, mug) == ["coffee mug; accepted: espresso"]
    bad = Result("coffee.png", error="no such file")
    assert wrong_with(right, bad) == ["no such file"]


@pytest.mark.parametrize("collects", [True, False])
def test_importing_leaves_the_collector_as_it_was(collects):
    code = (
        f"import gc; {'' if collects else 'gc.disable(); '}import effnet_fast\n"
        f"assert gc.isenabled() is {collects} and gc.get_freeze_count() == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
