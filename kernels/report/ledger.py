"""Every launch that a function makes, its kernels' and PyTorch's own, with operations and bytes by one rule.

The function runs on tensors without memory. A kernel's launch costs what `cost` says; an operator of PyTorch is one
launch, reads each of its tensors once and writes each of its results once, its products run at the rate of 16-bit
factors, and views are free. That favours PyTorch: some of its operators (sorts, gradients of convolutions, sums) start
more than one kernel and move more.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..chips import Chip, Floor
from ..device import Call, standing_in
from .cost import cost, distinct

# Operators that start nothing and are no views by their schemas.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
OVERWRITING = {"copy_", "fill_", "zero_"}  # and all whose result goes to `out`


class Operand(NamedTuple):
    """A tensor that a launch reads or writes, and how many bytes of it, each once."""

    tensor: Tensor
    bytes: int


@dataclass(frozen=True)
class Step:
    """One launch."""

    name: str
    flop: int  # in matrix products
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    kind: str = "half"  # of the products' factors: `half`, `tf32` or `ieee`

    @property
    def moved(self) -> int:
        """Bytes read and written, each once."""
        return sum(operand.bytes for operand in (*self.reads, *self.writes))


class Ledger(TorchDispatchMode):
    """Stands in for a GPU of an architecture and notes what it was given, and what PyTorch starts."""

    def __init__(self, architecture: str):
        super().__init__()
        self.architecture = architecture
        self.steps: list[Step] = []

    def execute(self, call: Call) -> None:
        moved = cost(call)
        operands = [
            tuple(Operand(call.arguments[name], part.once) for name, part in parts.items())
            for parts in (moved.loads, moved.stores)
        ]
        self.steps.append(Step(call.kernel.fn.__name__, moved.flop, *operands, products_kind(call)))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE:
            flops = flop_registry.get(func.overloadpacket)
            flop = flops(*args, **kwargs, out_val=result) if flops else 0
            self.steps.append(Step(name, flop, *_operands(func, name, args, kwargs, result)))
        return result


def launches_of(run: Callable[[], object], architecture: str) -> list[Step]:
    """The launches that a call makes on an architecture, in order. Its tensors lie on the meta device."""
    with standing_in(Ledger(architecture)) as ledger, ledger:
        run()
    return ledger.steps


def products_kind(call: Call) -> str:
    """What a launch's products multiply: `half`, or float32 as `tf32` or `ieee`."""
    factors = call.arguments.get("w_ptr", call.arguments.get("x_ptr"))
    has_products = "PRECISION" in call.constants
    return call.constants["PRECISION"] if has_products and factors.dtype == torch.float32 else "half"


def _operands(func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> tuple[tuple[Operand, ...], ...]:
    """What an operator reads and what it writes."""
    reads, writes = [], []
    for place, argument in enumerate(func._schema.arguments):
        value = kwargs.get(argument.name, args[place] if place < len(args) else None)
        written = argument.alias_info is not None and argument.alias_info.is_write
        tensors = list(_tensors(value))
        writes += tensors if written else []
        reads += [] if written and (argument.is_out or name in OVERWRITING) else tensors
    inputs = {id(t) for t in writes}
    writes += [t for t in _tensors(result) if id(t) not in inputs]
    return tuple(tuple(Operand(t, distinct(t) * t.element_size()) for t in tensors) for tensors in (reads, writes))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def floor_of(steps: Sequence[Step], chip: Chip, cached: Sequence[int] | None = None) -> float | None:
    """Seconds that launches one after another take at least, each for itself; None where a rate is not known.

    Args:
        steps: the launches.
        chip: where.
        cached: of each launch, bytes that it need not read from memory; none unless given.
    """
    cached = cached or [0] * len(steps)
    floors: list[Floor | None] = [
        chip.floor(step.flop, step.moved - found, step.kind) for step, found in zip(steps, cached, strict=True)
    ]
    return None if None in floors else sum(floor.seconds for floor in floors)


def found_in_cache(steps: Iterable[Step], capacity: int) -> list[int]:
    """Bytes that each launch reads and finds in a cache, which keeps the operands that were used last.

    An operand larger than the cache is not found again, not even in part. Real caches know nothing of operands: this is
    what fits, not what a GPU was seen to keep.
    """
    held: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # storage, from, to -> bytes
    found = []
    for step in steps:
        found.append(sum(min(operand.bytes, _overlap(_place(operand.tensor), held)) for operand in step.reads))
        for operand in (*step.reads, *step.writes):
            place = _place(operand.tensor)
            held[place] = operand.bytes
            held.move_to_end(place)
        while held and sum(held.values()) > capacity:
            held.popitem(last=False)
    return found


def _overlap(place: tuple[int, int, int], held: Iterable[tuple[int, int, int]]) -> int:
    storage, start, end = place
    return sum(max(0, min(end, to) - max(start, begin)) for other, begin, to in held if other == storage)


def _place(t: Tensor) -> tuple[int, int, int]:
    """Storage and range of bytes of a tensor."""
    last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
    start = t.storage_offset()
    return t.untyped_storage()._cdata, start * t.element_size(), (start + last + 1) * t.element_size()
