"""PTX text to a list of instructions whose operands are already looked up.

Only what Triton's compiler and its inline assembly write is understood: one entry function, registers declared in
classes (`%r<12>`) or by name within a `{ }` scope, labels that belong to their scope, `.local` and `.shared` arrays.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import EmulationError
from .memory import LOCAL_BASE, SHARED_BASE
from .operands import Address, Constant, Immediate, Label, Negated, Pair, Register, Sink, Special
from .registry import find_handler

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^{]*?)?)\{", re.S)
PARAMETER = re.compile(r"\.param\s+\.(\w+)\b(.*?)([\w$]+)\s*$", re.S)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
ARRAY = re.compile(r"\.(local|shared)\s+(?:\.align\s+(\d+)\s+)?\.b8\s+([\w$]+)\[(\d+)\]")
CONSTANT = re.compile(r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[\d+\]\s*=\s*\{([^}]*)\}")
LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
GUARD = re.compile(r"@(!?)([\w%$]+)\s+")
BLANK = re.compile(r"\s*")
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|clock|clock64|globaltimer|smid)\b")


@dataclass(slots=True)
class Instruction:
    """One instruction. `kind` is its last modifier, which for most instructions is the type it works in."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: list
    guard: Register | Negated | None
    line: int
    text: str
    handler: Callable | None
    kind: str
    target: int = -1


@dataclass
class Parameter:
    """A kernel parameter: its PTX type, and whether Triton marked it as a pointer."""

    name: str
    kind: str
    is_pointer: bool


@dataclass
class Kernel:
    """What the parser found: everything about a kernel that does not change between launches."""

    name: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[int, int] = field(default_factory=lambda: {1: 0, 16: 0, 32: 0, 64: 0})
    required_threads: int | None = None
    local_bytes: int = 0
    constants: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Scope:
    """A `{ }` block: the names it declares, and the scope around it."""

    parent: Scope | None = None
    names: dict = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def find(self, table: str, name: str):
        scope = self
        while scope is not None:
            if name in getattr(scope, table):
                return getattr(scope, table)[name]
            scope = scope.parent
        return None


def parse(ptx: str) -> Kernel:
    """The first entry function of a PTX module."""
    return _Parser(ptx).kernel


class _Parser:
    def __init__(self, ptx: str):
        # Comments become blanks of no length, newlines stay: line numbers are those of the text that was given.
        text = re.sub(r"//[^\n]*", "", ptx)
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        entry = ENTRY.search(text)
        if entry is None:
            raise EmulationError("no .entry function in this PTX")
        self.kernel = Kernel(name=entry[1])
        self._parameters(entry[2])
        if required := re.search(r"\.reqntid\s+(\d+)", entry[3]):
            self.kernel.required_threads = int(required[1])
        self.jumps: list[tuple[Instruction, Scope]] = []
        self.kernel.constants = {m[1]: bytes(int(b, 0) for b in m[2].split(",")) for m in CONSTANT.finditer(text)}
        self.scope = Scope(names={name: Immediate(name, SHARED_BASE) for name in _extern_shared(text)})
        self.scope.names |= {name: Constant(name) for name in self.kernel.constants}
        self._body(text, entry.end())
        for instruction, scope in self.jumps:
            name = instruction.operands[0].name
            target = scope.find("labels", name)
            if target is None:
                raise EmulationError(f"line {instruction.line}: no label {name}")
            instruction.target = target

    def _parameters(self, text: str) -> None:
        for declaration in filter(None, map(str.strip, text.split(","))):
            match = PARAMETER.match(declaration)
            if match is None or declaration.endswith("]"):
                raise EmulationError(f"parameter passed by value in memory is not modelled: {declaration}")
            self.kernel.parameters.append(Parameter(match[3], match[1], ".ptr" in match[2]))

    def _body(self, text: str, position: int) -> None:
        """Statements up to the brace that closes the function. At a statement's start, a brace is a scope's."""
        scope = self.scope = Scope(self.scope)
        while True:
            position = BLANK.match(text, position).end()
            first = text[position]
            if first == "{":
                self.scope = Scope(self.scope)
                position += 1
            elif first == "}":
                if self.scope is scope:
                    self._statement("ret", bisect_right(self.line_starts, position))
                    return
                self.scope = self.scope.parent
                position += 1
            elif text.startswith(".loc", position) and text[position + 4].isspace():
                position = text.index("\n", position)
            elif label := LABEL.match(text, position):
                self.scope.labels[label[1]] = len(self.kernel.instructions)
                position = label.end()
            else:
                end = text.index(";", position)
                self._statement(text[position:end], bisect_right(self.line_starts, position))
                position = end + 1

    def _statement(self, text: str, line: int) -> None:
        text = " ".join(text.split())
        if not text:
            return
        if text.startswith("."):
            self._declaration(text)
        else:
            self._instruction(text, line)

    def _declaration(self, text: str) -> None:
        if match := REGISTERS.match(text):
            width = {"pred": 1}.get(match[1]) or int(match[1][1:])
            for name in match[2].split(","):
                stem, _, count = name.strip().rstrip(">").partition("<")
                names = [f"{stem}{i}" for i in range(int(count))] if count else [stem]
                for full in names:
                    self.scope.names[full] = Register(full, width, self.kernel.registers[width])
                    self.kernel.registers[width] += 1
        elif (match := ARRAY.match(text)) and match[1] == "local":
            align = int(match[2] or 1)
            start = -(-self.kernel.local_bytes // align) * align
            self.scope.names[match[3]] = Immediate(match[3], LOCAL_BASE + start)
            self.kernel.local_bytes = start + int(match[4])
        elif not text.startswith(".pragma"):
            raise EmulationError(f"declaration is not modelled: {text}")

    def _instruction(self, text: str, line: int) -> None:
        body, guard = text, None
        if match := GUARD.match(text):
            register = self._operand(match[2])
            guard = Negated(register) if match[1] else register
            body = text[match.end() :]
        opcode, _, rest = body.partition(" ")
        head, *modifiers = opcode.split(".")
        handler, kind = find_handler(head, modifiers), modifiers[-1] if modifiers else ""
        instruction = Instruction(opcode, tuple(modifiers), [], guard, line, text, handler, kind)
        if head == "bra":
            instruction.operands = [Label(rest.strip())]
            self.jumps.append((instruction, self.scope))
        elif instruction.handler is not None:
            instruction.operands = [self._operand(item) for item in split_operands(rest)]
        self.kernel.instructions.append(instruction)

    def _operand(self, text: str):
        if text.startswith("{"):
            return tuple(self._operand(item) for item in split_operands(text.strip("{} ")))
        if text.startswith("["):
            return self._address(text[1:-1].strip())
        if "|" in text:
            return Pair(*(self._operand(part) for part in text.split("|")))
        if text.startswith("!"):
            return Negated(self._operand(text[1:]))
        if text == "_":
            return Sink()
        if (known := self.scope.find("names", text)) is not None:
            return known
        if SPECIAL.match(text):
            return Special(text)
        if NUMBER.match(text):
            return Immediate(text, int(text.rstrip("U"), 0))
        if re.match(r"0[fFdD][0-9a-fA-F]+$", text):
            return Immediate(text, int(text[2:], 16))
        if any(text == parameter.name for parameter in self.kernel.parameters):
            return Label(text)
        raise EmulationError(f"operand is not understood: {text}")

    def _address(self, text: str) -> Address:
        base, *coordinates = split_operands(text)
        stem, _, offset = base.partition("+")
        value = int(offset.strip() or "0", 0)
        return Address(self._operand(stem.strip()), value, self._operand(coordinates[0]) if coordinates else ())


def _extern_shared(text: str) -> list[str]:
    """Names of the dynamic shared memory: `.extern .shared .align 16 .b8 global_smem[];`."""
    return re.findall(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[\]", text)


def split_operands(text: str) -> list[str]:
    """Split at the commas that are not inside brackets or braces."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        if letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
