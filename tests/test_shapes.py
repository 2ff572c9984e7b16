"""Operators' shapes as text, and every one of the files' on the CPU's kernels."""

import csv
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effnet_fast.bench import shapes
from effnet_fast.bench.cpu_operators import BOUND, OperatorBench
from effnet_fast.bench.cpu_table import MODELS
from effnet_fast.bench.shapes import FOLDER, Shape
from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError
from effnet_fast.verify import relative_error

FILES = [FOLDER / f"{name}.txt" for (_, name), _, _ in MODELS]
# The others' larger maps take most of a minute in float64.
SMALL = {"efficientnet_b0", "tf_efficientnet_lite0"}
LINES = [
    pytest.param(
        shape, id=f"{file.stem}-{shape}", marks=() if file.stem in SMALL else pytest.mark.full
    )
    for file in FILES
    for shape in shapes.read(file)
]


@pytest.mark.full
def test_the_files_are_of_the_models_as_they_are_planned():
    found = dict(shapes.made())
    assert list(found) == FILES
    for path, text in found.items():
        assert path.read_text() == text, f"{path}: python -m effnet_fast.bench.shapes"


@pytest.mark.parametrize("shape", LINES)
def test_every_shape_is_right(shape):
    """Each way to do it that is measured."""
    bench = OperatorBench(shape, 1, 1)
    exact = bench.exact()
    with torch.no_grad():
        for name, make in bench.contenders().items():
            assert relative_error(make()().reshape(exact.shape), exact) <= BOUND, name


def test_a_wrong_weight_is_noticed(monkeypatch):
    shape = Shape.parse("1 pointwise_conv x=24x5x7 cout=40 act=swish")
    bench = OperatorBench(shape, 2, 1)
    exact = bench.exact()
    bench.plan.network.nodes[0].weight[3, 5] += 0.01
    assert relative_error(bench.contenders()["effnet_fast"]()(), exact) > 10 * BOUND


SIZES = st.integers(1, 40)


@given(
    st.sampled_from(["stem_conv", "depthwise_conv", "expand_depthwise", "fused_mbconv"]),
    st.tuples(SIZES, st.integers(9, 40), st.integers(9, 40)), SIZES, SIZES,
    st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_what_a_plan_has_is_what_its_line_says(operator, x, mid, cout, kernel, stride, flag):
    values = {"x": "x".join(map(str, x))}
    if operator == "expand_depthwise" or (operator == "fused_mbconv" and flag):
        values |= {"mid": str(mid), "mid_act": "swish"}
    if operator in ("stem_conv", "fused_mbconv"):
        values["cout"] = str(cout)
    values |= {"k": "{}x{}".format(*kernel), "s": f"{stride}x{stride}", "p": "1,0,2,1"}
    values["act"] = "relu6"
    if flag and "depthwise" in operator:
        values["sums"] = ""
    shape = Shape(operator, values)
    assert Shape.parse(f"3 {shape}") == Shape(operator, values, 3)
    assert shapes.shapes_of(shape.plan()) == [shape]


@pytest.mark.parametrize(
    "line",
    [
        "", "pointwise_conv x=1x2x3 cout=4", "1 conv x=1x2x3", "1 pointwise_conv cout=4",
        "1 pointwise_conv x=1x2 cout=4", "1 depthwise_conv x=8x9x9 k=3x3 s=1x1 p=1 act=swish",
        "1 pointwise_conv x=1x2x3 cout=4 act=swash", "1 pointwise_conv x=1x2x3 cout=four",
    ],
)  # fmt: skip
def test_what_is_no_shape_is_refused(line):
    with pytest.raises(ArgumentError, match="no operator's shape"):
        Shape.parse(line)


def test_bench_measures_operators(tmp_path, capsys):
    file = tmp_path / "mine.txt"
    file.write_text(
        "# two\n2 pointwise_conv x=24x5x7 cout=40 act=swish gate residual\n\n"
        "1 expand_depthwise x=8x9x9 mid=24 mid_act=swish k=3x3 s=2x2 p=1,1,1,1 act=swish sums\n"
    )
    output, table = tmp_path / "out.json", tmp_path / "out.csv"
    arguments = ["bench", "--operators", "--shapes", str(file), "--seconds", "0.01", "--batch", "2"]
    assert main([*arguments, "--output", str(output), "--csv", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "pointwise_conv x=24x5x7 cout=40 act=swish gate residual" in printed
    rows = list(json.loads(output.read_text())["rows"].values())
    assert [row["times"] for row in rows] == [2, 1]
    assert [row["macs"] for row in rows] == [24 * 40 * 35, 8 * 24 * 81 + 24 * 9 * 25]
    for row in rows:
        assert all(outcome["skipped"] is None for outcome in row["outcomes"].values())
    assert "effnet_fast, apart" in rows[1]["outcomes"]
    lines = list(csv.DictReader(table.open()))
    assert len(lines) == sum(len(row["outcomes"]) for row in rows)
    assert main([*arguments, "--only", "*cout=40*", "--output", str(tmp_path / "o.json")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "nowhere.txt"], "nowhere.txt is no file of shapes"),
        (["--model", "timm:mobilenetv2_100"], "there are those of efficientnet_b0"),
        (["--only", "fft*"], "no operator's line is like that"),
        (["--size", "128"], "accepted: no --size and no --peers"),
        (["--peers", "mnn"], "accepted: no --size and no --peers"),
    ],
)
def test_bench_refuses(arguments, message, capsys):
    assert main(["bench", "--operators", *arguments]) == 2
    assert message in capsys.readouterr().err
