"""What can go wrong in an emulated kernel, one class each, so that a test can ask for exactly one fault."""

from __future__ import annotations


class EmulationError(Exception):
    """A kernel did something that is wrong or not modelled; `context` says at which instruction and where."""

    context = ""

    def __str__(self) -> str:
        return super().__str__() + self.context


class BadArguments(EmulationError):
    """A launch does not fit the kernel's parameters or its required number of threads."""


class MemoryFault(EmulationError):
    """An access that the hardware would refuse, or silently get wrong. `lanes` index the accesses that failed."""

    def __init__(self, message: str, lanes=()):
        super().__init__(message)
        self.lanes = lanes


class OutOfBounds(MemoryFault):
    """An access outside every allocation."""


class Misaligned(MemoryFault):
    """An address that is no multiple of the access's size."""


class UnknownInstruction(EmulationError):
    """An instruction, or a modifier of one, that is not modelled."""


class Divergence(EmulationError):
    """A warp-wide instruction that not all threads of the warp execute together."""


class BarrierMisuse(EmulationError):
    """A barrier that is used uninitialised, with different thread counts, or destroyed while it is in use."""


class Deadlock(EmulationError):
    """No thread can go on."""


class StepLimit(EmulationError):
    """A loop that does not end."""
