"""Operators of a network as text, a line for each shape: what is measured and tested one by one.

``times operator key=value ... flag ...``; sizes are channels x height x width, of one image::

    3 expand_depthwise x=80x14x14 mid=480 mid_act=swish k=3x3 s=1x1 p=1,1,1,1 act=swish sums

The files beside this module are of the models of the table in docs/performance.md, each at its
size: ``python -m effnet_fast.bench.shapes`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.cpu import JOINS
from ..errors import ArgumentError
from ..files import whole_file
from ..graph import Ref
from ..network import (
    Act,
    Classifier,
    DenseConv,
    DepthwiseConv,
    Network,
    Node,
    PointwiseConv,
    SqueezeExcite,
    StemConv,
    Window,
)
from ..plan import Plan, Size, make_plan

FOLDER = Path(__file__).parent / "shapes"
_FLAGS = ("gate", "residual", "sums", "pool")


@dataclass(frozen=True)
class Shape:
    """One operator and its sizes.

    Attributes
    ----------
    operator : as the steps of a plan have it.
    values : of the keys, as text; of a flag "".
    times : how often the network has it.
    """

    operator: str
    values: Mapping[str, str]
    times: int = 1

    @classmethod
    def parse(cls, line: str) -> Shape:
        """Of a line.

        Raises
        ------
        ArgumentError
            It is none.
        """
        try:
            times, operator, *rest = line.split()
            values = {key: value for key, _, value in (item.partition("=") for item in rest)}
            shape = cls(operator, values, int(times))
            shape.plan()
        except (KeyError, ValueError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ArgumentError(f"no operator's shape: {line!r}: {reason}") from error
        return shape

    def __str__(self) -> str:
        items = (key + ("=" + value if value else "") for key, value in self.values.items())
        return " ".join((self.operator, *items))

    def plan(self) -> Plan:
        """One that has this operator alone, as its steps; of weights that keep a variance.

        What it reads besides ``x`` are inputs of its only stage, too.
        """
        nodes, sizes = self._nodes()
        network = Network(
            input="x", channels=sizes["x"][0], nodes=nodes, outputs=(Ref(nodes[-1].name),),
            output_spec=None, aliases={}, ranks={}, layers=(), locked=None, pool_limit=None,
            dtype=torch.float32,
        )  # fmt: skip
        return make_plan(network, sizes["x"][1:], given=sizes, joins=JOINS)

    def _nodes(self) -> tuple[tuple[Node, ...], dict[str, Size]]:
        """And the sizes of what they read."""
        x = _size(self.values["x"])
        sizes = {"x": x, "gate": (0, 1, 1), "residual": (0, 0, 0)}
        generator = torch.Generator().manual_seed(0)

        def constants(cout: int, *rest: int) -> tuple[torch.Tensor, torch.Tensor]:
            scale = max(1, torch.Size(rest).numel()) ** -0.5
            weight = scale * torch.randn(cout, *rest, generator=generator)
            return weight, torch.randn(cout, generator=generator)

        def act(key: str) -> Act:
            return Act[self.values.get(key, "none").upper()]

        def window(prefix: str = "") -> Window:
            texts = (self.values.get(prefix + key, "1x1") for key in ("k", "s", "d"))
            pairs = (_ints(text, "x", 2) for text in texts)
            return Window(*pairs, padding=_ints(self.values[prefix + "p"], ",", 4))

        def read(flag: str) -> str | None:
            return flag if flag in self.values else None

        c, operator = x[0], self.operator
        if operator == "squeeze_excite":
            # Of the sums of a depthwise convolution, as large as x.
            squeezed = int(self.values["squeezed"])
            w1, b1 = constants(squeezed, c)
            w2, b2 = constants(c, squeezed)
            acts = act("act"), act("gate_act")
            return (SqueezeExcite("y", "x.sums", "x", w1, b1, w2, b2, *acts),), {
                "x": x, "x.sums": (c, 1, 1)
            }  # fmt: skip
        if operator == "classifier":
            return (Classifier("y", "x", *constants(int(self.values["cout"]), c)),), {"x": x}
        if operator in ("stem_conv", "depthwise_conv"):
            w = window()
            if operator == "stem_conv":
                weight, bias = constants(int(self.values["cout"]), c, *w.kernel)
                return (StemConv("y", "x", weight, bias, w, act("act")),), {"x": x}
            weight, bias = constants(c, 1, *w.kernel)
            return (DepthwiseConv("y", "x", weight, bias, w, act("act"), read("sums")),), {"x": x}
        if operator in ("stem_depthwise", "expand_depthwise"):
            mid, w = int(self.values["mid"]), window()
            if operator == "stem_depthwise":
                stem = window("stem_")
                weight, bias = constants(mid, c, *stem.kernel)
                first = StemConv("mid", "x", weight, bias, stem, act("mid_act"))
            else:
                first = PointwiseConv("mid", "x", *constants(mid, c, 1, 1), act("mid_act"))
            weight, bias = constants(mid, 1, *w.kernel)
            second = DepthwiseConv("y", "mid", weight, bias, w, act("act"), read("sums"))
            return (first, second), {"x": x}
        residual = read("residual")
        if operator == "pointwise_conv":
            cout = int(self.values["cout"])
            sizes |= {"gate": (c, 1, 1), "residual": (cout, *x[1:])}
            weight, bias = constants(cout, c, 1, 1)
            flags = read("gate"), residual, "pool" in self.values
            return (PointwiseConv("y", "x", weight, bias, act("act"), *flags),), sizes
        if operator == "fused_mbconv":
            w, cout = window(), int(self.values["cout"])
            mid = int(self.values.get("mid", cout))
            sizes["residual"] = (cout, *w.output_size(*x[1:]))
            weight, bias = constants(mid, c, *w.kernel)
            if "mid" not in self.values:
                return (DenseConv("y", "x", weight, bias, w, act("act"), residual),), sizes
            first = DenseConv("mid", "x", weight, bias, w, act("mid_act"))
            last = PointwiseConv(
                "y", "mid", *constants(cout, mid, 1, 1), act("act"), residual=residual
            )
            return (first, last), sizes
        raise ValueError(f"there is no operator {operator!r}")


def shapes_of(plan: Plan) -> list[Shape]:
    """Those of a plan's native steps that differ, in their order."""
    found: dict[Shape, int] = {}
    by_text: dict[str, Shape] = {}
    for stage in plan.stages:
        for step in stage.steps if stage.native else ():
            shape = Shape(step.operator, _values(plan, step))
            shape = by_text.setdefault(str(shape), shape)
            found[str(shape)] = found.get(str(shape), 0) + 1
    return [Shape(s.operator, s.values, found[text]) for text, s in by_text.items()]


def _values(plan: Plan, step: Any) -> dict[str, str]:
    first, last = step.nodes[0], step.nodes[-1]
    resolve = plan.network.aliases.get
    x = getattr(first, "of", None) or first.x
    values = {"x": "x".join(map(str, plan.sizes[resolve(x, x)]))}
    if isinstance(last, SqueezeExcite):
        values["squeezed"] = str(last.w1.shape[0])
        return values | {"act": last.act.label, "gate_act": last.gate_act.label}
    if len(step.nodes) == 2:
        values |= {"mid": str(first.weight.shape[0]), "mid_act": first.act.label}
    if not isinstance(last, DepthwiseConv):
        values["cout"] = str(last.weight.shape[0])
    for prefix, window in (("stem_", step.stem), ("", step.window)):
        if window is not None:
            values |= {prefix + key: text for key, text in _window_values(window).items()}
    if hasattr(last, "act"):
        values["act"] = last.act.label
    return values | {flag: "" for flag in _FLAGS if getattr(last, flag, None)}


def _window_values(w: Window) -> dict[str, str]:
    values = {key: f"{a}x{b}" for key, (a, b) in (("k", w.kernel), ("s", w.stride))}
    if w.dilation != (1, 1):
        values["d"] = "{}x{}".format(*w.dilation)
    return values | {"p": ",".join(map(str, w.padding))}


def read(path: Path) -> list[Shape]:
    """Of a file; lines that start with # say something of it.

    Raises
    ------
    ArgumentError
        There is no such file, or a line is no shape.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.txt")))
        raise ArgumentError(
            f"{path} is no file of shapes: {error}; there are those of {names}"
        ) from None
    return [Shape.parse(line) for line in lines if line.strip() and not line.startswith("#")]


def text_of(name: str, plan: Plan) -> str:
    """Of a file."""
    h, w = plan.size
    return "\n".join((
        f"# {name} at {h}x{w}: how often, operator, sizes.",
        *(f"{shape.times} {shape}" for shape in shapes_of(plan)), "",
    ))  # fmt: skip


def made() -> Iterator[tuple[Path, str]]:
    """The files, and what is to be in them."""
    from ..optimize import optimize
    from .coverage import models
    from .cpu_table import MODELS

    for key, edge, _ in MODELS:
        torch.manual_seed(0)
        plan = optimize(models()[key]().eval(), verify=False).plan((edge, edge))
        yield FOLDER / f"{key[1]}.txt", text_of(":".join(key), plan)


def _size(text: str) -> Size:
    return _ints(text, "x", 3)


def _ints(text: str, between: str, count: int) -> Any:
    numbers = tuple(map(int, text.split(between)))
    if len(numbers) != count:
        raise ValueError(f"{text!r} is not {count} numbers with {between!r} between them")
    return numbers


def main() -> None:
    """Write the files."""
    for path, text in made():
        with whole_file(path) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
