"""A compiled kernel, ready to be launched on the CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product

import numpy as np

from . import arithmetic, asynchronous, control, matrix, movement, tensor  # noqa: F401  (they register instructions)
from .block import Block, Settings
from .completion import Mode
from .errors import BadArguments
from .memory import Memory
from .parser import Parameter, parse
from .races import Races
from .team import WARP
from .values import WIDTH

SHARED_BYTES = 227 * 1024
"""The largest shared memory of a block, on sm_90."""

SCRATCH_POINTERS = 2
"""Triton ends every kernel's parameters with pointers to global and to profiling scratch memory."""


class Program:
    """The entry function of a PTX module, parsed once and launched any number of times."""

    def __init__(self, ptx: str):
        self.kernel = parse(ptx)
        self.has_mbarriers = any(ins.opcode.startswith("mbarrier") for ins in self.kernel.instructions)

    def launch(
        self,
        memory: Memory,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[int | float],
        mode: str = "lazy",
        order: int | None = None,
        counts: dict[str, int] | None = None,
        *,
        only: Sequence[tuple[int, int, int]] | None = None,
        scratch: int = 0,
        shared: int = SHARED_BYTES,
        step_limit: int = 2_000_000,
    ) -> None:
        """Run every block of a grid, one after another.

        Args:
            memory: global memory, whose addresses the pointer arguments are.
            grid: numbers of blocks in x, y and z.
            threads: threads a block, 32 times the number of warps (of all of them, where warps are specialised).
            arguments: the kernel's run-time arguments in order, without Triton's two scratch pointers.
            mode: "lazy", asynchronous work takes effect when the code waits for it; "eager", when it is issued;
                "crossed", writes of shared memory when issued and reads of it when waited for (completion.py).
            order: None runs the warps of a block in near lockstep; a seed runs warps one at a time from barrier to
                barrier, and blocks, in random order; where they race in global memory they find poison (races.py).
            counts: gains how often each opcode was issued by a warp, and "global bytes loaded" and "... stored".
            only: the blocks to run instead of the whole grid, of which the kernel still sees the size.
            scratch: bytes of global scratch memory that each block gets (`metadata.global_scratch_size`).
            shared: bytes of shared memory (`metadata.shared`); access beyond raises.
            step_limit: instructions after which a block counts as endless; in near lockstep an instruction that many
                warps execute together counts once.

        Raises:
            EmulationError: one of its kinds, for whatever the kernel does wrong or the emulator does not know.
        """
        if mode not in (known := [m.value for m in Mode]):
            raise BadArguments(f"mode is {mode!r}, not one of {known}")
        if threads % WARP or threads != (self.kernel.required_threads or threads):
            raise BadArguments(f"{threads} threads for a kernel that wants {self.kernel.required_threads}")
        if max(grid[1:]) > 65535:
            raise BadArguments(f"grid {tuple(grid)}: its second and third axes end at 65535")
        random = None if order is None else np.random.default_rng(order)
        blocks = list(only or ((x, y, z) for z, y, x in product(*(range(n) for n in reversed(grid)))))
        if random is not None:
            random.shuffle(blocks)
        scratch_pointer = memory.reserve(scratch * len(blocks), np.uint8) if scratch else 0
        constants = {n: memory.place(np.frombuffer(b, np.uint8)) for n, b in self.kernel.constants.items()}
        settings = Settings(
            kernel=self.kernel,
            memory=memory,
            parameters=self._bind(list(arguments), scratch_pointer),
            constants=constants,
            grid=tuple(grid),
            threads=threads,
            mode=Mode(mode),
            random=random,
            counts=counts,
            shared_bytes=shared,
            step_limit=step_limit,
        )
        memory.races = None if random is None or self.has_mbarriers else Races(memory.bytes.size)
        with np.errstate(all="ignore"):
            for index in blocks:
                Block(settings, tuple(int(i) for i in index)).run()

    def _bind(self, arguments: list, scratch_pointer: int) -> dict[str, int]:
        """Parameter name -> the bits of its argument."""
        parameters = self.kernel.parameters
        missing = len(parameters) - len(arguments)
        if missing == SCRATCH_POINTERS and all(p.is_pointer for p in parameters[-SCRATCH_POINTERS:]):
            arguments = [*arguments, scratch_pointer, 0]
        elif missing:
            raise BadArguments(f"{len(arguments)} arguments for {len(parameters)} parameters of {self.kernel.name}")
        return {p.name: _argument_bits(p, a) for p, a in zip(parameters, arguments, strict=True)}


def _argument_bits(parameter: Parameter, value: int | float) -> int:
    """An argument as it stands in parameter memory."""
    if parameter.kind in ("f32", "f64"):
        pattern, width = ("<f", 32) if parameter.kind == "f32" else ("<d", 64)
        return int.from_bytes(struct.pack(pattern, float(value)), "little") & ((1 << width) - 1)
    width = WIDTH[parameter.kind]
    if not isinstance(value, int | np.integer):
        raise BadArguments(f"{parameter.name} is a .{parameter.kind} and got {value!r}")
    if not -(1 << (width - 1)) <= value < 1 << width:
        raise BadArguments(f"{parameter.name} is a .{parameter.kind}, which cannot hold {value}")
    return int(value) & ((1 << width) - 1)
