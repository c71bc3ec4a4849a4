"""The discriminator against the published code's golden case and a float64 re-statement of its formula."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from cips_fast.train import discriminator as module
from cips_fast.train.discriminator import Discriminator, minibatch_stddev
from cips_fast.train.published import _published_names, load_published_discriminator

from .golden_cases import load_case

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
KERNEL = torch.outer(TAPS, TAPS) / TAPS.sum() ** 2

# Error relative to the largest value, allowed against float64 for each dtype of the layers.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-3}

CASES = {
    "8": ([5, 7], 3, 0),
    "16-coords": ([4, 6, 8], 5, 0),
    "32-first2": ([3, 4, 5, 6], 3, 2),
    # Above BANDED_MAX_SIZE the blur lives in the kernels.
    "256-coords-first1": ([3, 3, 3, 4, 4, 4, 5], 5, 1),
}


def published_state(widths, input_channels, first_layers, seed=0):
    """Random weights and biases under the published names; widths run from the full size to 4."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    state = {"convs.0.0.weight": draw(widths[0], input_channels, 1, 1), "convs.0.1.bias": draw(widths[0])}
    for k in range(1, first_layers + 1):
        state[f"convs.{k}.0.weight"] = draw(widths[0], widths[0], 3, 3)
        state[f"convs.{k}.1.bias"] = draw(widths[0])
    for k, (i, o) in enumerate(pairwise(widths), first_layers + 1):
        state[f"convs.{k}.conv1.0.weight"] = draw(i, i, 3, 3)
        state[f"convs.{k}.conv1.1.bias"] = draw(i)
        state[f"convs.{k}.conv2.0.kernel"] = KERNEL.clone()
        state[f"convs.{k}.conv2.1.weight"] = draw(o, i, 3, 3)
        state[f"convs.{k}.conv2.2.bias"] = draw(o)
        state[f"convs.{k}.skip.0.kernel"] = KERNEL.clone()
        state[f"convs.{k}.skip.1.weight"] = draw(o, i, 1, 1)
    c = widths[-1]
    state |= {"final_conv.0.weight": draw(c, c + 1, 3, 3), "final_conv.1.bias": draw(c)}
    state |= {"final_linear.0.weight": draw(c, 16 * c), "final_linear.0.bias": draw(c)}
    return state | {"final_linear.1.weight": draw(1, c), "final_linear.1.bias": draw(1)}


def conv_ref(x, weight, **options):
    return F.conv2d(x, weight / math.sqrt(weight[0].numel()), **options)


def lrelu_ref(x, bias):
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def blur_ref(x, pad):
    return F.conv2d(F.pad(x, [pad] * 4), KERNEL.to(x).expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def stddev_ref(x, group):
    per_group = len(x) // group
    values = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for n in range(per_group):
        members = x[n::per_group]
        values[n::per_group] = ((members - members.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
    return values.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])


def discriminator_ref(state, x, group):
    """The published formula, step by step, in the dtype of its inputs."""
    x = lrelu_ref(conv_ref(x, state["convs.0.0.weight"]), state["convs.0.1.bias"])
    k = 1
    while f"convs.{k}.0.weight" in state:
        x = lrelu_ref(conv_ref(x, state[f"convs.{k}.0.weight"], padding=1), state[f"convs.{k}.1.bias"])
        k += 1
    while f"convs.{k}.conv1.0.weight" in state:
        block = {key.removeprefix(f"convs.{k}."): v for key, v in state.items() if key.startswith(f"convs.{k}.")}
        y = lrelu_ref(conv_ref(x, block["conv1.0.weight"], padding=1), block["conv1.1.bias"])
        y = lrelu_ref(conv_ref(blur_ref(y, 2), block["conv2.1.weight"], stride=2), block["conv2.2.bias"])
        x = (y + conv_ref(blur_ref(x, 1), block["skip.1.weight"], stride=2)) / math.sqrt(2)
        k += 1
    x = torch.cat([x, stddev_ref(x, group)], 1)
    x = lrelu_ref(conv_ref(x, state["final_conv.0.weight"], padding=1), state["final_conv.1.bias"]).flatten(1)
    weight = state["final_linear.0.weight"]
    x = lrelu_ref(x @ weight.T / math.sqrt(weight.shape[1]), state["final_linear.0.bias"])
    weight = state["final_linear.1.weight"]
    return x @ weight.T / math.sqrt(weight.shape[1]) + state["final_linear.1.bias"]


def relative_error(value, reference):
    return ((value.double().cpu() - reference.cpu()).abs().max() / reference.abs().max()).item()


def images(batch, channels, size, seed=1):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def r1_penalty(model, x):
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return grad.square().sum((1, 2, 3)).mean()


@pytest.fixture(params=["banded", "stretched"])
def both_blurs(request, monkeypatch):
    """Models built in the test blur by band matrices, then by stretched kernels."""
    monkeypatch.setattr(module, "BANDED_MAX_SIZE", 1 << 20 if request.param == "banded" else 0)


@pytest.mark.usefixtures("both_blurs")
def test_golden():
    state, arrays, meta = load_case("discriminator_16")
    model = load_published_discriminator(state)
    assert (model.size, model.input_channels, len(model.first)) == (meta["size"], meta["input_size"], 0)
    assert not model.training
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    logits = model(x)
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert relative_error(logits.detach(), torch.from_numpy(arrays["logits"]).double()) <= 1e-5
    assert relative_error(grad, torch.from_numpy(arrays["grad_x"]).double()) <= 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [3, 4])
def test_logits_and_gradients_match_formula(case, batch):
    widths, input_channels, first_layers = CASES[case]
    state = {
        key: value.requires_grad_() for key, value in published_state(widths, input_channels, first_layers).items()
    }
    model = load_published_discriminator(state).double()
    # The loader rounds to float32: the formula must see the same weights.
    state = {key: value.detach().float().double().requires_grad_() for key, value in state.items()}
    assert model.channels == tuple(widths)
    x = images(batch, input_channels, model.size).requires_grad_()
    logits, expected = model(x), discriminator_ref(state, x, group=batch)
    upstream = torch.randn(batch, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names = _published_names(model)
    own = dict(model.named_parameters())
    got = torch.autograd.grad(logits, [x, *(own[name] for name in names.values())], upstream)
    want = torch.autograd.grad(expected, [x, *(state[name] for name in names)], upstream)
    assert relative_error(logits.detach(), expected.detach()) <= FLOOR[torch.float64]
    for name, a, b in zip(["x", *names], got, want, strict=True):
        assert relative_error(a, b) <= FLOOR[torch.float64], name


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (5, 1), (6, 3), (8, 4)])
def test_stddev_group(batch, group):
    x = images(batch, 3, 4)
    torch.testing.assert_close(minibatch_stddev(x), torch.cat([x, stddev_ref(x, group)], 1), rtol=1e-12, atol=1e-12)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]


@pytest.mark.usefixtures("both_blurs")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_precision(device, dtype):
    """Twice plain PyTorch's error against float64 at most, bfloat16 by autocast; the penalty's gradient is finite."""
    state = published_state([16, 24, 32], 3, 1)
    model = load_published_discriminator(state).to(device)
    state = {key: value.float().double() for key, value in state.items()}
    x = images(4, 3, 16).float()
    expected = discriminator_ref(state, x.double(), group=4)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logits = model(x.to(device))
        plain = discriminator_ref({k: v.float().to(device) for k, v in state.items()}, x.to(device), group=4)
        penalty = r1_penalty(model, x.to(device).requires_grad_())
    penalty.backward()
    assert logits.dtype == torch.float32
    assert relative_error(logits.detach(), expected) <= 2 * relative_error(plain, expected) + FLOOR[dtype]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.usefixtures("both_blurs")
def test_gradgradcheck():
    torch.manual_seed(0)
    model = Discriminator(8, channels=[2, 3], input_channels=2).double()
    x = images(2, 2, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(model, x, fast_mode=True)


@pytest.mark.usefixtures("both_blurs")
def test_r1_parameter_gradient_matches_finite_differences():
    torch.manual_seed(0)
    model = Discriminator(16, channels=[3, 4, 5]).double()
    x = images(4, 3, 16).requires_grad_()
    parameters = list(model.parameters())
    grads = torch.autograd.grad(r1_penalty(model, x), parameters, materialize_grads=True)
    direction = [torch.randn_like(p) for p in parameters]
    eps = 1e-6
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * eps)
        ends.append(r1_penalty(model, x).item())
    along = sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item()
    assert (ends[0] - ends[1]) / (2 * eps) == pytest.approx(along, rel=1e-5)


def test_channels_last_equals_contiguous():
    torch.manual_seed(0)
    model = Discriminator(16, channel_base=128, max_channels=16)
    x = images(4, 3, 16).float()
    expected = model(x)
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last)), expected)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_published_widths():
    with torch.device("meta"):
        model = Discriminator(1024)
    assert model.channels == (32, 64, 128, 256, 512, 512, 512, 512, 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 24}, "size: got 24, must be a power of two, at least 4"),
        ({"size": 8, "channels": [4]}, r"channels: got \[4\], must be 2 positive widths, one for each of \[8, 4\]"),
        ({"size": 8, "channel_base": 4}, "positive widths"),
        ({"size": 8, "input_channels": 0}, "input_channels: got 0, must be at least 1"),
        ({"size": 8, "first_layers": -1}, "first_layers: got -1, must be at least 0"),
    ],
    ids=["size", "count", "width", "inputs", "layers"],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        Discriminator(**options)


@pytest.mark.parametrize("shape", [(2, 3, 8, 4), (2, 5, 8, 8), (3, 8, 8), (0, 3, 8, 8)], ids=str)
def test_refuses_input(shape):
    with pytest.raises(ValueError, match=r"x: got shape .*, must be \[B, 3, 8, 8\]"):
        Discriminator(8, channels=[2, 2])(torch.zeros(shape))


def test_loads_checkpoint_file(tmp_path):
    state = published_state([4, 4], 3, 0)
    torch.save({"g": {}, "d": state}, tmp_path / "checkpoint.pt")
    x = images(2, 3, 8).float()
    loaded = load_published_discriminator(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded(x), load_published_discriminator(state)(x))


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "convs.1.skip.1.weight"), r"convs\.1\.skip\.1\.weight: missing, must be \[4, 4, 1, 1\]"),
        (lambda s: s | {"extra": torch.zeros(2)}, r"extra: unexpected, \[2\]"),
        (lambda s: s | {f"extra{k}": torch.zeros(2) for k in range(9)}, r"extra3: unexpected(.|\n)*and 1 more"),
        (lambda s: s | {"final_conv.1.bias": torch.zeros(9)}, r"final_conv\.1\.bias: got \[9\], must be \[4\]"),
        (lambda s: s | {"final_conv.1.bias": 1.0}, r"final_conv\.1\.bias: missing, must be \[4\]"),
        (lambda s: s | {"convs.1.skip.0.kernel": torch.ones(4, 4)}, r"blur: convs\.1\.skip\.0\.kernel"),
        (lambda s: s | {"convs.0.0.weight": torch.zeros(4)}, r"convs\.0\.0\.weight: \[4\], must be \[O, I, k, k\]"),
        (lambda s: {"linears.0.bias": torch.zeros(1)}, r"convs\.0\.0\.weight: missing"),
        (lambda s: {"d": 3}, "state_dict: got int, must be a dict of tensors"),
        (
            lambda s: s | {"convs.0.0.weight": torch.zeros(60_000, 3, 1, 1)},
            r"convs\.1\.conv1\.0\.weight: got \[4, 4, 3, 3\]",
        ),
        (lambda s: s | {"convs.0.0.weight": torch.zeros(70_000, 3, 1, 1)}, "got 70000 channels, must be at most 65536"),
        (
            lambda s: s | {"convs.0.1.bias": torch.full((4,), torch.nan)},
            r"convs\.0\.1\.bias: 4 of 4 values are not finite",
        ),
    ],
    ids=[
        *("missing", "unexpected", "many", "mismatching", "value", "kernel", "rank", "other-network", "d", "wide"),
        *("wider", "not-finite"),
    ],
)
def test_refuses_state(change, message):
    with pytest.raises(ValueError, match=message):
        load_published_discriminator(change(published_state([4, 4], 3, 0)))
