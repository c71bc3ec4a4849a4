"""Small Triton kernels to try the emulator on, and how they are compiled for a GPU that is not there."""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def elementwise_kernel(
    x_ptr,  # [N]
    index_ptr,  # [N]
    y_ptr,  # [N]
    N,
    divisor,
    BLOCK: tl.constexpr,
):
    """A polynomial, roots, quotients and a gather through integer division, with the types' own arithmetic."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    index = tl.load(index_ptr + offs, mask=mask, other=0)
    gathered = tl.load(x_ptr + index % divisor + index // divisor, mask=mask, other=1.0)
    low = x * gathered + x - gathered
    v = x.to(tl.float32)
    fraction = v - tl.floor(v)
    y = (fraction * 0.5 + 0.25) * fraction + tl.sqrt(tl.abs(v)) * tl.rsqrt(tl.abs(v) + 1)
    y = tl.maximum(y, v) + tl.minimum(y, 0.3) + tl.div_rn(v, tl.abs(v) + 3) + tl.sin(v)
    y += (v * 3).to(tl.int32).to(tl.float32) + low.to(tl.float32)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def exchange_kernel(
    x_ptr,  # [BLOCK]
    scratch_ptr,  # [BLOCK]
    y_ptr,  # [BLOCK]
    TRIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements in reverse, several times over, through memory that all warps store in and load from."""
    offs = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + offs)
    for _ in range(TRIPS):
        tl.store(scratch_ptr + offs, value)
        tl.debug_barrier()
        value = tl.load(scratch_ptr + BLOCK - 1 - offs) + 1
        tl.debug_barrier()
    tl.store(y_ptr + offs, value)


@triton.jit
def softmax_kernel(
    x_ptr,  # [R, C]
    y_ptr,  # [R, C]
    R,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Row maxima and sums, over several warps."""
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = tl.arange(0, BLOCK_C)
    mask = (offs_r < R)[:, None] & (offs_c < C)[None, :]
    x = tl.load(x_ptr + offs_r[:, None] * C + offs_c[None, :], mask=mask, other=-float("inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=1)[:, None])
    y = e / tl.sum(e, axis=1)[:, None]
    tl.store(y_ptr + offs_r[:, None] * C + offs_c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def linear_kernel(
    x_ptr,  # [B, P, I]
    w_ptr,  # [B, O, I] where TRANSPOSED, else [B, I, O]
    bias_ptr,  # [O]
    y_ptr,  # [B, P, O]
    sums_ptr,  # [B, tiles of P, O]
    P,
    I,
    O,
    gain,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """A batched product with a leaky ReLU, a bias and the column sums of each tile in its epilogue."""
    pid_p, pid_o, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    offs_p = pid_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_o = pid_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I)
    mask_p = offs_p < P
    mask_o = offs_o < O
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for i in range(0, I, BLOCK_I):
        mask_i = offs_i < I - i
        x = tl.load(
            x_ptr + (b * P + offs_p[:, None]) * I + i + offs_i[None, :],
            mask=mask_p[:, None] & mask_i[None, :],
            other=0.0,
        )
        if TRANSPOSED:
            w = tl.load(
                w_ptr + (b * O + offs_o[:, None]) * I + i + offs_i[None, :],
                mask=mask_o[:, None] & mask_i[None, :],
                other=0.0,
            )
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        else:
            w = tl.load(
                w_ptr + (b * I + i + offs_i[:, None]) * O + offs_o[None, :],
                mask=mask_i[:, None] & mask_o[None, :],
                other=0.0,
            )
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
    acc += tl.load(bias_ptr + offs_o, mask=mask_o, other=0.0)[None, :] * gain
    acc = tl.where(acc > 0, acc, acc * 0.2)
    mask = mask_p[:, None] & mask_o[None, :]
    tl.store(y_ptr + (b * P + offs_p[:, None]) * O + offs_o[None, :], acc.to(y_ptr.dtype.element_ty), mask=mask)
    sums = tl.sum(tl.where(mask, acc, 0.0), axis=0)
    tl.store(sums_ptr + (b * tl.num_programs(0) + pid_p) * O + offs_o, sums, mask=mask_o)


@triton.jit
def tensor_kernel(
    x_ptr,  # [P, I]
    w_ptr,  # [O, I]
    y_ptr,  # [P, O]
    P,
    I,
    O,
    SPECIALIZED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """y = x wᵀ, every tile moved through a tensor descriptor."""
    x_desc = tl.make_tensor_descriptor(x_ptr, [P, I], [I, 1], [BLOCK_P, BLOCK_I])
    w_desc = tl.make_tensor_descriptor(w_ptr, [O, I], [I, 1], [BLOCK_O, BLOCK_I])
    y_desc = tl.make_tensor_descriptor(y_ptr, [P, O], [O, 1], [BLOCK_P, BLOCK_O])
    start_p, start_o = tl.program_id(0) * BLOCK_P, tl.program_id(1) * BLOCK_O
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for i in tl.range(0, I, BLOCK_I, warp_specialize=SPECIALIZED):
        acc = tl.dot(x_desc.load([start_p, i]), w_desc.load([start_o, i]).T, acc)
    y_desc.store([start_p, start_o], acc.to(y_ptr.dtype.element_ty))


@cache
def compiled(kernel, capability: int, types: tuple, constants: tuple, divisible: tuple = (), warps: int = 4):
    """A kernel compiled for compute capability `capability`, that is 80 or 90.

    Args:
        types: (name, Triton type) of every run-time argument.
        constants: (name, value) of every constexpr.
        divisible: names of the integers that are multiples of 16; pointers always are.
        warps: warps a block.
    """
    types, constants = dict(types), dict(constants)
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(signature) if signature[name].startswith("*") or name in divisible]
    return triton.compile(
        ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True},
    )
