"""The figures of a run, as a file: what was measured, of whom, where and when."""

import datetime
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .contest import COMPILING, DEVICE, PUBLISHED, Contender, Group, timed

PATH = Path(__file__).parent.parent / ".benchmarks" / "last_run.json"


class Run:
    """Figures by group and contender, and single ones."""

    def __init__(self, longest_call: float) -> None:
        self.longest_call = longest_call  # seconds
        self.deselected = 0  # benchmarks that the command line did not ask for
        self.groups: dict[Group, dict[str, dict[str, Any]]] = {}
        self.left_out: dict[Group, dict[str, float]] = {}
        self.single: list[dict[str, Any]] = []
        self._pace: dict[tuple[str, str, str], float] = {}  # seconds a unit of work

    def add(self, group: Group, figures: dict[str, dict[str, Any]]) -> None:
        """Figures of a group by contender."""
        self.groups[group] = figures
        for name, one in figures.items():
            self._pace[group.op, group.direction, name] = one["seconds"] / _work(group)

    def add_single(self, **figures: Any) -> None:
        """Figures that no contenders are compared by; `what` names them."""
        self.single.append(figures)

    def expected_seconds(self, group: Group, contender: Contender) -> float:
        """Of one call, by what the last smaller group took; 0 if there was none."""
        pace = self._pace.get((group.op, group.direction, str(contender)), 0.0)
        return pace * _work(group) + (COMPILING if contender.formulation == "compiled" else 0.0)

    def leave_out(self, group: Group, contender: Contender, expected: float) -> None:
        """Note who was not measured, and the seconds that one call would have taken."""
        self.left_out.setdefault(group, {})[str(contender)] = expected

    def lines(self) -> Iterator[str]:
        """For people: a block a group, a line a contender."""
        for group, figures in self.groups.items():
            yield str(group)
            published = figures.get(str(PUBLISHED))
            for name, one in figures.items():
                yield f"    {name:15}" + "".join(f"{text:>15}" for text in _texts(one, published))
            for name, seconds in self.left_out.get(group, {}).items():
                yield f"    {name:15} left out, would take about {seconds:.1f} s"
        for one in self.single:
            yield ", ".join(f"{value}" if key == "what" else f"{key} {value:,.4g}" for key, value in one.items())

    def save(self, path: Path = PATH) -> Path:
        """Write everything as JSON."""
        groups = [
            {**group._asdict(), "contenders": figures, "left out": self.left_out.get(group, {})}
            for group, figures in self.groups.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        run = {
            "machine": machine(),
            "longest call": self.longest_call,
            "deselected": self.deselected,
            "groups": groups,
            "single": self.single,
        }
        path.write_text(json.dumps(run, indent=1), encoding="utf-8")
        return path


def _work(group: Group) -> int:
    return max(1, group.size**2) * group.batch


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else _processor(),
        "kind": DEVICE,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda if DEVICE == "cuda" else None,
        "HIP": torch.version.hip if DEVICE == "cuda" else None,
        "copied bytes a second": _copied_bytes_a_second(),
    }


def _copied_bytes_a_second() -> float:
    """Memory traffic of a copy of more than any cache holds."""
    source = torch.ones(1 << 27, device=DEVICE)
    target = source.clone()
    seconds = min(timed(lambda: target.copy_(source))[0] for _ in range(5))
    return 2 * source.nbytes / seconds


def _processor() -> str:
    """Its name, and which of the instructions it has that decide how fast it multiplies 16-bit factors."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    return f"{name.group(1) if name else platform.processor() or platform.machine()} ({', '.join(flags) or 'no AVX2'})"


def _texts(one: dict[str, Any], published: dict[str, Any] | None) -> list[str]:
    times = f"{published['seconds'] / one['seconds']:.2f} ×" if published else ""
    rate = f"{one['GFLOP/s']:.0f} GFLOP/s" if one["GFLOP/s"] else ""
    share = f"{one['share of GEMM']:.2f} of GEMM" if one["share of GEMM"] else ""
    peak = "" if one["peak bytes"] is None else f"{one['peak bytes'] / 2**20:,.0f} MiB"
    return [f"{one['seconds'] * 1e3:,.2f} ms", times, rate, share, peak]
