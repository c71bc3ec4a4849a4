"""The figures of a run of the benchmarks, and the file that keeps them."""

import datetime
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .comparison import COMPILE_SECONDS, DEVICE, PUBLISHED, Contender, Group, timed

PATH = Path(__file__).parent.parent / ".benchmarks" / "last_run.json"


class Run:
    """Figures by group and contender, and single figures without contenders."""

    def __init__(self, longest_call: float) -> None:
        self.longest_call = longest_call  # seconds; see --longest-call
        self.deselected = 0  # benchmarks that the command line left out
        self.groups: dict[Group, dict[str, dict[str, Any]]] = {}
        self.left_out: dict[Group, dict[str, float]] = {}
        self.single: list[dict[str, Any]] = []
        self._seconds_per_work: dict[tuple[str, str, str], float] = {}

    def add(self, group: Group, figures: dict[str, dict[str, Any]]) -> None:
        """Add the figures of a group's contenders."""
        self.groups[group] = figures
        for name, one in figures.items():
            self._seconds_per_work[group.op, group.direction, name] = one["seconds"] / _work(group)

    def add_single(self, **figures: Any) -> None:
        """Add figures that have no contenders; `what` names them."""
        self.single.append(figures)

    def expected_seconds(self, group: Group, contender: Contender) -> float:
        """Expected seconds of one call, from the last group of this operation and direction; 0 if there was none."""
        per_work = self._seconds_per_work.get((group.op, group.direction, str(contender)), 0.0)
        return per_work * _work(group) + (COMPILE_SECONDS if contender.formulation == "compiled" else 0.0)

    def leave_out(self, group: Group, contender: Contender, expected: float) -> None:
        """Note a contender that is not measured, and the seconds that one call of it is expected to take."""
        self.left_out.setdefault(group, {})[str(contender)] = expected

    def lines(self) -> Iterator[str]:
        """The figures as text: one block for each group, one line for each contender."""
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
        """Write everything as JSON and return the path."""
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
    """Work of a group in relative units: its pixels, or its batch if it has none."""
    return max(1, group.size**2) * group.batch


def machine() -> dict[str, Any]:
    """The hardware, the versions and the settings that the figures depend on."""
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
    """Bytes read and written in a second while copying a tensor larger than any cache."""
    source = torch.ones(1 << 27, device=DEVICE)
    target = source.clone()
    seconds = min(timed(lambda: target.copy_(source))[0] for _ in range(5))
    return 2 * source.nbytes / seconds


def _processor() -> str:
    """The processor's name, and which of the instruction sets for fast 16-bit products it has."""
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
