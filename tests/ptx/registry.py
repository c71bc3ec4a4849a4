"""The table from an opcode's first word to the function that executes it.

A handler is called as `handler(team, instruction, mask)`: `team` holds the threads' registers and memories (team.py),
`instruction` its modifiers and operands (parser.py), and `mask` the threads that execute it, or None for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from .values import WIDTH

_HANDLERS: dict[str, tuple[Callable, frozenset[str] | None]] = {}


def instruction(*names: str, modifiers: str | None = None) -> Callable[[Callable], Callable]:
    """Decorator: the function executes the instructions whose opcode begins with one of `names`.

    Args:
        names: first words of opcodes.
        modifiers: the modifiers that the function honours, besides types, separated by blanks; with any other the
            instruction counts as unknown. None: the function itself looks at them, or none of them matters.
    """

    def register(handler: Callable) -> Callable:
        for name in names:
            if name in _HANDLERS:
                raise ValueError(f"two handlers for {name}")
            _HANDLERS[name] = handler, None if modifiers is None else frozenset(modifiers.split()) | WIDTH.keys()
        return handler

    return register


def find_handler(name: str, modifiers: list[str]) -> Callable | None:
    """The function for an opcode, or None where it is not modelled."""
    handler, honoured = _HANDLERS.get(name, (None, None))
    return handler if honoured is None or honoured.issuperset(modifiers) else None
