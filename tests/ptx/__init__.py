"""Executes the PTX that Triton compiles for sm_80 and sm_90, on the CPU, so that kernels are proved without a GPU.

    memory = Memory()
    x = memory.place(array)                              # an address; bfloat16 as its uint16 bits
    y = memory.reserve(shape, np.float32)                # uninitialised: NaN until the kernel stores it
    Program(kernel.asm["ptx"]).launch(memory, (blocks, 1, 1), 32 * kernel.metadata.num_warps, [x, y, n])
    assert not memory.unwritten(y).any()
    result = memory.fetch(y)
    memory.traffic(x, array.nbytes).loaded               # bytes; also .distinct_loaded, and both of stores

What is modelled, and so what a launch finds:

- Every access to global, shared and local memory is checked for bounds and alignment. Memory that nothing wrote holds
  NaN, and so do registers. Which elements of an output were never stored can be asked.
- Threads have their own program counters; an instruction that all threads of a warp must execute together raises where
  they do not. Barriers count; a deadlock, and a loop that does not end, raise.
- cp.async, TMA and wgmma take effect at their wait, at their issue, or crossed (completion.py). Use all three modes.
- With `order` the warps of a block run one at a time, in random order, from barrier to barrier: a missing barrier
  shows for some seeds. Warps of one warpgroup are apart too. What a warp stored in global memory since
  the last barrier, another one loads as poison (races.py).
- mma.sync, ldmatrix, wgmma with its descriptors and swizzles, mbarriers, tensor maps, named barriers, warp
  specialisation, packed 16-bit arithmetic, rounding and saturation of conversions.

What is not: ptxas and what it makes of the PTX, time, bank conflicts, registers that run out, clusters of blocks, the
memory model (fences have no effect: accesses happen in the order of the code), blocks that run at the same time, the
hardware's rounding within a matrix product and its approximations of functions, sm_100's tcgen05. An instruction or a
modifier that is not known raises `UnknownInstruction` when it is executed, and is ignored where it is not.

The way down: program.py launches blocks (block.py) of teams of threads (team.py), which fetch parsed instructions
(parser.py, operands.py) and call their handlers (registry.py): control.py, arithmetic.py, movement.py, matrix.py with
fragments.py, asynchronous.py, tensor.py with completion.py. Below lie memory.py, values.py and errors.py. The section
names in the handlers' docstrings are those of NVIDIA's "Parallel Thread Execution ISA".
"""

from .errors import (
    BadArguments,
    BarrierMisuse,
    Deadlock,
    Divergence,
    EmulationError,
    MemoryFault,
    Misaligned,
    OutOfBounds,
    StepLimit,
    UnknownInstruction,
)
from .memory import Memory, Traffic
from .program import Program

__all__ = [
    "BadArguments",
    "BarrierMisuse",
    "Deadlock",
    "Divergence",
    "EmulationError",
    "Memory",
    "MemoryFault",
    "Misaligned",
    "OutOfBounds",
    "Program",
    "StepLimit",
    "Traffic",
    "UnknownInstruction",
]
