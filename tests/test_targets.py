"""Every kernel at its production shapes, compiled for seven chips: no spill, within their limits, on tensor cores.

Nothing here runs a kernel. Triton and the assemblers of its NVIDIA and AMD backends are all that it takes.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator

import pytest
import torch
import triton

from cips_fast.kernels.chips import TARGETS, chip_of, own_kind
from cips_fast.kernels.report.compile import Resources, compile_call, resources
from cips_fast.kernels.report.workload import production_calls

# Multiplying instructions of the inner loop, and 16-byte copies to shared memory that do not pass through registers.
MULTIPLY = {
    "sm_80": "HMMA.16816",
    "sm_86": "HMMA.16816",
    "sm_90": "HGMMA.",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA.16816",
    "gfx942": "v_mfma_f32",
    "gfx1100": "v_wmma_f32",
}
COPY = {target: "LDGSTS.E.BYPASS" for target in TARGETS if target.startswith("sm_")}
# Registers a thread.
REGISTERS = {"sm": 255, "gfx942": 512, "gfx1100": 256}


def compile_one(job: tuple[str, int]) -> tuple[str, dict, bool, Resources]:
    """Name, constants, whether its factors are half precision, and resources of one production launch."""
    target, index = job
    call = production_calls(target)[index]
    factors = next((call.arguments[name] for name in ("dz_ptr", "x_ptr", "w_ptr") if name in call.arguments), None)
    is_half = factors is not None and own_kind(factors.dtype) == "half"
    return call.kernel.fn.__name__, dict(call.constants), is_half, resources(compile_call(call, target))


@pytest.fixture(scope="module")
def compiled(request) -> Iterator[Callable[[str], list]]:
    """What gives all production launches of a target, compiled in as many processes as there are cores.

    The processes compile for the targets of the selected tests only, in their order. They are given all of them at
    once, so that no core idles at the end of a target.
    """
    tests = [item for item in request.session.items if item.path == request.path and "compiled" in item.fixturenames]
    selected = [item.callspec.params["target"] for item in tests]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        pending = {target: pool.map_async(compile_one, jobs(target), chunksize=1) for target in dict.fromkeys(selected)}
        yield lambda target: pending[target].get()


def jobs(target: str) -> list[tuple[str, int]]:
    """The target and a place in its production launches, for each of them."""
    return [(target, index) for index in range(len(production_calls(target)))]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills_and_everything_fits(compiled, target):
    limit = REGISTERS.get(target, REGISTERS["sm"])
    for name, constants, _, used in compiled(target):
        where = f"{name} {constants} on {target} by Triton {triton.__version__}"
        assert used.stack == 0, f"{where}: {used.stack} bytes of stack"
        assert used.registers <= limit, f"{where}: {used.registers} registers"
        assert used.shared <= chip_of(target).program_shared, f"{where}: {used.shared} bytes of shared memory"


@pytest.mark.parametrize("target", TARGETS)
def test_products_run_on_tensor_cores(compiled, target):
    names = set()
    for name, constants, is_half, used in compiled(target):
        if constants.get("PRECISION") == "tf32":
            wanted = MULTIPLY[target].replace("HMMA.16816", "HMMA.1688")
            assert any(code.startswith(wanted) for code in used.instructions), f"{name} {constants} on {target}"
            names.add("tf32")
        elif is_half and "PRECISION" in constants:
            # Hopper's and Blackwell's own instructions start at 64 rows: three colours take the older one.
            few_rows = name == "mod_fc_wgrad_kernel" and constants["BLOCK_O"] < 64 and target in ("sm_90", "sm_100")
            wanted = "HMMA.16816" if few_rows else MULTIPLY[target]
            assert any(code.startswith(wanted) for code in used.instructions), f"{name} {constants} on {target}"
            names.add(name)
    layers = ("mod_fc_fwd", "mod_fc_mixed", "mod_fc_dgrad", "mod_fc_wgrad")
    products = {f"{name}_kernel" for name in (*layers, "stack", "stack_narrow")}
    assert names == products | ({"tf32"} if target.startswith("sm_") else set())


@pytest.mark.parametrize("target", COPY)
def test_wide_operands_are_copied_16_bytes_at_a_time_and_asynchronously(compiled, target):
    checked = 0
    for name, constants, is_half, used in compiled(target):
        blocks = [value for key, value in constants.items() if key.startswith("BLOCK_")]
        if is_half and "PRECISION" in constants and min(blocks) >= 32:
            copies = [code for code in used.instructions if code.startswith(COPY[target])]
            assert copies, f"{name} {constants} on {target}"
            assert all(code.endswith(".128") for code in copies), f"{name} {constants} on {target}: {copies}"
            checked += 1
    assert checked >= 6


def test_what_a_spill_looks_like():
    """The measure finds a spill where there is one: a tile far too large for its four warps."""
    from dataclasses import replace

    call = next(c for c in production_calls("sm_80") if c.kernel.fn.__name__ == "mod_fc_fwd_kernel")
    crowded = replace(call, warps=4, constants=dict(call.constants) | {"BLOCK_P": 128, "BLOCK_O": 256})
    assert resources(compile_call(crowded, "sm_80")).stack > 0
