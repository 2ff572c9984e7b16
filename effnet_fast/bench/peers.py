"""What a user would run instead on a CPU: runtimes with the same model, each in its own process.

Runtimes keep threads that spin after a call, and would take each other's cores: a process is
stopped while another is measured, and runs once unmeasured after it went on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .coverage import build
from .harness import reason_of

Run = Callable[[], Any]  # an inference, which returns the logits
SECONDS = 600  # to be ready, and for an answer


class PeerError(Exception):
    """A runtime failed in its process."""


@dataclass(frozen=True)
class Case:
    """What every contender computes.

    Attributes
    ----------
    source, model : as :func:`effnet_fast.bench.coverage.build` takes them.
    size : (H, W) of the images.
    batch, threads : int
    folder : for files that runtimes read.
    """

    source: str
    model: str
    size: tuple[int, int]
    batch: int
    threads: int
    folder: Path

    def build(self) -> nn.Module:
        """The model, the same every time."""
        return build(self.source, self.model, self.size)

    def images(self) -> torch.Tensor:
        """(batch, 3, H, W), the same every time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, *self.size, generator=generator)


# ---- contenders: called in their process ---------------------------------------------------------


def effnet_fast(case: Case) -> Run:
    """Ours."""
    from ..optimize import optimize

    model, x = optimize(case.build()), case.images()

    def run() -> Any:
        return model(x)

    run.model, run.x = model, x  # for the profile
    return run


def eager(case: Case) -> Run:
    """Stock layers."""
    model, x = case.build(), case.images()
    return lambda: model(x)


def channels_last(case: Case) -> Run:
    """Stock layers, with adjacent channels."""
    model = case.build().to(memory_format=torch.channels_last)
    x = case.images().to(memory_format=torch.channels_last)
    return lambda: model(x)


def torch_compile(case: Case) -> Run:
    """Inductor's best: constants folded, kernels tuned."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model = torch.compile(
        case.build().to(memory_format=torch.channels_last), mode="max-autotune-no-cudagraphs"
    )
    x = case.images().to(memory_format=torch.channels_last)
    return lambda: model(x)


def torchscript(case: Case) -> Run:
    """Traced, frozen, with oneDNN's fusions."""
    x = case.images()
    torch.jit.enable_onednn_fusion(True)
    model = torch.jit.freeze(torch.jit.trace(case.build(), x, check_trace=False))
    model(x), model(x)  # it fuses at the second
    return lambda: model(x)


def onnx_file(case: Case) -> Path:
    """The model as a file, made by the first that needs it."""
    path = case.folder / f"{case.model}-{case.batch}x{case.size[0]}x{case.size[1]}.onnx"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        torch.onnx.export(
            case.build(), (case.images(),), partial, dynamo=False, input_names=["x"],
            output_names=["y"],
        )  # fmt: skip
        partial.rename(path)
    return path


def onnxruntime(case: Case) -> Run:
    """ONNX Runtime's CPU provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = ort.InferenceSession(
        str(onnx_file(case)), options, providers=["CPUExecutionProvider"]
    )
    x = {"x": case.images().numpy()}
    return lambda: session.run(None, x)[0]


def openvino(case: Case) -> Run:
    """OpenVINO, float32."""
    import openvino as ov

    hints = {
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = ov.Core().compile_model(ov.Core().read_model(onnx_file(case)), "CPU", hints)
    request, x = compiled.create_infer_request(), case.images().numpy()
    return lambda: next(iter(request.infer({0: x}).values()))


def mnn(case: Case) -> Run:
    """MNN, full precision."""
    import subprocess
    import sys

    import MNN

    source = onnx_file(case)
    path = source.with_suffix(".mnn")
    if not path.exists():
        converter = Path(sys.executable).parent / "mnnconvert"
        command = [converter, "-f", "ONNX", "--modelFile", source, "--MNNModel", path]
        subprocess.run([*command, "--bizCode", "b"], check=True, capture_output=True)
    manager = MNN.nn.create_runtime_manager(
        ({"backend": "CPU", "precision": "high", "numThread": case.threads},)
    )
    net = MNN.nn.load_module_from_file(str(path), ["x"], ["y"], runtime_manager=manager)
    images = MNN.numpy.array(case.images().numpy())
    x = MNN.expr.convert(images, MNN.expr.NC4HW4)
    return lambda: MNN.expr.convert(net.forward(x), MNN.expr.NCHW).read()


def ncnn(case: Case) -> Run:
    """ncnn, float32, one image after another."""
    import ncnn as runtime
    import numpy as np
    import pnnx

    name = case.model.replace("-", "_")  # as pnnx names its files
    stem = case.folder / f"{name}_{case.size[0]}x{case.size[1]}"
    images = case.images()
    if not stem.with_suffix(".ncnn.bin").exists():
        pnnx.export(case.build(), str(stem.with_suffix(".pt")), images[:1], fp16=False)
    net = runtime.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(str(stem.with_suffix(".ncnn.param")))
    net.load_model(str(stem.with_suffix(".ncnn.bin")))
    mats = [runtime.Mat(image.numpy()).clone() for image in images]

    def run() -> Any:
        outputs = []
        for mat in mats:
            extractor = net.create_extractor()
            extractor.input("in0", mat)
            outputs.append(np.array(extractor.extract("out0")[1]))
        return np.stack(outputs)

    return run


def litert(case: Case) -> Run:
    """LiteRT, whose CPU kernels are XNNPACK's."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    path = case.folder / f"{case.model}-{case.batch}x{case.size[0]}x{case.size[1]}.tflite"
    x = case.images()
    if not path.exists():
        litert_torch.convert(case.build(), (x,)).export(str(path))
    interpreter = Interpreter(str(path), num_threads=case.threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run() -> Any:
        interpreter.set_tensor(given["index"], x.numpy())
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return run


CONTENDERS: dict[str, Callable[[Case], Run]] = {
    "effnet_fast": effnet_fast,
    "eager": eager,
    "channels_last": channels_last,
    "torch.compile": torch_compile,
    "torchscript": torchscript,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "mnn": mnn,
    "ncnn": ncnn,
    "litert": litert,
}


# ---- the machine's own limits --------------------------------------------------------------------

SGEMM = 1024  # rows and columns
COPIED = 64 << 20  # bytes, more than a cache holds


def sgemm(case: Case) -> Run:
    """The product of two matrices by the library that torch has."""
    a, b = torch.randn(2, SGEMM, SGEMM)
    out = torch.empty(SGEMM, SGEMM)
    return lambda: torch.mm(a, b, out=out)


def copy(case: Case) -> Run:
    """Memory to memory."""
    x, y = torch.zeros(2, COPIED // 4)
    return lambda: y.copy_(x)


LIMITS = {"sgemm": sgemm, "copy": copy}


# ---- processes -----------------------------------------------------------------------------------


def _serve(pipe: Connection, name: str, case: Case) -> None:
    """In the process: make the contender, and answer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # converters tell of their progress
    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(False)
    try:
        run = {**CONTENDERS, **LIMITS}[name](case)
        logits = run()
        answer = None if name in LIMITS else torch.as_tensor(logits).float().reshape(case.batch, -1)
    except Exception as failure:  # whatever it is, it is why this contender does not run
        pipe.send(("failed", reason_of(failure)))
        return
    pipe.send(("ready", answer if answer is None else answer.numpy().copy()))
    while True:
        what = pipe.recv()
        if what == "time":
            run()
            start = time.perf_counter()
            run()
            pipe.send(("seconds", time.perf_counter() - start))
        elif what == "profile":
            from .cpu import profile

            pipe.send(("profile", profile(run.model, run.x)))
        else:
            return


class Peer:
    """A contender in its process, which is stopped but for its own samples.

    Raises
    ------
    PeerError
        With the reason why it does not run here.
    """

    def __init__(self, name: str, case: Case):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, name, case), daemon=True)
        with _environment(OMP_NUM_THREADS=str(case.threads)):
            self._process.start()
        there.close()
        self.output = self._answer("ready")
        self._stop()

    def __call__(self) -> Any:
        """What it computed."""
        return self.output

    def sample(self) -> float:
        """Seconds of one run."""
        return self._ask("time", "seconds")

    def profile(self) -> list[dict[str, Any]]:
        """As :func:`effnet_fast.bench.cpu.profile`; of ours only."""
        return self._ask("profile", "profile")

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ask(self, what: str, kind: str) -> Any:
        os.kill(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):  # of a process that ended: the answer says so
            self._pipe.send(what)
        answer = self._answer(kind)
        self._stop()
        return answer

    def _stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def _answer(self, kind: str) -> Any:
        try:
            if not self._pipe.poll(SECONDS):
                self.close()
                raise PeerError(f"no answer within {SECONDS} s")
            found, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise PeerError(f"its process ended with {self._process.exitcode}") from None
        if found != kind:
            self.close()
            raise PeerError(answer)
        return answer


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set for processes that are started within."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
