"""Every kernel at its production shapes, compiled for seven chips: no spill, within their limits, on tensor cores.

Nothing here runs a kernel. Triton and the assemblers of its NVIDIA and AMD backends are all that it takes.
"""

from functools import lru_cache

import pytest
import triton

from cips_fast.kernels.chips import TARGETS, chip_of, own_kind
from cips_fast.kernels.device import Call
from cips_fast.kernels.report.compile import Resources, compile_call, resources
from cips_fast.kernels.report.cost import KERNELS
from cips_fast.kernels.report.workload import production_calls

# Besides all kernels for sm_90, the quick tier compiles these for an AMD chip.
QUICK_ON_AMD = ("mod_fc_mixed_kernel", "fourier_fwd_kernel", "embedding_bwd_table_kernel", "stack_kernel")
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
COPY = "LDGSTS.E.BYPASS"
PRODUCTS = {
    *("mod_fc_fwd_kernel", "mod_fc_mixed_kernel", "mod_fc_dgrad_kernel", "mod_fc_wgrad_kernel"),
    *("stack_kernel", "stack_narrow_kernel"),
}
# Registers a thread.
REGISTERS = {"sm": 255, "gfx942": 512, "gfx1100": 256}


@lru_cache
def launches(target: str) -> dict[str, list[Call]]:
    """Production launches of a target by the name of their kernel."""
    calls = production_calls(target)
    names = {call.kernel.fn.__name__ for call in calls}
    assert names == set(KERNELS)
    return {name: [call for call in calls if call.kernel.fn.__name__ == name] for name in names}


@pytest.mark.exhaustive(
    *(f"{target}-*" for target in TARGETS if target not in ("sm_90", "gfx942")),
    *(f"gfx942-{kernel}" for kernel in KERNELS if kernel not in QUICK_ON_AMD),
)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_compiled(target, kernel):
    multiplied, copied = set(), 0
    for call in launches(target)[kernel]:
        used = resources(compile_call(call, target))
        where = f"{kernel} {dict(call.constants)} on {target} by Triton {triton.__version__}"
        check_that_nothing_spills_and_everything_fits(used, target, where)
        multiplied.add(check_that_products_run_on_tensor_cores(call, used, target, where))
        if target.startswith("sm_"):
            copied += check_that_wide_operands_are_copied_16_bytes_at_a_time(call, used, where)
    if kernel in PRODUCTS:
        assert multiplied >= ({"half", "tf32"} if target.startswith("sm_") else {"half"})
        # On chip there is no operand as wide as that.
        assert copied > 0 or kernel == "stack_narrow_kernel" or not target.startswith("sm_")


def check_that_nothing_spills_and_everything_fits(used: Resources, target: str, where: str) -> None:
    assert used.stack == 0, f"{where}: {used.stack} bytes of stack"
    assert used.registers <= REGISTERS.get(target, REGISTERS["sm"]), f"{where}: {used.registers} registers"
    assert used.shared <= chip_of(target).program_shared, f"{where}: {used.shared} bytes of shared memory"


def check_that_products_run_on_tensor_cores(call: Call, used: Resources, target: str, where: str) -> str | None:
    """Returns the kind of factors that must be multiplied there, None where there are none."""
    kernel, constants = call.kernel.fn.__name__, call.constants
    if constants.get("PRECISION") == "tf32":
        kind, wanted = "tf32", MULTIPLY[target].replace("HMMA.16816", "HMMA.1688")
    elif multiplies_halves(call):
        # Hopper's and Blackwell's own instructions start at 64 rows: three colours take the older one.
        few_rows = kernel == "mod_fc_wgrad_kernel" and constants["BLOCK_O"] < 64 and target in ("sm_90", "sm_100")
        kind, wanted = "half", "HMMA.16816" if few_rows else MULTIPLY[target]
    else:
        return None
    assert any(code.startswith(wanted) for code in used.instructions), f"{where}: no {wanted}"
    return kind


def check_that_wide_operands_are_copied_16_bytes_at_a_time(call: Call, used: Resources, where: str) -> bool:
    """Asynchronously, too. Returns whether the launch has such operands."""
    blocks = [value for key, value in call.constants.items() if key.startswith("BLOCK_")]
    if not multiplies_halves(call) or min(blocks) < 32:
        return False
    copies = [code for code in used.instructions if code.startswith(COPY)]
    assert copies, f"{where}: no {COPY}"
    assert all(code.endswith(".128") for code in copies), f"{where}: {copies}"
    return True


def multiplies_halves(call: Call) -> bool:
    """Whether the factors of a launch's products are bfloat16 or float16."""
    factors = next((call.arguments[name] for name in ("dz_ptr", "x_ptr", "w_ptr") if name in call.arguments), None)
    return factors is not None and own_kind(factors.dtype) == "half" and "PRECISION" in call.constants


def test_what_a_spill_looks_like():
    """The measure finds a spill where there is one: a tile far too large for its four warps."""
    from dataclasses import replace

    call = next(c for c in production_calls("sm_80") if c.kernel.fn.__name__ == "mod_fc_fwd_kernel")
    crowded = replace(call, warps=4, constants=dict(call.constants) | {"BLOCK_P": 128, "BLOCK_O": 256})
    assert resources(compile_call(crowded, "sm_80")).stack > 0
