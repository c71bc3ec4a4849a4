"""Counts of instructions in compiled code, of all of it and of the innermost loop that multiplies, by kind.

It reads NVIDIA's machine code as nvdisasm prints it, and AMD's assembly as the compiler writes it.
"""

import re
from collections import Counter

LABEL = re.compile(r"^(\.L\w+):")
NVIDIA = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
AMD = re.compile(r"^\s+([a-z]\w+)")
BRANCH = re.compile(r"\bBRA.*`\((\.L\w+)\)|\bs_c?branch\w*\s+(\.L\w+)")

# An opcode is of the first kind whose pattern it matches. If it matches none, it is arithmetic, which includes
# addresses, comparisons and conversions.
KINDS = {
    "products": r"[HIQO]MMA|[HQ]GMMA|UTC\w*MMA|v_(mfma|wmma|smfmac)",
    "waits": r"BAR\b|BARRIER|DEPBAR|LDGDEPBAR|ARRIVES|WARP|SYNCS|BSYNC|BSSY|MEMBAR|FENCE|UTCBAR|NANOSLEEP"
    r"|s_(wait|barrier|delay|nop|sleep)|buffer_(gl|inv|wb)",
    "global": r"LDG|STG|UTMA|UBLK|ATOMG|RED[G.]|LD\.|ST\.|(buffer|global|flat)_(load|store|atomic)",
    "shared": r"LDS|STS|ATOMS|LDTM|STTM|ds_",
    "other": r"BRA|UTCATOM|UVIRT|EXIT|CALL|RET|NOP|BPT|U?MOV|IMAD\.MOV|CS2R|S2U?R|R2U?[RP]|P2R|LDC|ULDC|VOTE|ELECT|SHFL"
    r"|s_(c?branch|endpgm|mov|load|clause|sendmsg|set)|v_(mov|readfirstlane|readlane)",
}
COLUMNS = ("products", "global", "shared", "arithmetic", "waits", "other")


def opcodes(code: str) -> Counter:
    """The number of instructions by opcode with its modifiers."""
    return Counter(_instructions(code))


def multiplying_loop(code: str) -> Counter:
    """Instructions of the innermost loop that multiplies matrices; of several such loops, the one with most products.

    A loop is the code between a label and a branch back to it. The result is empty if no loop multiplies.
    """
    found: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
            continue
        found += _instructions(line)
        if (branch := BRANCH.search(line)) and (branch[1] or branch[2]) in labels:
            loops.append((labels[branch[1] or branch[2]], len(found)))
    products = {loop: sum(kind(opcode) == "products" for opcode in found[slice(*loop)]) for loop in loops}
    multiplying = [loop for loop in loops if products[loop]]
    innermost = [loop for loop in multiplying if not any(_inside(other, loop) for other in multiplying)]
    return Counter(found[slice(*max(innermost, key=products.__getitem__))]) if innermost else Counter()


def kind(opcode: str) -> str:
    """The kind of an opcode, one of COLUMNS."""
    return next((name for name, pattern in KINDS.items() if re.match(pattern, opcode)), "arithmetic")


def instruction_counts(instructions: Counter) -> dict[str, int]:
    """The number of instructions by kind, in the order of COLUMNS."""
    kinds = Counter()
    for opcode, times in instructions.items():
        kinds[kind(opcode)] += times
    return {name: kinds[name] for name in COLUMNS}


def _instructions(code: str) -> list[str]:
    found = (NVIDIA.match(line) or AMD.match(line) for line in code.splitlines())
    return [match[1] for match in found if match]


def _inside(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop != other and other[0] <= loop[0] and loop[1] <= other[1]
