"""Triton's interpreter in a process of its own: `python -m tests.interpreter` runs launches that it reads from stdin.

The interpreter has to be chosen before Triton is imported, and a process in which it was chosen compiles nothing. So
the process that runs the tests stays without it, and hands launches over.
"""

import importlib
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cips_fast.kernels.chips import INTERPRETER
from cips_fast.kernels.device import Call


class Interpreter:
    """Stands in for a GPU: runs every launch in Triton's interpreter, on CPU tensors."""

    architecture = INTERPRETER

    def __init__(self):
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.interpreter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )

    def execute(self, call: Call) -> None:
        storages: dict[int, torch.UntypedStorage] = {}

        def packed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage
            return (storage.data_ptr(), value.dtype, value.storage_offset(), value.shape, value.stride())

        arguments = {name: packed(value) for name, value in call.arguments.items()}
        memory = {address: _bytes(storage).copy() for address, storage in storages.items()}
        kernel = (call.kernel.fn.__module__, call.kernel.fn.__name__)
        pickle.dump((kernel, call.grid, arguments, dict(call.constants), memory), self._process.stdin)
        self._process.stdin.flush()
        try:
            memory, error = pickle.load(self._process.stdout)
        except EOFError:
            raise RuntimeError(f"{kernel[1]} killed the interpreter, which the next launches will miss") from None
        if error:
            raise RuntimeError(f"{kernel[1]} in the interpreter:\n{error}")
        for address, storage in storages.items():
            _bytes(storage)[:] = memory[address]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _bytes(storage: torch.UntypedStorage) -> np.ndarray:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


def _run(kernel: tuple[str, str], grid: tuple[int, ...], arguments: dict, constants: dict, memory: dict) -> None:
    storages = {address: torch.from_numpy(data).untyped_storage() for address, data in memory.items()}

    def unpacked(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        address, dtype, offset, shape, stride = value
        return torch.tensor([], dtype=dtype).set_(storages[address], offset, shape, stride)

    function = getattr(importlib.import_module(kernel[0]), kernel[1])
    function[grid](**{name: unpacked(value) for name, value in arguments.items()}, **constants)


def serve() -> None:
    """Answer launches until stdin closes."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what a kernel prints is no answer
    while True:
        try:
            kernel, grid, arguments, constants, memory = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        error = None
        try:
            _run(kernel, grid, arguments, constants, memory)
        except Exception:
            error = traceback.format_exc()
        pickle.dump((memory, error), answers)
        answers.flush()


if __name__ == "__main__":
    serve()
