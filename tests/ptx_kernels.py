"""Small PTX kernels for the machine's own tests: one text for a wrong kernel and the right one."""

from dataclasses import dataclass, field

import numpy as np
from ptx_opcodes import version

from effnet_fast.gpu import Device, Launch

# The thread's index i in the grid, its x[i] at xi, its y[i] at yi; registers to use freely.
_KERNEL = """.version {version}
.target sm_{target}
.address_size 64
{declarations}
.visible .entry {name}(.param .u64 x_arg, .param .u64 y_arg, .param .u32 n_arg)
{{
  .reg .pred p<8>;
  .reg .b16 h<8>;
  .reg .b32 r<40>, f<16>, i, n, tid, cta, lane, warp;
  .reg .b64 q<16>, x, y, xi, yi;
  ld.param.u64 x, [x_arg];
  ld.param.u64 y, [y_arg];
  ld.param.u32 n, [n_arg];
  mov.u32 tid, %tid.x;
  mov.u32 cta, %ctaid.x;
  mov.u32 r0, %ntid.x;
  mad.lo.s32 i, cta, r0, tid;
  and.b32 lane, tid, 31;
  shr.u32 warp, tid, 5;
  mul.wide.u32 q0, i, 4;
  add.s64 xi, x, q0;
  add.s64 yi, y, q0;
{body}
  ret;
}}
"""


def kernel(body, declarations="", name="kernel", target=80):
    """PTX of one kernel over (x, y, n)."""
    return _KERNEL.format(
        body=body, declarations=declarations, name=name, target=target, version=version(target)
    )


@dataclass
class Case:
    """A wrong kernel, what it is stopped for, and the right kernel.

    A line of the body ends in ``// wrong`` or ``// right`` when only that kernel has it, and in
    ``// trap`` where the wrong one is stopped.

    Parameters
    ----------
    trap : str
        The trap's name.
    cause : tuple of str
        Parts of the message.
    result : callable
        The right y, of the index i and of x = 3 i + 1; None where y is not compared.
    grid, block, shared : int
        Of the launch.
    where : str
        The block and the thread that are stopped, when blocks and warps run in order.
    options : dict
        Of the device.
    target : int
        What the PTX is for; what is newer than sm_89 runs on the sm_120.
    counts_vary : bool
        Whether what is counted depends on the order that blocks and warps run in.
    """

    name: str
    trap: str
    body: str
    cause: tuple = ()
    result: object = None
    declarations: str = ""
    grid: int = 2
    block: int = 32
    shared: int = 0
    where: str = ""
    n: int = 1
    x_bytes: int | None = None  # beyond the words of the threads: less or more
    x_written: bool = True
    regions: object = None  # of (x, y)
    wrong_regions: object = None
    options: dict = field(default_factory=dict)
    target: int = 80
    counts_vary: bool = False

    def __str__(self):
        return self.name

    @property
    def threads(self):
        return self.grid * self.block

    def text(self, wrong):
        drop = "// right" if wrong else "// wrong"
        lines = [line for line in self.body.splitlines() if drop not in line]
        return kernel("\n".join(lines), self.declarations, self.name, self.target)

    def stopped_at(self):
        """Parts of the message, of which one says where the wrong kernel is stopped."""
        lines = [line.partition("//") for line in self.text(wrong=True).splitlines()]
        marked = [(n, code) for n, (code, _, note) in enumerate(lines, 1) if "trap" in note]
        assert marked, f"{self.name}: no line is marked"
        return [f'PTX line {n} "{code.strip()}"' for n, code in marked]

    def run(self, wrong, counts=None, **options):
        """Run it; returns y as 32-bit words, and appends to counts what was counted."""
        index = 0 if self.target < 90 else 2
        with Device("ptx", index, **{"threads": 1, **self.options, **options}) as device:
            words = 3 * np.arange(self.threads, dtype=np.uint32) + 1
            data = np.zeros(self.x_bytes or words.nbytes, np.uint8)
            head = words.view(np.uint8)[: data.size]
            data[: head.size] = head
            x = device.upload(data) if self.x_written else device.empty(data.size)
            y = device.upload(np.zeros(self.threads, np.uint32))
            regions = self.wrong_regions if wrong and self.wrong_regions else self.regions
            launch = Launch(
                device.load(self.text(wrong)).kernel(self.name),
                (self.grid,),
                (self.block,),
                self.shared,
                (x, y, self.n),
                tuple(regions(x, y)) if regions else (),
            )
            device.launch(launch)
            device.synchronize()
            if counts is not None:
                counts += [_comparable(c) for c in device.take_counts()]
            return device.download(y, np.uint32)

    def expected(self):
        i = np.arange(self.threads)
        return np.broadcast_to(np.asarray(self.result(i, 3 * i + 1)), i.shape).astype(np.uint32)


def _comparable(counts):
    """Counts without what is of the run: its time and its addresses."""
    tensors = [{**t, "base": 0, "name": t["name"].partition("+")[2]} for t in counts["tensors"]]
    return {**counts, "seconds": 0.0, "tensors": tensors}
