"""A record of every launch that a function makes, of our kernels and of PyTorch's operators, with operations and bytes.

The function runs on tensors without memory. The cost of a kernel's launch is that of `cost`. An operator of PyTorch
counts as one launch that reads each of its tensors once and writes each of its results once; its products count at the
rate of 16-bit factors, and views are free. This favours PyTorch: some of its operators (sorts, gradients of
convolutions, sums) launch more than one kernel and move more bytes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..chips import Chip, Floor, own_kind
from ..device import Call, standing_in
from .cost import cost, distinct

# Operators that launch nothing, although their schemas do not say that they are views.
FREE_OPERATORS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
}
# Operators that do not read the tensor that they write; operators with an `out` argument do not read that, either.
OVERWRITING_OPERATORS = {"copy_", "fill_", "zero_"}


class Operand(NamedTuple):
    """A tensor that a launch reads or writes, and the number of its bytes that move."""

    tensor: Tensor
    bytes: int


@dataclass(frozen=True)
class Launch:
    """One launch."""

    name: str
    flop: int  # in matrix products
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    kind: str = "half"  # of the factors in products, see `chips.factor_kind`

    @property
    def moved(self) -> int:
        """Bytes read and written, each once."""
        return sum(operand.bytes for operand in (*self.reads, *self.writes))


class Ledger(TorchDispatchMode):
    """A stand-in for a GPU of an architecture that records the launches it receives, and those of PyTorch."""

    def __init__(self, architecture: str):
        super().__init__()
        self.architecture = architecture
        self.launches: list[Launch] = []

    def execute(self, call: Call) -> None:
        moved = cost(call)
        operands = [
            tuple(Operand(call.arguments[name], part.once) for name, part in parts.items())
            for parts in (moved.loads, moved.stores)
        ]
        self.launches.append(Launch(call.kernel.fn.__name__, moved.flop, *operands, products_kind(call)))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE_OPERATORS:
            flops = flop_registry.get(func.overloadpacket)
            flop = flops(*args, **kwargs, out_val=result) if flops else 0
            self.launches.append(Launch(name, flop, *_operands(func, name, args, kwargs, result)))
        return result


def launches_of(run: Callable[[], object], architecture: str) -> list[Launch]:
    """The launches that a call makes on an architecture, in order. Its tensors are on the meta device."""
    with standing_in(Ledger(architecture)) as ledger, ledger:
        run()
    return ledger.launches


def products_kind(call: Call) -> str:
    """The kind of factors in a launch's products, see `chips.factor_kind`; `half` for kernels without products."""
    if "PRECISION" not in call.constants:
        return "half"
    factors = call.arguments.get("w_ptr", call.arguments.get("x_ptr"))
    return own_kind(factors.dtype) or call.constants["PRECISION"]


def _operands(func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> tuple[tuple[Operand, ...], ...]:
    """The tensors that an operator reads, and those that it writes."""
    reads, writes = [], []
    for index, argument in enumerate(func._schema.arguments):
        value = kwargs.get(argument.name, args[index] if index < len(args) else None)
        written = argument.alias_info is not None and argument.alias_info.is_write
        tensors = list(_tensors(value))
        writes += tensors if written else []
        reads += [] if written and (argument.is_out or name in OVERWRITING_OPERATORS) else tensors
    inputs = {id(t) for t in writes}
    writes += [t for t in _tensors(result) if id(t) not in inputs]
    return tuple(tuple(Operand(t, distinct(t) * t.element_size()) for t in tensors) for tensors in (reads, writes))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def floor_of(launches: Sequence[Launch], chip: Chip, cached: Sequence[int] | None = None) -> float | None:
    """The sum of the least times of launches, in seconds; None if a rate is not known.

    Args:
        launches: launches that run one after another.
        chip: the chip that they run on.
        cached: for each launch, the bytes that it does not need to read from memory; by default 0.
    """
    cached = cached or [0] * len(launches)
    floors: list[Floor | None] = [
        chip.floor(launch.flop, launch.moved - found, launch.kind)
        for launch, found in zip(launches, cached, strict=True)
    ]
    return None if None in floors else sum(floor.seconds for floor in floors)


def found_in_cache(launches: Iterable[Launch], capacity: int) -> list[int]:
    """For each launch, the bytes that it reads and finds in a cache that keeps the operands that were used last.

    An operand that is larger than the cache is not found again, not even in part. Real caches do not know operands:
    these bytes are what fits, not what a GPU was measured to keep.
    """
    held: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # storage, from, to -> bytes
    found = []
    for launch in launches:
        found.append(
            sum(min(operand.bytes, _overlap(_storage_range(operand.tensor), held)) for operand in launch.reads)
        )
        for operand in (*launch.reads, *launch.writes):
            used = _storage_range(operand.tensor)
            held[used] = operand.bytes
            held.move_to_end(used)
        while held and sum(held.values()) > capacity:
            held.popitem(last=False)
    return found


def _overlap(wanted: tuple[int, int, int], held: Iterable[tuple[int, int, int]]) -> int:
    """The bytes of a storage range that other ranges cover."""
    storage, start, end = wanted
    return sum(max(0, min(end, to) - max(start, begin)) for other, begin, to in held if other == storage)


def _storage_range(t: Tensor) -> tuple[int, int, int]:
    """A tensor's storage, and the offsets of its first byte and after its last byte in it."""
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
    start = t.storage_offset()
    return t.untyped_storage()._cdata, start * t.element_size(), (start + last + 1) * t.element_size()
