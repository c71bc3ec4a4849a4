"""A GPU that is not there: compiles every launch for an architecture and executes its PTX on CPU tensors."""

from dataclasses import dataclass, field
from typing import Any

import torch

from cips_fast.kernels.device import Call
from cips_fast.kernels.report.compile import compile_call, recipe

from .ptx import Memory, Program, Traffic

_compiled: dict[Any, tuple[Program, Any]] = {}


@dataclass
class EmulatedGPU:
    """Stands in for a GPU of an architecture.

    Args:
        architecture: `sm_80` or `sm_90`.
        mode: when asynchronous copies and products take effect, see `tests.ptx`.
        order: None runs warps in near lockstep; a seed runs them one at a time in random order between barriers.

    Attributes:
        counts: what `Program.launch` counts, over all launches.
        calls: the launches.
        traffic: for each launch, the bytes that moved to and from every tensor, by the name of the argument. Arguments
            that overlap in memory have each other's in it.
    """

    architecture: str
    mode: str = "lazy"
    order: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    traffic: list[dict[str, Traffic]] = field(default_factory=list)

    def execute(self, call: Call) -> None:
        self.calls.append(call)
        program, metadata = self.compiled(call)
        memory = Memory()
        storages = {}
        for value in call.arguments.values():
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage.data_ptr() not in storages:
                    data = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
                    storages[storage.data_ptr()] = (memory.place(data), data)

        def address(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            start, _ = storages[value.untyped_storage().data_ptr()]
            return start + value.storage_offset() * value.element_size()

        program.launch(
            memory,
            (*call.grid, 1, 1)[:3],
            32 * metadata.num_warps,
            [address(value) for value in recipe(call).run_time(call.arguments)],
            self.mode,
            self.order,
            self.counts,
            scratch=metadata.global_scratch_size,
            shared=metadata.shared,
        )
        for start, data in storages.values():
            data[:] = memory.fetch(start)
        tensors = {name: value for name, value in call.arguments.items() if isinstance(value, torch.Tensor)}
        self.traffic.append({name: memory.traffic(address(t), _extent(t)) for name, t in tensors.items()})

    def compiled(self, call: Call) -> tuple[Program, Any]:
        """The launch's program and Triton's notes on it; compiled once."""
        key = (self.architecture, call.kernel.fn.__name__, repr(recipe(call)), call.warps, call.stages)
        if key not in _compiled:
            kernel = compile_call(call, self.architecture)
            _compiled[key] = (Program(kernel.asm["ptx"]), kernel.metadata)
        return _compiled[key]


def _extent(t: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if t.numel() == 0:
        return 0
    return (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))) * t.element_size()
