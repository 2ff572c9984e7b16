"""What expand_depthwise is asked for, and how it is cut: the same in every type."""

from __future__ import annotations

from dataclasses import dataclass, replace

from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

PLANE = 16  # channels of a plane
WINDOWS = ((3, 1), (3, 2), (5, 1), (5, 2))  # k, stride
STEM_KERNEL, STEM_STRIDE = 3, 2
ACTS = (Act.NONE, Act.SWISH, Act.RELU, Act.RELU6)
# Bytes of a block, on an sm_86, which has the least: beside 384 that the kernels declare.
SHARED = (99 << 10) - 384


@dataclass(frozen=True)
class Tiling:
    """How outputs are cut.

    Attributes
    ----------
    rows, columns : of outputs, of a tile.
    step_rows : of the wide map, made at a time.
    planes : of 16 channels, of a block.
    layout : how rows are matrices, in half precision: ``"wide"``, or of narrow maps ``"block16"``,
        ``"row16"`` or ``"row8"``.
    images : that a block makes, one after another or two by two.
    """

    rows: int
    columns: int
    step_rows: int
    planes: int = 3
    layout: str = "wide"
    images: int = 1

    @property
    def channels(self) -> int:
        """Of a block."""
        return PLANE * self.planes

    @property
    def at_once(self) -> int:
        """Images whose rows are halves of one matrix: maps with 8 rows and 16 columns at most."""
        return 1 if self.layout in ("wide", "block16") or self.rows > 8 else 2

    def of_images(self, images: int) -> Tiling:
        """The same for blocks of so many images, at least those that it makes at once."""
        return replace(self, images=-(-images // self.at_once) * self.at_once)

    def __str__(self) -> str:
        images = f", {self.images} images" if self.images > 1 else ""
        return (
            f"{self.rows}x{self.columns}x{self.channels} outputs, {self.step_rows} rows a step"
            + images
        )


@dataclass(frozen=True)
class Problem:
    """What a kernel is for: all that its tiling depends on, but the batch.

    Attributes
    ----------
    k, s : the window's kernel and stride.
    channels : of the wide map.
    wide, out : height and width of the wide map, and of y.
    top, bottom, left : rows, and columns, of padding.
    cin : channels of x.
    size : bytes of an element.
    is_stem : whether a stem makes the wide map.
    """

    k: int
    s: int
    channels: int
    wide: tuple[int, int]
    out: tuple[int, int]
    top: int
    bottom: int
    left: int
    cin: int
    size: int
    is_stem: bool = False

    @property
    def depth(self) -> int:
        """Columns of the matrices."""
        return self.cin * STEM_KERNEL * (STEM_KERNEL + 1) if self.is_stem else self.cin

    @classmethod
    def of(cls, x: DeviceTensor, y: DeviceTensor, window: Window, stem: Window | None) -> Problem:
        wide = x.shape[2:] if stem is None else stem.output_size(*x.shape[2:])
        top, left, bottom, _ = window.padding
        return cls(
            window.kernel[0], window.stride[0], y.shape[1], tuple(wide), tuple(y.shape[2:]),
            top, bottom, left, x.shape[1], x.dtype.itemsize, stem is not None,
        )  # fmt: skip
