"""The published generators' formulas stated again, in float64, on state dicts in their own layout.

An oracle for the cases of which no recorded output is at hand. It shares nothing with the package: images are
[B, C, H, W], pixels go through 1 × 1 convolutions, the embedding through `grid_sample`.
"""

import math

import torch
import torch.nn.functional as F

WIDTHS = {"skip": (512, 512, 512, 512, 512, 256, 128, 64, 32), "res": (512, 512, 512, 512, 512, 256, 128, 128, 64)}


def draw_state(variant, size, activation, seed, hidden=512, style=512, scale_widths=1.0, mapping=8):
    """A random state dict with every name and shape of the published class."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng)

    blocks = int(math.log2(size)) - 1
    widths = [max(2, int(width * scale_widths)) for width in WIDTHS[variant][:blocks]]
    state = {
        "lff.ffm.conv.weight": draw(hidden, 2, 1, 1) * 2,
        "lff.ffm.conv.bias": draw(hidden),
        "emb.input": draw(1, hidden, size, size),
    }

    def modulated(name, inputs, outputs):
        state[f"{name}.weight"] = draw(1, outputs, inputs, 1, 1)
        state[f"{name}.modulation.weight"] = draw(inputs, style)
        state[f"{name}.modulation.bias"] = draw(inputs) * 0.1 + 1

    def layer(name, inputs, outputs):
        modulated(f"{name}.conv", inputs, outputs)
        state[f"{name}.noise.weight"] = torch.zeros(1)
        bias = draw(outputs) * 0.1
        shaped = {"activate.bias": bias} if activation == "lrelu" else {"bias": bias.view(1, -1, 1, 1)}
        state.update({f"{name}.{key}": value for key, value in shaped.items()})

    def colours(name, inputs):
        modulated(f"{name}.conv", inputs, 3)
        state[f"{name}.bias"] = draw(1, 3, 1, 1) * 0.1

    layer("conv1" if variant == "skip" else "linears.0", 2 * hidden, widths[0])
    before = widths[0]
    for block, width in enumerate(widths):
        if variant == "skip":
            layer(f"linears.{2 * block}", before, width)
            layer(f"linears.{2 * block + 1}", width, width)
            colours(f"to_rgbs.{block}", width)
        else:
            layer(f"linears.{block + 1}.conv1", before, width)
            layer(f"linears.{block + 1}.conv2", width, width)
            if before != width:
                state[f"linears.{block + 1}.skip.0.weight"] = draw(width, before, 1, 1)
        before = width
    if variant == "res":
        colours("to_rgb_last", before)
    for index in range(1, mapping + 1):
        state |= {f"style.{index}.weight": draw(style, style) * 100, f"style.{index}.bias": draw(style) * 10}
    return state


def images(state, variant, activation, z, coords, size, training=False):
    """What the published forward pass gives: z [B, S], coords [B, 2, H, W] -> [B, 3, H, W], float64."""
    p = {name: tensor.double() for name, tensor in state.items()}
    w = style_latents(p, z.double())
    coords = coords.double()
    waves = torch.sin(F.conv2d(coords, p["lff.ffm.conv.weight"], p["lff.ffm.conv.bias"]))
    cells = p["emb.input"].expand(len(coords), -1, -1, -1)
    if not (training and coords.shape[2] == coords.shape[3] == size):
        where = coords.permute(0, 2, 3, 1)
        cells = F.grid_sample(cells, where, mode="bilinear", padding_mode="border", align_corners=False)
    x = torch.cat([waves, cells], 1)

    def modulated(name, x, demodulate):
        weight = p[f"{name}.weight"][0, :, :, 0, 0]
        s = w @ p[f"{name}.modulation.weight"].T / math.sqrt(w.shape[1]) + p[f"{name}.modulation.bias"]
        weight = weight[None] * s[:, None] / math.sqrt(weight.shape[1])
        if demodulate:
            weight = weight / (weight.square().sum(2, keepdim=True) + 1e-8).sqrt()
        return torch.einsum("boi,bihw->bohw", weight, x)

    def layer(name, x):
        y = modulated(f"{name}.conv", x, True)
        if activation == "lrelu":
            return F.leaky_relu(y + p[f"{name}.activate.bias"].view(1, -1, 1, 1), 0.2) * math.sqrt(2)
        y = y + p[f"{name}.bias"]
        if activation == "sin":
            return y.sin()
        return torch.cat([F.leaky_relu(y[:, ::2], 0.2), y[:, 1::2].sin()], 1) * math.sqrt(2)

    blocks = int(math.log2(size)) - 1
    if variant == "skip":
        x, rgb = layer("conv1", x), 0
        for block in range(blocks):
            x = layer(f"linears.{2 * block + 1}", layer(f"linears.{2 * block}", x))
            rgb = rgb + modulated(f"to_rgbs.{block}.conv", x, False) + p[f"to_rgbs.{block}.bias"]
        return rgb
    x = layer("linears.0", x)
    for block in range(1, blocks + 1):
        out = layer(f"linears.{block}.conv2", layer(f"linears.{block}.conv1", x))
        if f"linears.{block}.skip.0.weight" in p:
            shortcut = p[f"linears.{block}.skip.0.weight"]
            x = F.conv2d(x, shortcut / math.sqrt(shortcut.shape[1]))
        x = (out + x) / math.sqrt(2)
    return modulated("to_rgb_last.conv", x, False) + p["to_rgb_last.bias"]


def style_latents(p, z):
    """The published mapping network: pixel norm, then equalised layers at a hundredth of the rate."""
    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for index in range(1, sum(name.startswith("style.") for name in p) // 2 + 1):
        weight, bias = p[f"style.{index}.weight"], p[f"style.{index}.bias"]
        w = F.leaky_relu(w @ weight.T * (0.01 / math.sqrt(w.shape[1])) + bias * 0.01, 0.2) * math.sqrt(2)
    return w
