"""Moving data: between registers, lanes and memories."""

from __future__ import annotations

import numpy as np

from .errors import Divergence, UnknownInstruction
from .operands import Pair, Sink
from .registry import instruction
from .team import WARP
from .values import FLOATS, NATIVE, UNSIGNED, WIDTH, decode, encode, is_packed

SPACES = {"global": "global", "shared": "shared", "shared::cta": "shared", "local": "local"}


def space_of(ins) -> str:
    """The memory that an opcode names, or "" where the address tells."""
    if "shared::cluster" in ins.modifiers:
        raise UnknownInstruction(f"{ins.opcode}: clusters of blocks are not modelled")
    return next((SPACES[m] for m in ins.modifiers if m in SPACES), "")


def listed(operand) -> tuple:
    """A brace list as it is, one register as a list of one."""
    return operand if type(operand) is tuple else (operand,)


@instruction("mov", modifiers="")
def mov(team, ins, mask):
    """Copy; or put the parts of a brace list together, the first in the lowest bits; or take them apart ("mov")."""
    target, source = ins.operands[:2]
    if type(source) is tuple:
        part = WIDTH[ins.kind] // len(source)
        words = [team.each(s, f"b{part}") for s in source]
        whole = np.stack(words, axis=-1).view(UNSIGNED[WIDTH[ins.kind]])[..., 0]
        target.write(team, f"b{WIDTH[ins.kind]}", whole, mask)
    elif type(target) is tuple:
        part = WIDTH[ins.kind] // len(target)
        whole = np.ascontiguousarray(team.each(source, f"b{WIDTH[ins.kind]}"))
        for register, word in zip(target, whole.view(UNSIGNED[part]).reshape(team.size, -1).T, strict=True):
            register.write(team, f"b{part}", word, mask)
    else:
        target.write(team, ins.kind, source.read(team, ins.kind), mask)


@instruction("cvta")
def cvta(team, ins, mask):
    """All memories share one range of addresses here, so that a generic address is the address itself."""
    ins.operands[0].write(team, ins.kind, ins.operands[1].read(team, ins.kind), mask)


@instruction("ld")
def load(team, ins, mask):
    if ins.modifiers[0] == "param":
        bits = team.block.parameters[ins.operands[1].base.name]
        width = WIDTH[ins.kind]
        value = np.array(bits & ((1 << width) - 1), UNSIGNED[width])
        ins.operands[0].write(team, ins.kind, decode(value, ins.kind), mask)
        return
    registers = listed(ins.operands[0])
    width = WIDTH[ins.kind] // 8
    words = team.load(space_of(ins), team.address(ins.operands[1]), width, len(registers), mask)
    if ins.kind not in NATIVE:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    for register, word in zip(registers, np.ascontiguousarray(words.T).view(NATIVE[ins.kind]), strict=True):
        register.write(team, ins.kind, word, mask)


@instruction("st")
def store(team, ins, mask):
    kind = f"b{WIDTH[ins.kind]}"
    words = [team.each(register, kind) for register in listed(ins.operands[1])]
    team.store(space_of(ins), team.address(ins.operands[0]), np.stack(words, axis=1), mask)


@instruction("atom", "red")
def atomic(team, ins, mask):
    """Read-modify-write, one thread after another; `red` returns nothing. Vectors go element by element ("atom")."""
    operands = [None, *ins.operands] if ins.opcode.startswith("red") else ins.operands
    old, location, *sources = operands
    kind = next(m for m in reversed(ins.modifiers) if m in WIDTH)
    sources = [listed(source) for source in sources]
    targets = listed(old) if old is not None else (Sink(),) * len(sources[0])
    for element, target in enumerate(targets):
        addresses = team.address(location) + element * (WIDTH[kind] // 8)
        values = [team.gather((source[element],), f"b{WIDTH[kind]}")[0] for source in sources]
        before = np.zeros(team.size, UNSIGNED[WIDTH[kind]])
        for thread in np.flatnonzero(team.active(mask)):
            alone = np.arange(team.size) == thread
            before[thread] = team.load(space_of(ins), addresses, WIDTH[kind] // 8, 1, alone)[thread, 0]
            after = _modified(ins, kind, before[thread : thread + 1], *(v[thread : thread + 1] for v in values))
            team.store(space_of(ins), addresses, np.broadcast_to(after, (team.size, 1)), alone)
        target.write(team, f"b{WIDTH[kind]}", before, mask)


def _modified(ins, kind: str, old: np.ndarray, value: np.ndarray, swap: np.ndarray | None = None) -> np.ndarray:
    """The bits that an atomic operation leaves in memory."""
    if "exch" in ins.modifiers:
        return value
    if "cas" in ins.modifiers:
        return np.where(old == value, swap, old)
    a, b = decode(old, kind), decode(value, kind)
    functions = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    functions |= {"min": np.fmin, "max": np.fmax} if kind in FLOATS else {"min": np.minimum, "max": np.maximum}
    function = next((functions[m] for m in ins.modifiers if m in functions), None)
    if function is None:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    if is_packed(kind):
        return encode(function(a, b).reshape(-1, 2), kind)
    return encode(function(a, b), kind)


@instruction("prmt", modifiers="")
def permute_bytes(team, ins, mask):
    """Four bytes picked from the eight of `b:a`; a selector's top bit replicates the byte's sign ("prmt")."""
    low, high, selector = (team.each(operand, "u32") for operand in ins.operands[1:])
    source = np.stack([low, high], axis=1).view(np.uint8)
    picks = (selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
    picked = np.take_along_axis(source, (picks & 7).astype(np.int64), axis=1)
    signs = np.where(picked & 0x80, np.uint8(0xFF), np.uint8(0))
    result = np.where(picks & 8, signs, picked).view(np.uint32)[:, 0]
    ins.operands[0].write(team, "b32", result, mask)


def _require_members(team, operand, mask) -> np.ndarray:
    """[threads] member masks of a `.sync` instruction, all of whose living lanes must be executing it."""
    members = team.each(operand, "u32")
    if mask is None:
        return members
    executing = mask
    lanes = (members[:, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1)
    present = np.repeat((executing | ~team.alive).reshape(-1, WARP), WARP, axis=0)
    if (executing & (lanes.astype(bool) & ~present).any(axis=1)).any():
        raise Divergence("the member mask names threads that are not executing this instruction")
    return members


@instruction("shfl", modifiers="sync up down bfly idx")
def shuffle(team, ins, mask):
    """Each lane reads another one's register; `c` holds the clamp and the segment mask ("shfl.sync")."""
    target = ins.operands[0]
    value, step, bounds = (team.each(operand, "u32") for operand in ins.operands[1:4])
    _require_members(team, ins.operands[4], mask)
    lane = team.lane
    step, clamp, segment = (x.astype(np.int64) & 31 for x in (step, bounds, bounds >> np.uint32(8)))
    lowest = lane & segment
    highest = lowest | (clamp & ~segment)
    mode = ins.modifiers[1]
    if mode == "up":
        source = lane - step
        valid = source >= highest
    else:
        source = {"down": lane + step, "bfly": lane ^ step, "idx": lowest | (step & ~segment)}[mode]
        valid = source <= highest
    source = np.where(valid, source, lane)
    result = value[np.arange(team.size) - lane + source]
    targets = target if isinstance(target, Pair) else (target,)
    targets[0].write(team, "b32", result, mask)
    if len(targets) > 1:
        targets[1].write(team, "pred", valid, mask)


@instruction("elect", modifiers="sync")
def elect(team, ins, mask):
    """The lowest member lane is the one that is elected ("elect.sync")."""
    members = _require_members(team, ins.operands[1], mask)
    lanes = (members[:, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1)
    leader = lanes.argmax(axis=1)
    ins.operands[0].first.write(team, "b32", leader, mask)
    ins.operands[0].second.write(team, "pred", team.lane == leader, mask)


@instruction("vote", modifiers="sync any all ballot")
def vote(team, ins, mask):
    """any, all and ballot over the warp ("vote.sync")."""
    team.whole_warps(mask)
    votes = (np.broadcast_to(ins.operands[1].read(team, "pred"), team.size) & team.active(mask)).reshape(-1, WARP)
    mode = ins.modifiers[1]
    if mode == "ballot":
        result = (votes << np.arange(WARP, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    else:
        result = votes.any(axis=1) if mode == "any" else votes.all(axis=1)
    ins.operands[0].write(team, ins.kind, np.repeat(result, WARP), mask)


@instruction("redux", modifiers="sync add min max and or xor")
def reduce_warp(team, ins, mask):
    """An integer reduction over the warp ("redux.sync")."""
    team.whole_warps(mask)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    values = team.each(ins.operands[1], ins.kind).reshape(-1, WARP)
    if ins.kind in FLOATS:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    result = functions[ins.modifiers[1]].reduce(values, axis=1, dtype=values.dtype)
    ins.operands[0].write(team, ins.kind, np.repeat(result, WARP), mask)


def _matrix_lanes(team, ins, count: int, mask) -> np.ndarray:
    """Which threads give row addresses: eight lanes for each 8x8 matrix. All of every warp must take part."""
    team.whole_warps(mask)
    if "m8n8" not in ins.modifiers or ins.kind != "b16":
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    return (team.lane < 8 * count) & team.active(mask)


def _fragment_cells(matrix: int, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """[2, lanes] rows and columns of the two elements that each lane holds of an 8x8 matrix ("ldmatrix")."""
    lane = np.arange(WARP)
    across = 2 * (lane % 4) + np.arange(2)[:, None]
    down = np.broadcast_to(lane // 4, across.shape)
    return (8 * matrix + across, down) if transposed else (8 * matrix + down, across)


@instruction("ldmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrix(team, ins, mask):
    """8x8 matrices of 16-bit elements; lane 8i + r addresses row r of matrix i ("ldmatrix")."""
    registers = listed(ins.operands[0])
    lanes = _matrix_lanes(team, ins, len(registers), mask)
    rows = team.load("shared", team.address(ins.operands[1]), 2, 8, lanes).reshape(-1, WARP, 8)
    for matrix, register in enumerate(registers):
        row, column = _fragment_cells(matrix, "trans" in ins.modifiers)
        halves = rows[:, row, column].astype(np.uint32)
        register.write(team, "b32", (halves[:, 0] | halves[:, 1] << np.uint32(16)).ravel(), mask)


@instruction("stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def store_matrix(team, ins, mask):
    """The inverse of ldmatrix ("stmatrix")."""
    registers = listed(ins.operands[1])
    lanes = _matrix_lanes(team, ins, len(registers), mask)
    rows = np.zeros((team.warps, WARP, 8), np.uint16)
    for matrix, register in enumerate(registers):
        row, column = _fragment_cells(matrix, "trans" in ins.modifiers)
        value = team.each(register, "u32").reshape(-1, WARP)
        rows[:, row, column] = np.stack([value & np.uint32(0xFFFF), value >> np.uint32(16)], axis=1)
    team.store("shared", team.address(ins.operands[0]), rows.reshape(-1, 8), lanes)
