"""The compiled part, ``effnet_fast._C``, or the reason why it is not there."""

from __future__ import annotations

from types import ModuleType

from effnet_fast.errors import BackendError


def extension() -> ModuleType:
    """``effnet_fast._C``.

    Raises
    ------
    BackendError
        The extension is not built or cannot be loaded here.
    """
    try:
        from effnet_fast import _C
    except ImportError as error:
        raise BackendError(
            f"the C++ kernels (effnet_fast._C) cannot be loaded: {error}; build them with "
            "`pip install .`, or pass impl='reference'"
        ) from error
    return _C
