"""Plots of a run: time and memory over pixels, and a roofline of rates."""

from pathlib import Path
from typing import Any

COLOURS = {"published": "#8c8c8c", "eager": "#2a78b5", "compiled": "#d98b2b", "ours": "#c2363f"}
DIRECTIONS = ("forward", "forward + backward")


def plot_all(run: dict[str, Any], stem: Path) -> list[str]:
    """Write STEM-time.png, STEM-memory.png and STEM-roofline.png, each only if the run has figures for it.

    Returns:
        The names of the plots that were written: `time`, `memory`, `roofline`.
    """
    import matplotlib

    matplotlib.use("Agg")
    written = {
        "time": over_pixels(run, "seconds", "seconds a call", f"{stem}-time.png"),
        "memory": over_pixels(run, "peak bytes", "peak memory, MiB", f"{stem}-memory.png", 2**-20),
        "roofline": roofline(run, f"{stem}-roofline.png"),
    }
    return [name for name, there in written.items() if there]


def over_pixels(run: dict[str, Any], key: str, label: str, path: str, factor: float = 1.0) -> bool:
    """Plot a figure of the generator, for one image, over its pixels, with a panel for each measured direction.

    Returns:
        Whether there was something to draw; if not, no file is written.
    """
    from matplotlib import pyplot, ticker

    lines = {direction: generator_lines(run, direction, key, factor) for direction in DIRECTIONS}
    single = "MiB beside the image" if key == "peak bytes" else "seconds"
    points = [
        (one["size"] ** 2, one[single]) for one in run["single"] if one["what"] == "sampling" and one["width"] == 512
    ]
    if points:
        lines["forward"]["ours, any size"] = points
    lines = {direction: found for direction, found in lines.items() if found}
    if not lines:
        return False
    figure, panels = pyplot.subplots(
        1, len(lines), figsize=(5 * len(lines), 4), sharey=True, layout="constrained", squeeze=False
    )
    for panel, (direction, found) in zip(panels[0], lines.items(), strict=True):
        for name, points in found.items():
            panel.plot(*zip(*points, strict=True), **style(name), label=name)
        panel.set(xscale="log", yscale="log", xlabel="pixels of an image", title=f"generator, {direction}")
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(which="major", color="#e5e5e5")
        panel.legend(frameon=False, fontsize=8)
    panels[0][0].set_ylabel(label)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def generator_lines(run: dict[str, Any], direction: str, key: str, factor: float) -> dict[str, list]:
    """Points (pixels, figure) of one image, by contender."""
    lines: dict[str, list] = {}
    for group in run["groups"]:
        if (group["op"], group["direction"], group["batch"]) == ("generator", direction, 1):
            for name, one in group["contenders"].items():
                if one[key]:
                    lines.setdefault(name, []).append((group["size"] ** 2, one[key] * factor))
    return lines


def roofline(run: dict[str, Any], path: str) -> bool:
    """Plot rates over operations for each byte that a perfectly fused operation would move.

    Returns:
        Whether there was something to draw; if not, no file is written.
    """
    from matplotlib import pyplot

    groups = [group for group in run["groups"] if group["op"] in ("generator", "mod_fc") and group["contenders"]]
    if not groups:
        return False
    figure, panel = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    bandwidth, roofs = run["machine"]["copied bytes a second"] / 1e9, {}
    for group in groups:
        for name, one in group["contenders"].items():
            kind, precision = name.split()
            x, y = one["flop"] / one["moved bytes"], one["GFLOP/s"]
            marker = {"generator": "o", "mod_fc": "s"}[group["op"]]
            filled = group["direction"] == "forward"
            face = COLOURS[kind] if filled else "none"
            panel.plot(x, y, marker, color=COLOURS[kind], markerfacecolor=face, markersize=5)
            if one["share of GEMM"]:
                roofs[precision] = max(roofs.get(precision, 0), y / one["share of GEMM"])
    low, high = 30, 3e5
    for precision, roof in roofs.items():
        panel.plot([low, roof / bandwidth, high], [low * bandwidth, roof, roof], color="#333333", linewidth=1)
        panel.annotate(
            f"plain products, {precision}: {roof:,.0f} GFLOP/s", (high, roof), ha="right", va="bottom", fontsize=8
        )
    for kind, colour in COLOURS.items():
        panel.plot([], [], "o", color=colour, label=kind)
    panel.plot([], [], "o", color="#333333", label="generator")
    panel.plot([], [], "s", color="#333333", label="one layer")
    panel.plot([], [], "o", color="#333333", markerfacecolor="none", label="with its backward pass")
    panel.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte", ylabel="GFLOP/s")
    panel.set_title("rates, and the best medians of plain products and copies")
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def style(name: str) -> dict[str, Any]:
    """Line style: colour by formulation; dashed for float32, because most people use 16 bits."""
    kind = name.split()[0].strip(",")
    dashes = "--" if "fp32" in name else ":" if "any size" in name else "-"
    return {"color": COLOURS[kind], "linestyle": dashes, "marker": "o", "markersize": 3}
