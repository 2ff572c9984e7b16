"""Every error that effnet_fast raises on purpose.

Each names the argument, what was given and what is accepted.
"""

from __future__ import annotations


class EffnetFastError(Exception):
    """Base of all errors of this package."""


class ArgumentError(EffnetFastError, ValueError):
    """An argument's value is not one of the accepted ones."""


class ShapeError(EffnetFastError, ValueError):
    """A tensor's rank, channels or spatial size does not fit."""


class DtypeError(EffnetFastError, TypeError):
    """A tensor's or model's dtype is not supported here."""


class DeviceError(EffnetFastError, RuntimeError):
    """A tensor or model is on a device that this plan or backend does not run on."""


class BackendError(EffnetFastError, RuntimeError):
    """The backend asked for is not built, or cannot run on this machine; the message says why."""


class CompileError(EffnetFastError, RuntimeError):
    """A GPU kernel's source does not compile; the message holds what the compiler said."""


class ModelError(EffnetFastError, ValueError):
    """The model cannot be optimised at all: not a CNN, in train mode, without an image input."""


class WeightsError(ModelError):
    """A parameter or buffer holds NaN or infinity."""


class CaptureError(EffnetFastError, RuntimeError):
    """The model could not be captured as a graph, whole or in part."""


class FallbackError(EffnetFastError, RuntimeError):
    """With strict=True: some part of the model is not fused. The message says which and why."""


class ParityError(EffnetFastError, RuntimeError):
    """The optimised model's numbers differ from the original's by more than the bound."""


class StaleWeightsError(EffnetFastError, RuntimeError):
    """A parameter changed since the plan was made; call refresh()."""


class InferenceOnlyError(EffnetFastError, RuntimeError):
    """Training or a gradient was asked of an inference-only model."""


class CheckpointError(EffnetFastError, ValueError):
    """A checkpoint is missing, damaged, of another version, or of another model."""


class ImageError(EffnetFastError, ValueError):
    """An image file cannot be decoded; the message is the reason that goes into the results."""


class ResultsError(EffnetFastError, RuntimeError):
    """Results cannot be written; the message says why, what is saved, and how to go on."""


class GpuError(EffnetFastError, RuntimeError):
    """A call of the CUDA driver failed.

    Attributes
    ----------
    call : str
        The call, as in ``"cuLaunchKernel"``.
    result : str
        What it returned, as in ``"CUDA_ERROR_INVALID_VALUE"``.
    """

    def __init__(self, message: str, call: str = "", result: str = ""):
        super().__init__(message)
        self.call = call
        self.result = result


class OutOfMemoryError(EffnetFastError, RuntimeError):
    """A GPU has not the memory that a batch needs; the message says how much that is."""


class KernelFault(GpuError):
    """The PTX machine stopped a kernel; the device is of no more use until it is closed.

    Attributes
    ----------
    trap : str
        What for, as in ``"shared race"``.
    """

    def __init__(self, message: str, call: str = "", result: str = "", trap: str = ""):
        super().__init__(message, call, result)
        self.trap = trap
