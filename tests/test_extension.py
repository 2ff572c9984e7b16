"""The extension module: what it says of itself, its errors, its environment variable, the GIL."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import effnet_fast
from effnet_fast import _C
from effnet_fast.network import Act


def ask(code: str, isa: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a new process with EFFNET_FAST_ISA set."""
    return subprocess.run(
        [sys.executable, "-c", f"from effnet_fast import _C; {code}"],
        env={**os.environ, "EFFNET_FAST_ISA": isa},
        capture_output=True,
        text=True,
    )


def test_build_info():
    info = _C.build_info()
    assert info["version"] == effnet_fast.__version__
    assert set(_C.available_isas()) <= set(info["isas"])
    assert "scalar" in info["isas"]
    assert info["cuda"] is False
    assert "-march" not in info["cxx_flags"]


def test_the_best_instruction_set_is_used():
    asked = os.environ.get("EFFNET_FAST_ISA")
    assert _C.isa() == (asked or _C.available_isas()[0])
    assert _C.available_isas()[-1] == "scalar"
    assert _C.lanes() >= 1


def test_environment_chooses_the_instruction_set():
    for isa in _C.available_isas():
        assert ask("print(_C.isa())", isa).stdout.strip() == isa


def test_unknown_instruction_set_is_an_error():
    result = ask("_C.isa()", "sse9")
    assert result.returncode == 1
    assert 'ValueError: EFFNET_FAST_ISA is "sse9"' in result.stderr
    assert all(isa in result.stderr for isa in _C.available_isas())


def test_bad_arguments_are_value_errors():
    with pytest.raises(ValueError, match="a size is 0; accepted: 1 or more"):
        _C.packed_conv_size(8, 0, 1, 1)
    with pytest.raises(ValueError, match="src is 0; accepted: an address"):
        _C.pack_depthwise(0, 8, 3, 3, 64)
    with pytest.raises(ValueError, match="activation: act is 77; accepted: 0 to 8"):
        _C.activation(77, 64, 64, 1, 1)
    program = _C.Program(0)
    with pytest.raises(ValueError, match="pointwise_conv: conv has no weight"):
        none = _C.Operand.none()
        program.pointwise_conv(_C.Conv(4, 8, 0, 0, 0), none, none, none, none, none)
    with pytest.raises(ValueError, match="threads is 0; accepted: 1 or more"):
        program.run([], 1, 0)
    with pytest.raises(TypeError):
        program.run([(0, 1, 2)], 1, 1)  # a tensor is nine numbers


@pytest.mark.parametrize("act", Act, ids=lambda act: act.label)
def test_acts_are_numbered_as_in_cpp(act):
    x = torch.linspace(-7, 7, 101)
    y = torch.empty_like(x)
    _C.activation(int(act), x.data_ptr(), y.data_ptr(), x.numel(), 1)
    torch.testing.assert_close(y, REFERENCES[act](x), rtol=1e-5, atol=1e-6)


REFERENCES = {
    Act.NONE: lambda x: x,
    Act.SWISH: torch.nn.functional.silu,
    Act.RELU: torch.relu,
    Act.RELU6: torch.nn.functional.relu6,
    Act.HARD_SWISH: torch.nn.functional.hardswish,
    Act.HARD_SIGMOID: torch.nn.functional.hardsigmoid,
    Act.SIGMOID: torch.sigmoid,
    Act.GELU: torch.nn.functional.gelu,
    Act.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def test_run_releases_the_gil():
    """While one thread runs a program, another sees the first image done and the last one not."""
    n, c, size = 3000, 64, 16
    x, weight = torch.randn(c, size, size), torch.randn(c, c)
    image = x.permute(1, 2, 0).contiguous()
    packed = torch.empty(_C.packed_conv_size(c, c, 1, 1))
    _C.pack_conv(weight.data_ptr(), c, c, 1, 1, packed.data_ptr())
    program, none = _C.Program(0), _C.Operand.none()
    program.pointwise_conv(
        _C.Conv(c, c, packed.data_ptr(), 0, 0),
        _C.Operand.tensor(0, c, size, size),
        none,
        none,
        none,
        _C.Operand.tensor(1, c, 1, 1),
    )
    y = torch.empty(n, c)
    tensors = [
        (image.data_ptr(), n, c, size, size, 0, 1, size * c, c),  # n times the same image
        (y.data_ptr(), n, c, 1, 1, c, 1, c, c),
    ]

    def seen_under_way() -> bool:
        y.fill_(torch.nan)
        runner = threading.Thread(target=program.run, args=(tensors, n, 1))
        runner.start()
        seen = False
        while runner.is_alive() and not seen:
            first_done = not y[0, 0].isnan()
            seen = first_done and bool(y[-1, -1].isnan())
        runner.join()
        return seen

    assert any(seen_under_way() for _ in range(20))  # one try is enough where a core is free
    expected = torch.einsum("oc,chw->o", weight, x) / size**2
    torch.testing.assert_close(y, expected.expand(n, c), rtol=1e-4, atol=1e-4)
