"""python -m cips_fast: bad values are one line with an option's name, and nothing else ends with a traceback."""

import ast
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from cips_fast import CIPSGenerator, checkpoint, commands, inversion, render
from cips_fast.__main__ import command_names, main, parser_of_all
from cips_fast.checks import ArgumentError, argument_os_error
from cips_fast.command_line import OptionError, is_out_of_memory, named_after_options
from cips_fast.commands import _options, _output, interpolate
from cips_fast.files import pictures
from cips_fast.files.movie import Movie
from cips_fast.files.untrusted import CheckpointError

from .pictures import ROOT, read

NOT_FINITE = "error: colours are not finite: the network has weights that are not finite, or truncation is too large"
LONG = "x" * 300
TOO_LARGE = str(2**64)


def small_generator():
    torch.manual_seed(0)
    return CIPSGenerator(size=8, width=8, style_features=8, mapping_layers=2, embedding_size=4).eval()


@pytest.fixture(scope="module")
def generator():
    return small_generator()


@pytest.fixture
def place(saved, tmp_path, monkeypatch):
    """The current folder: a checkpoint tiny.safetensors, a picture, a file, and a link to itself."""
    monkeypatch.chdir(tmp_path)
    pictures.save("picture.png", np.full((8, 8, 3), 99, np.uint8))
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def refused(capsys, *arguments):
    """The one line that a command answers with, and the option that it names."""
    before = sorted(os.listdir())
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert sorted(os.listdir()) == before
    return line


def actions_of(command):
    subparsers = next(action for action in parser_of_all()._actions if action.choices)
    return subparsers.choices[command]._actions


def options_of(command):
    return {name for action in actions_of(command) for name in action.option_strings or [action.dest]}


SAMPLE, FOVEATE, INTERPOLATE, PANORAMA, PROJECT = (
    (command, "tiny.safetensors") for command in ("sample", "foveate", "interpolate", "panorama", "project")
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SAMPLE, "--truncation", "nan"), "--truncation: got nan, must be at least -100 and at most 100"),
        ((*FOVEATE, "--truncation", "inf"), "--truncation: got inf, must be at least -100"),
        ((*INTERPOLATE, "--truncation", "-inf"), "--truncation: got -inf, must be at least -100"),
        ((*PANORAMA, "--truncation", "1e38"), "--truncation: got 1e+38, must be at least -100"),
        ((*SAMPLE, "--truncation", "much"), "--truncation: got 'much', must be a number; it must be at least -100"),
        ((*SAMPLE, "--seed", TOO_LARGE), f"--seeds: got '{TOO_LARGE}', must be from 0 to 18446744073709551615"),
        ((*INTERPOLATE, "--mix", f"0,{TOO_LARGE}"), f"--mix: got '0,{TOO_LARGE}', must be from 0 to"),
        ((*SAMPLE, "--seeds", "0-99999999999"), "--seeds: got '0-99999999999', must be at most 1000000 seeds"),
        ((*SAMPLE, "--seeds", "9" * 5000), "(5000 characters), must be from 0 to"),
        ((*SAMPLE, "--seeds", "-3"), "--seeds: got '-3', must be numbers and ranges"),
        ((*SAMPLE, "--size", "9" * 20), "must be WIDTHxHEIGHT, both at most 16777216"),
        ((*SAMPLE, "--size", "3000000", "--seed", "0", "--out", "x.tif"), "--size: got 3000000x3000000, which makes"),
        ((*SAMPLE, "--size", "9000", "--out", "x.tif"), "--size: got 972000000 pixels in one TIFF"),
        ((*SAMPLE, "--columns", "65536", "--size", "99"), "--columns: got 642318336 pixels in one PNG"),
        ((*SAMPLE, "--columns", "9" * 12), "--columns: got 999999999999, must be at least 1 and at most 65536"),
        ((*SAMPLE, "--columns", "few"), "--columns: got 'few', must be a whole number; it must be at least 1"),
        ((*SAMPLE, "--region", "-inf,0,1,1"), "--region: got '-inf,0,1,1', must be 4 numbers"),
        ((*SAMPLE, "--region", "-1e300,0,1,1"), "from -1e+06 to 1e+06"),
        ((*SAMPLE, "--device", "meta"), "--device: got 'meta', must be a device that computes"),
        ((*SAMPLE, "--embedding", "cubic"), "--embedding: got 'cubic', must be one of bilinear, bicubic"),
        ((*SAMPLE, "--region"), "--region: expected one argument (see python -m cips_fast sample --help)"),
        ((*SAMPLE, "--nonsense"), "unrecognized arguments: --nonsense"),
        (("sample",), "the following arguments are required: source"),
        (("paint",), "COMMAND: got 'paint', must be one of convert, foveate"),
        ((*FOVEATE, "--budget", "nan"), "--budget: got nan, must be more than 0 and at most 1"),
        ((*FOVEATE, "--falloff", "inf"), "--falloff: got inf, must be more than 0"),
        ((*FOVEATE, "--gaze", "1e300,0"), "--gaze: got (1e+300, 0.0), must be two numbers from -1 to 1"),
        ((*FOVEATE, "--size", "100000"), "--size: got 10000000000 pixels"),
        ((*INTERPOLATE, "--fps", "1e300"), "--fps: got 1e+300, must be a positive number, from 0.01 to 240"),
        ((*INTERPOLATE, "--seconds", "1e300"), "--seconds: got 1e+300, must be a positive number"),
        (
            (*INTERPOLATE, "--seconds", "1e5"),
            "100000.0, which is more than 100000 frames at 24 frames per second",
        ),
        ((*INTERPOLATE, "--zoom", "1e308"), "--zoom: got 1e+308, must be a positive number, from 1e-06 to 1e+09"),
        ((*INTERPOLATE, "--zoom", "2", "--pan", "1,0"), "--pan: not allowed with --zoom"),
        ((*INTERPOLATE, "--pan", "1e300,0"), "--pan: got '1e300,0', must be 2 numbers"),
        ((*INTERPOLATE, "--out", "x.mp4", "--size", "9"), "--size: height: got 9, must be 1 to 16384 and even"),
        ((*INTERPOLATE, "--mix", "0-999999", "--seeds", "0-999"), "--size: got 100100100100 pixels"),
        ((*INTERPOLATE, "--mix", "0", "--crossover", "9" * 20), "--crossover: got 99999999999999999999, must be"),
        ((*PANORAMA, "--seed", "4"), "--seeds: got 1, must be an even number of seeds, such as 4,5"),
        ((*PROJECT, "picture.png", "--seed", TOO_LARGE), f"--seed: got {TOO_LARGE}, must be at least 0 and at most"),
        ((*PROJECT, "picture.png", "--steps", "0"), "--steps: got 0, must be at least 1 and at most 10000000"),
        ((*PROJECT, "picture.png", "--size", "99999"), "--size: got 99999x99999, must be at most 67108864 pixels"),
        ((*PROJECT, "picture.png", "--prior", "inf"), "--prior: got inf, must be at least 0"),
        ((*PROJECT, "picture.png", "--known", "nan"), "--known: got nan, must be more than 0"),
        ((*PROJECT, "picture.png", "--learning-rate", "1e30", "--out", "a/b"), "--learning-rate: the loss is"),
        (
            (*PROJECT, "picture.png", "--perceptual", "1", "--out", "a/b"),
            "--size: got 8x8 pixels, must be at least 32x32",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_bad_value_is_one_line_and_leaves_nothing(place, capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("command", "option", "ending"),
    [
        *((SAMPLE, "--out", ending) for ending in ("", ".png", ".tif")),
        *((FOVEATE, option, ".png") for option in ("--out", "--progressive")),
        *((INTERPOLATE, "--out", ending) for ending in (".gif", ".mp4")),
        ((*INTERPOLATE, "--mix", "1"), "--out", ".png"),
        (PANORAMA, "--out", ".png"),
        ((*PROJECT, "picture.png"), "--out", ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("bad", [LONG, f"{LONG}/x", "loop/x", "file/x", "a\0b", "/dev/full/x", "{folder}"])
def test_a_path_that_cannot_be_written_is_one_line(place, capsys, command, option, ending, bad):
    if bad == "{folder}":
        if not ending or option != "--out":
            pytest.skip("a folder is what is asked for")
        (place / f"folder{ending}").mkdir(exist_ok=True)
        bad = "folder"
    line = refused(capsys, *command, option, bad + ending)
    assert line.startswith(f"error: {option}: got ")
    assert "which cannot be written (" in line


@pytest.mark.parametrize("where", ["layers.1.weight", "mapping.layers.0.weight"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "--out", "new/x.png"),
        ("sample", "--seed", "0", "--out", "new/x.tif"),
        ("sample", "--out", "new"),
        ("foveate", "--out", "new/x.png", "--progressive", "passes"),
        ("interpolate", "--seconds", "0.1", "--out", "new/x.gif"),
        ("interpolate", "--seconds", "0.1", "--kind", "spherical", "--out", "new/x.webp"),
        ("interpolate", "--mix", "1", "--out", "new/x.png"),
        ("panorama", "--out", "new/x.png"),
        ("project", "picture.png", "--out", "new"),
    ],
    ids=" ".join,
)
def test_a_network_that_is_not_finite_is_named_and_makes_no_picture(
    generator, place, capsys, monkeypatch, where, arguments
):
    broken = small_generator().requires_grad_(False)
    parameters = dict(broken.named_parameters())
    next(parameter for name, parameter in parameters.items() if name.startswith(where.split(".")[0])).fill_(math.nan)
    command, *rest = arguments
    for name in (f"cips_fast.commands.{command}.open_generator", "cips_fast.commands._options.open_generator"):
        monkeypatch.setattr(name, lambda args: broken, raising=False)
    assert refused(capsys, command, "none", *rest) == NOT_FINITE


def test_a_latent_that_is_not_finite_is_named(place, capsys):
    checkpoint.write_tensors("w.safetensors", {"w": torch.full((1, 8), math.inf)}, {})
    line = refused(capsys, *SAMPLE, "--latents", "w.safetensors")
    assert line.startswith("error: --latents: got ")


def library_names():
    """Names of arguments that errors of the library are about."""
    names = set()
    for path in (ROOT / "cips_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ArgumentError":
                names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return names


def test_no_error_of_an_argument_is_a_mere_text():
    """A `ValueError("name: got ...")` would reach users of the commands with the library's name."""
    for path in [*(ROOT / "cips_fast").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ValueError" and node.args:
                assert not re.match(r"f?['\"][{}A-Za-z_, ]+: got ", ast.unparse(node.args[0])), path


@pytest.mark.parametrize("command", command_names())
def test_errors_name_options_that_the_command_has(command):
    names, options = library_names(), options_of(command)
    assert {"keys", "region", "half_resolution", "end", "w", "path"} <= names
    names |= {"start", "truncation"}
    positional = [action.dest for action in actions_of(command) if not action.option_strings]
    args = parser_of_all().parse_args([command, *positional, *(["--out", "x"] if command == "convert" else [])])
    for name in sorted(names):
        with pytest.raises(OptionError) as raised, _options.options_named(args):
            raise ArgumentError(name, "got 1")
        shown = str(raised.value).removesuffix(": got 1")
        assert shown.removesuffix(f": {name}") in options or shown == name, name
    shown = _options.option_names(args)
    if "--seeds" in options:
        assert shown["keys"] == "--seeds"
        assert shown["height"] == "--size: height"
    if "--falloff" in options:
        assert shown["half_resolution"] == "--falloff"


def test_an_error_about_an_argument_is_an_object():
    error = ArgumentError("half_resolution", "got 0, must be above 0")
    options = {"half_resolution": "--falloff"}
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert (same.name, same.reason) == ("half_resolution", "got 0, must be above 0")
        assert str(same) == "half_resolution: got 0, must be above 0"
    with pytest.raises(OptionError, match=r"^--falloff: got 0, must be above 0$"), named_after_options(options):
        raise error
    with pytest.raises(OptionError, match=r"^half_resolution: got 0"), named_after_options({}):
        raise error
    damaged = pickle.loads(pickle.dumps(CheckpointError("a.pt", "is empty")))
    assert (damaged.name, damaged.fault, str(damaged)) == ("checkpoint", "is empty", "checkpoint: 'a.pt' is empty")
    missing = argument_os_error(FileNotFoundError, "source", "got 'a'")
    assert (str(missing), missing.name, missing.reason) == ("source: got 'a'", "source", "got 'a'")


@pytest.mark.parametrize("command", command_names())
def test_options_in_messages_exist(command):
    tree = ast.parse((ROOT / "cips_fast" / "commands" / f"{command}.py").read_text("utf-8"))
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    texts = " ".join(call for call in calls if call.startswith(("OptionError", "complain")))
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", texts)) <= options_of(command)


@pytest.mark.parametrize("command", command_names())
def test_every_number_has_a_range(command):
    if command == "convert":
        pytest.skip("its only number is checked by the exporter")
    unbounded = {action.dest for action in actions_of(command) if action.type in (int, float)}
    assert unbounded == (set(interpolate.RANGES) if command == "interpolate" else set())


def test_help_is_ascii(capsys):
    for name in [[], *([name] for name in command_names())]:
        with pytest.raises(SystemExit, match="0"):
            main([*name, "--help"])
        assert capsys.readouterr().out.isascii()


def test_without_a_command_all_are_listed(capsys):
    assert main([]) == 2
    listed = capsys.readouterr().err
    assert all(f"    {name}" in listed for name in command_names())


def test_a_value_may_begin_with_a_minus(generator, place):
    assert main([*SAMPLE, "--seed", "0", "--region", "-.5,-1,0.5,0", "--truncation", "-0.5", "--out", "a.png"]) == 0
    assert main([*SAMPLE, "--seed", "0", "--region=-.5,-1,0.5,0", "--truncation=-0.5", "--out", "b.png"]) == 0
    assert np.array_equal(read("a.png"), read("b.png"))


@pytest.mark.parametrize("options", [(), ("--zoom", "2"), ("--pan", "0.01,0"), ("--mix", "5")], ids=" ".join)
def test_a_close_region_has_the_same_embedding_in_every_command(place, monkeypatch, options):
    """A camera that stands still, or begins there, sees what `sample` renders."""
    view = ["--region=0.3,0.3,0.4,0.4", "--embedding", "bicubic", "--size", "64"]
    finer, resample = [], render.with_bicubic_embedding
    for module in (_options, render):
        monkeypatch.setattr(
            module, "with_bicubic_embedding", lambda g, n: (finer.append(n), resample(g, n))[1], raising=False
        )
    assert main([*SAMPLE, "--seed", "3", *view, "--out", "a.png"]) == 0
    seeds = ["--seeds", "3,4"] if not options else ["--seed", "3"]
    out = "b.png" if "--mix" in options else "b.gif"
    assert main([*INTERPOLATE, *seeds, *view, *options, "--seconds", "0.1", "--out", out]) == 0
    assert finer[0] == 64 * 20 / 4
    assert finer[1] == finer[0] * (2 if "--zoom" in options else 1)


def test_json_shows_a_name_as_it_is_or_as_an_escape(capsys, monkeypatch):
    record = {"file": "é.png", "seam": math.nan}
    _output.say(record)
    assert capsys.readouterr().out == '{"file": "é.png", "seam": null}\n'
    for name, encoding in (("é²", "ascii"), ("²", "gbk"), ("\udcff", "utf-8")):
        with open(os.devnull, "w", encoding=encoding) as stream:
            lines = []
            monkeypatch.setattr(_output, "put", lines.append)
            monkeypatch.setattr(sys, "stdout", stream)
            _output.say({"file": name})
        assert lines[0].isascii()
        assert json.loads(lines[0]) == {"file": name}


def test_warnings_are_shown_in_one_line_and_their_printing_is_restored(place, capsys):
    before = warnings.showwarning
    assert main([*SAMPLE, "--seed", "0", "--region", "-2,-1,1,1", "--out", "a.png"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: region: ")
    assert warnings.showwarning is before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 768. MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=repr,
)
def test_too_little_memory_is_one_line(place, capsys, monkeypatch, error):
    def tile(*_):
        raise error

    monkeypatch.setattr(render.Renderer, "tile", tile)
    line = refused(capsys, *SAMPLE, "--seed", "0", "--out", "a.png")
    assert line.startswith("error: not enough memory: use a smaller --size, or a .tif of one picture")


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("command", ["sample", "foveate", "panorama", "interpolate", "project"])
def test_a_full_disk_is_one_line(place, capsys, monkeypatch, command):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    more = ("picture.png", "--steps", "1") if command == "project" else ()
    out = {"project": "new/found", "interpolate": "new/x.gif"}.get(command, "new/x.png")
    line = refused(capsys, command, "tiny.safetensors", *more, "--out", out)
    assert line == f"error: --out: got '{out}', which cannot be written (No space left on device)"


def test_an_interrupted_inversion_keeps_what_it_found(place, capsys, monkeypatch):
    steps, step = [], torch.optim.Adam.step

    def interrupted(optimizer):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(step(optimizer))

    arguments = [*PROJECT, "picture.png", "--steps", "20", "--out"]
    assert main([*arguments, "whole"]) == 0
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    capsys.readouterr()
    assert main([*arguments, "part"]) == 130
    assert capsys.readouterr().err == "stopped: 5 of 20 steps are done, their result is in part\n"
    assert sorted(os.listdir("part")) == ["losses.jsonl", "projected.png", "w.safetensors"]
    lines = [(place / name / "losses.jsonl").read_text().splitlines() for name in ("whole", "part")]
    assert lines[1] == lines[0][:5]
    assert main([*arguments, "nothing"]) == 130  # before the first step is done
    assert not os.path.exists("nothing")


def test_an_interrupted_inversion_hands_over_its_latent(generator):
    def stop(losses):
        if losses["step"] == 2:
            raise KeyboardInterrupt

    target = torch.zeros(3, 8, 8)
    with pytest.raises(inversion.Stopped) as stopped:
        inversion.project(generator, target, steps=10, starts=4, callback=stop)
    assert len(stopped.value.projection.losses) == 3
    assert stopped.value.projection.w.shape == (1, 8)


def test_an_interrupted_large_image_says_how_to_continue(place, capsys, monkeypatch):
    tile, rendered = render.Renderer.tile, []

    def interrupted(self, rows, columns):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(rows)
        return tile(self, rows, columns)

    monkeypatch.setattr(render.Renderer, "tile", interrupted)
    assert main([*SAMPLE, "--seed", "0", "--size", "1100x600", "--out", "x.tif"]) == 130
    said = capsys.readouterr().err
    assert said == "stopped: 2 of 6 tiles are in x.tif.partial; run the same command again to finish\n"


def test_two_writers_of_a_movie_do_not_mix(tmp_path):
    frames = [np.full((16, 16, 3), 40 * number, np.uint8) for number in range(5)]
    with Movie(tmp_path / "x.gif", 10, 16, 16) as first, Movie(tmp_path / "x.gif", 10, 16, 16) as second:
        for frame in frames:
            first.add(frame)
            second.add(frame[:, ::-1])
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


# In processes of their own: what only the end of a program, or its console, shows.


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    command = [sys.executable, "-m", "cips_fast", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, encoding="utf-8", env=environment, **pipes)


@pytest.mark.skipif(os.name == "nt", reason="no such pipes and signals")
def test_a_program_whose_reader_is_gone_or_that_is_ended_is_quiet(place):
    gone, kept = os.pipe()
    os.close(gone)
    full = open("/dev/full", "w")  # noqa: SIM115, closed below
    programs = {
        "help": start("sample", "--help", stdout=kept),
        "sample": start(*SAMPLE, "--out", "folder", stdout=kept),
        "full": start(*SAMPLE, "--out", "sheet.png", stdout=full),
        "gbk": start("nonsense²", environment={"PYTHONIOENCODING": "gbk"}),
        "large": start(*SAMPLE, "--seed", "0", "--size", "20000", "--out", "large.tif"),
    }
    os.close(kept)
    full.close()
    partial = place / "large.tif.partial" / "tiles.tif"
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.1)
    programs["large"].send_signal(signal.SIGTERM)
    errors = {name: one.communicate(timeout=300)[1] for name, one in programs.items()}
    statuses = {name: one.returncode for name, one in programs.items()}
    assert statuses == {"help": 0, "sample": 0, "full": 2, "gbk": 2, "large": 143}
    assert errors["help"] == errors["sample"] == ""
    assert len(os.listdir("folder")) == 12
    assert errors["full"] == "error: standard output cannot be written (No space left on device)\n"
    assert read("sheet.png").shape == (24, 32, 3)
    assert errors["gbk"].startswith(r"error: COMMAND: got 'nonsense\xb2', must be one of ")
    assert re.fullmatch(r"stopped: \d+ of 1600 tiles are in large\.tif\.partial; .*\n", errors["large"])


def test_commands_are_all_modules_but_the_shared_ones():
    assert command_names() == ["convert", "foveate", "interpolate", "panorama", "project", "sample"]
    assert all(hasattr(commands, name) for name in command_names())
