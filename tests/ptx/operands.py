"""Operands: what an instruction's arguments are, and how to read and write them for the threads of a team.

Every operand reads as an array of one value a thread, or as a single value that broadcasts. Kinds are PTX types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .errors import EmulationError, UnknownInstruction
from .values import NATIVE, SIGNED, UNSIGNED, WIDTH, decode, encode, is_signed


@dataclass(frozen=True)
class Register:
    """Row `index` in the team's bank of registers that are `width` bits wide."""

    name: str
    width: int
    index: int

    def read(self, team, kind: str) -> np.ndarray:
        bank = team.banks[self.width].get(kind)
        if bank is not None:
            return bank[self.index]
        bits = team.bits[self.width][self.index]
        if WIDTH[kind] < self.width:
            bits = bits.astype(UNSIGNED[WIDTH[kind]])
        elif WIDTH[kind] > self.width:
            raise EmulationError(f"{self.name} has {self.width} bits and cannot be read as {kind}")
        return decode(bits, kind)

    def write(self, team, kind: str, values, mask) -> None:
        bank = team.banks[self.width].get(kind)
        if bank is None:
            bank = team.bits[self.width]
            values = self._extend(encode(values, kind), kind)
        if mask is None:
            bank[self.index] = values
        else:
            np.copyto(bank[self.index], values, where=mask, casting="unsafe")

    def _extend(self, bits: np.ndarray, kind: str) -> np.ndarray:
        """A value narrower than the register fills it with its sign or with zeros ("Operand Size Exceeding ...")."""
        if WIDTH[kind] > self.width:
            raise EmulationError(f"{self.name} has {self.width} bits and cannot hold {kind}")
        if is_signed(kind):
            return bits.view(NATIVE[kind]).astype(SIGNED[self.width]).view(UNSIGNED[self.width])
        return bits.astype(UNSIGNED[self.width])


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float. Symbols such as `global_smem` are immediates too."""

    text: str
    bits: int
    cache: dict = field(default_factory=dict, compare=False, repr=False)

    def read(self, team, kind: str) -> np.ndarray:
        if kind not in self.cache:
            if kind == "pred":
                value = np.array(self.bits != 0)
            else:
                width = WIDTH[kind]
                value = decode(np.array(self.bits & ((1 << width) - 1), UNSIGNED[width]), kind)
            self.cache[kind] = value
        return self.cache[kind]


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x ("Special Registers")."""

    name: str

    def read(self, team, kind: str) -> np.ndarray:
        values = team.special.get(self.name)
        if values is None:
            raise UnknownInstruction(f"special register {self.name} is not modelled")
        return decode(values.astype(UNSIGNED[WIDTH[kind]]), kind)


@dataclass(frozen=True)
class Constant:
    """The address of an initialised array of the module, which a launch places in global memory."""

    name: str

    def read(self, team, kind: str) -> np.ndarray:
        return np.array(team.block.constants[self.name], UNSIGNED[WIDTH[kind]])


class Sink:
    """The operand `_`: results written to it are dropped."""

    def write(self, team, kind: str, values, mask) -> None:
        pass


@dataclass(frozen=True)
class Negated:
    """A predicate that is read as its opposite."""

    register: Register

    def read(self, team, kind: str) -> np.ndarray:
        return ~self.register.read(team, "pred")


class Address(NamedTuple):
    """`[base + offset]`; for tensor copies `[base, {coordinates}]`. For parameters, `base` is the parameter's name."""

    base: object
    offset: int = 0
    coordinates: tuple = ()


class Pair(NamedTuple):
    """`first|second`, the two results of instructions such as shfl and setp."""

    first: object
    second: object


class Label(NamedTuple):
    """The name of a place in the code."""

    name: str
