"""The sample kernels with random inputs, what they must compute, and a verdict on what they did compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import EmulationError
from .memory import Memory
from .program import Program
from .samples import compiled, elementwise_kernel, exchange_kernel, linear_kernel, softmax_kernel, tensor_kernel
from .values import decode, to_bfloat16

NUMPY = {"bf16": np.uint16, "fp16": np.float16, "tf32": np.float32, "fp32": np.float32}
TOLERANCE = {"bf16": 2**-7, "fp16": 2**-10, "tf32": 2**-8, "fp32": 2**-19}
"""Error over (the number + the array's root mean square): a few roundings of the type."""


@dataclass
class Case:
    """A compiled kernel with its inputs in memory, and what it must compute.

    `outputs` maps addresses to a type and the expected numbers.
    """

    ptx: str
    memory: Memory
    arguments: list
    grid: tuple[int, int, int]
    threads: int
    outputs: dict[int, tuple[str, np.ndarray]]
    scratch: int = 0

    def launch(self, ptx: str | None = None, **options) -> None:
        Program(ptx or self.ptx).launch(
            self.memory, self.grid, self.threads, self.arguments, scratch=self.scratch, **options
        )

    def outcome(self, ptx: str | None = None, **options) -> str:
        """ "right", "wrong" (numbers), "unwritten" (output was never stored), or the name of the error raised."""
        try:
            self.launch(ptx, **options)
        except EmulationError as error:
            return type(error).__name__
        for address, (dtype, expected) in self.outputs.items():
            if self.memory.unwritten(address).any():
                return "unwritten"
            got = numbers(self.memory.fetch(address), dtype)
            scale = np.abs(expected) + np.sqrt(np.mean(expected**2))
            # A NaN compares as false, and so as wrong.
            if not (np.abs(got - expected) <= TOLERANCE[dtype] * scale).all():
                return "wrong"
        return "right"


def numbers(array: np.ndarray, dtype: str) -> np.ndarray:
    return (decode(array, "bf16") if dtype == "bf16" else array).astype(np.float64)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return to_bfloat16(values) if dtype == "bf16" else values.astype(NUMPY[dtype])


def pointer(dtype: str) -> str:
    return "*fp32" if dtype == "tf32" else f"*{dtype}"


def linear(capability: int, dtype: str, transposed: bool, B=1, P=75, I=80, O=48) -> Case:
    """Two ragged tiles of P, a ragged tile of O and, unless 32 divides I, of I."""
    rng = np.random.default_rng(1)
    x = rounded(rng.standard_normal((B, P, I)), dtype)
    w = rounded(rng.standard_normal((B, O, I) if transposed else (B, I, O)), dtype)
    bias, gain = rng.standard_normal(O).astype(np.float32), 1.5
    w64 = numbers(w, dtype).transpose(0, 2, 1) if transposed else numbers(w, dtype)
    y = numbers(x, dtype) @ w64 + bias.astype(np.float64) * gain
    y = np.where(y > 0, y, 0.2 * y)
    tile = 64
    sums = np.stack([y[:, start : start + tile].sum(axis=1) for start in range(0, P, tile)], axis=1)
    types = {"x_ptr": pointer(dtype), "w_ptr": pointer(dtype), "bias_ptr": "*fp32", "y_ptr": pointer(dtype)}
    types |= {"sums_ptr": "*fp32", "P": "i32", "I": "i32", "O": "i32", "gain": "fp32"}
    constants = {"TRANSPOSED": transposed, "PRECISION": "tf32" if dtype == "tf32" else "ieee"}
    constants |= {"BLOCK_P": tile, "BLOCK_O": 64, "BLOCK_I": 32}
    kernel = compiled(linear_kernel, capability, tuple(types.items()), tuple(constants.items()), ("I", "O"))
    memory = Memory()
    inputs = [memory.place(array) for array in (x, w, bias)]
    outputs = {memory.reserve(y.shape, NUMPY[dtype]): (dtype, y)}
    # The sums are of float32 numbers, as exact as the product.
    outputs[memory.reserve(sums.shape, np.float32)] = ("tf32" if dtype == "tf32" else "fp32", sums)
    grid = (sums.shape[1], -(-O // 64), B)
    return Case(kernel.asm["ptx"], memory, [*inputs, *outputs, P, I, O, gain], grid, 128, outputs)


def tensors(dtype: str, specialized: bool, P=200, I=160, O=80) -> Case:
    rng = np.random.default_rng(2)
    x, w = (rounded(rng.standard_normal((rows, I)), dtype) for rows in (P, O))
    y = numbers(x, dtype) @ numbers(w, dtype).T
    types = {"x_ptr": pointer(dtype), "w_ptr": pointer(dtype), "y_ptr": pointer(dtype)}
    types |= {"P": "i32", "I": "i32", "O": "i32"}
    constants = {"SPECIALIZED": specialized, "BLOCK_P": 128, "BLOCK_O": 128, "BLOCK_I": 32}
    kernel = compiled(tensor_kernel, 90, tuple(types.items()), tuple(constants.items()), ("P", "I", "O"))
    memory = Memory()
    inputs = [memory.place(x), memory.place(w)]
    outputs = {memory.reserve(y.shape, NUMPY[dtype]): (dtype, y)}
    threads, scratch = 32 * kernel.metadata.num_warps, kernel.metadata.global_scratch_size
    return Case(kernel.asm["ptx"], memory, [*inputs, *outputs, P, I, O], (2, 1, 1), threads, outputs, scratch)


def exchange(capability: int, trips: int) -> Case:
    """An odd number of trips."""
    x = np.random.default_rng(5).standard_normal(128).astype(np.float32)
    types = (("x_ptr", "*fp32"), ("scratch_ptr", "*fp32"), ("y_ptr", "*fp32"))
    kernel = compiled(exchange_kernel, capability, types, (("TRIPS", trips), ("BLOCK", 128)))
    memory = Memory()
    source, scratch = memory.place(x), memory.reserve(128, np.float32)
    outputs = {memory.reserve(128, np.float32): ("fp32", x[::-1].astype(np.float64) + trips)}
    return Case(kernel.asm["ptx"], memory, [source, scratch, *outputs], (1, 1, 1), 128, outputs)


def softmax(capability: int, dtype: str, R=10, C=200) -> Case:
    rng = np.random.default_rng(3)
    x = rounded(3 * rng.standard_normal((R, C)), dtype)
    e = np.exp(numbers(x, dtype))
    types = {"x_ptr": pointer(dtype), "y_ptr": pointer(dtype), "R": "i32", "C": "i32"}
    constants = {"BLOCK_R": 4, "BLOCK_C": 256}
    kernel = compiled(softmax_kernel, capability, tuple(types.items()), tuple(constants.items()))
    memory = Memory()
    source = memory.place(x)
    outputs = {memory.reserve((R, C), NUMPY[dtype]): (dtype, e / e.sum(axis=1, keepdims=True))}
    return Case(kernel.asm["ptx"], memory, [source, *outputs, R, C], (3, 1, 1), 128, outputs)


def elementwise(capability: int, dtype: str, N=1000, divisor=7) -> Case:
    rng = np.random.default_rng(4)
    x = rounded(4 * rng.standard_normal(N), dtype)
    if dtype != "fp16":
        # Arguments of sin for which the reduction takes its slow path.
        x[:3] = rounded(np.array([2e5, -3e6, 7e7]), dtype)
    index = rng.integers(0, 400, N).astype(np.int32)
    v = numbers(x, dtype)
    gathered = v[index % divisor + index // divisor]

    def narrow(values: np.ndarray) -> np.ndarray:
        return numbers(rounded(values, dtype), dtype)

    fraction = v - np.floor(v)
    y = (fraction * 0.5 + 0.25) * fraction + np.sqrt(np.abs(v) / (np.abs(v) + 1))
    y = np.maximum(y, v) + np.minimum(y, 0.3) + v / (np.abs(v) + 3) + np.sin(v) + np.trunc(3 * v)
    y = y + narrow(narrow(v * gathered + v) - gathered)
    types = {"x_ptr": pointer(dtype), "index_ptr": "*i32", "y_ptr": pointer(dtype), "N": "i32", "divisor": "i32"}
    kernel = compiled(elementwise_kernel, capability, tuple(types.items()), (("BLOCK", 512),))
    memory = Memory()
    inputs = [memory.place(x), memory.place(index)]
    outputs = {memory.reserve(N, NUMPY[dtype]): (dtype, y)}
    return Case(kernel.asm["ptx"], memory, [*inputs, *outputs, N, divisor], (2, 1, 1), 128, outputs)
