"""Ahead-of-time compilation of a launch for a named architecture, without a GPU, and the resources of the result."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ..chips import DTYPES
from ..device import Argument, Call
from .disassembly import multiplying_loop, opcodes

# Triton's names of pointers.
POINTERS = {
    **{dtype: f"*{factors.name}" for dtype, factors in DTYPES.items()},
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Recipe:
    """What Triton compiles a launch from: the types of its arguments, and the values that become part of the code."""

    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]  # arguments known to be multiples of 16
    small: tuple[str, ...]  # tensors of less than 2 GiB, for which AMD's buffer instructions suffice

    def attributes(self, backend: str) -> dict[tuple[int], list[list[object]]]:
        """By the index of an argument, what Triton's `cuda` or `hip` backend may assume about it."""
        names = list(self.signature)
        known: dict[tuple[int], list[list[object]]] = {}
        for name in self.aligned:
            known.setdefault((names.index(name),), []).append(["tt.divisibility", 16])
        for name in self.small if backend == "hip" else ():
            known.setdefault((names.index(name),), []).append(["tt.pointer_range", 32])
        return known

    def run_time(self, arguments: Mapping[str, Argument]) -> list[Argument]:
        """The arguments that the compiled kernel takes at run time, in order."""
        return [arguments[name] for name, kind in self.signature.items() if kind != "constexpr"]


@dataclass(frozen=True)
class Resources:
    """The resources that a compiled kernel uses, and its instructions."""

    registers: int  # per thread
    stack: int  # bytes per thread, spills included
    shared: int  # bytes per program
    tensor_memory: int  # columns per program, sm_100
    instructions: Counter  # by opcode with its modifiers; empty for kernels that do not multiply matrices
    loop: Counter  # the instructions of the innermost loop that multiplies


def recipe(call: Call) -> Recipe:
    """The recipe of a launch, specialised for arguments that are 1 or multiples of 16, as Triton's runtime does it."""
    signature, constants, aligned, small = {}, dict(call.constants), [], []
    for parameter in call.kernel.params:
        name, specialised = parameter.name, not parameter.do_not_specialize
        if name in call.constants:
            signature[name] = "constexpr"
            continue
        value = call.arguments[name]
        if value is None or (specialised and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            # A tensor on the meta device has no address; it counts as aligned, as new tensors are.
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(name)
            if value.untyped_storage().nbytes() < 2**31:
                small.append(name)
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialised and value % 16 == 0:
                aligned.append(name)
        else:
            signature[name] = "fp32"
    return Recipe(signature, constants, tuple(aligned), tuple(small))


def target(architecture: str) -> GPUTarget:
    """Triton's name for an architecture: `sm_90`, `gfx942`."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    # Waves have 64 lanes on AMD's compute chips, and 32 on its graphics chips from gfx10 on.
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def compile_call(call: Call, architecture: str) -> CompiledKernel:
    """The kernel of a launch, compiled for an architecture.

    Args:
        call: a launch; its tensors may be on the meta device.
        architecture: `sm_80` and later, or `gfx90a`, `gfx942`, `gfx1100`.

    Returns:
        Triton's compiled kernel: `asm["ptx"]`, `asm["cubin"]` or `asm["amdgcn"]`, and `metadata`.

    Raises:
        RuntimeError: Triton was imported with TRITON_INTERPRET=1; then it cannot compile.
    """
    if not isinstance(call.kernel, triton.JITFunction):
        raise RuntimeError("TRITON_INTERPRET: got 1, must not be set in a process that compiles kernels")
    made = recipe(call)
    chip = target(architecture)
    source = ASTSource(call.kernel, made.signature, made.constants, made.attributes(chip.backend))
    return triton.compile(source, target=chip, options=call.options)


def resources(kernel: CompiledKernel) -> Resources:
    """Registers, stack, shared memory and instructions of a compiled kernel."""
    code, used = (_cuda if "cubin" in kernel.asm else _amd)(kernel)
    return Resources(
        **used,
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", 0),
        instructions=opcodes(code),
        loop=multiplying_loop(code),
    )


def _amd(kernel: CompiledKernel) -> tuple[str, dict[str, int]]:
    code = kernel.asm["amdgcn"]

    def entry(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", code).group(1))

    spilled = entry("vgpr_spill_count") + entry("sgpr_spill_count")
    stack = max(entry("private_segment_fixed_size"), spilled)
    return code if _multiplies(kernel) else "", {"registers": entry("vgpr_count"), "stack": stack}


def _cuda(kernel: CompiledKernel) -> tuple[str, dict[str, int]]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        # The dataflow analysis is not needed and would take a third of the time.
        code = _output(tools / "nvdisasm", "-c", "--no-dataflow", file.name) if _multiplies(kernel) else ""
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage).groups())
    return code, {"registers": registers, "stack": stack + local}


def _multiplies(kernel: CompiledKernel) -> bool:
    return "tt.dot" in kernel.asm["ttir"]


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
