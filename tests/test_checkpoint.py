"""Our own files: what is in them is checked before it is used, and every refusal is one line."""

import json
import os
import random
import time

import pytest
import safetensors.torch
import torch

from cips_fast import CIPSGenerator, checkpoint, settings
from cips_fast.checks import shown
from cips_fast.files.untrusted import OTHER, PICKLE, SAFETENSORS, ZIP, kind_of


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(1)
    return CIPSGenerator(8, width=[8, 6], style_features=8, mapping_layers=2, embedding_size=4).eval()


def write(path, tensors, metadata):
    """A file without a checksum, as versions before it wrote them."""
    safetensors.torch.save_file(dict(tensors), str(path), metadata=metadata)
    return path


def refusal(path):
    """The message with which a file is refused, which is one short line; within two seconds."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="checkpoint: ") as raised:
        checkpoint.load(path)
    message = str(raised.value)
    assert time.monotonic() - began < 2
    assert len(message.splitlines()) == 1
    assert len(message) < 600 + len(str(path))
    return message


def test_a_file_without_a_checksum_is_taken(generator, tmp_path):
    path = write(tmp_path / "g", generator.state_dict(), {"cips_fast": json.dumps(generator.config)})
    read = checkpoint.load(path)
    assert read.config == generator.config
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in generator.state_dict().items())


def test_settings_that_are_checked_are_those_of_a_generator(generator):
    assert set(settings.NAMES) == set(generator.config)
    assert settings.parse_settings(json.dumps(generator.config)) == generator.config


WIDE = 10**9
SETTINGS = [
    ({"size": "64"}, "size: got '64', must be a power of two"),
    ({"size": True}, "size: got True"),
    ({"size": 8.0}, "size: got 8.0"),
    ({"size": -8}, "size: got -8"),
    ({"size": 16}, "width: got [8, 6], must be 3 whole numbers"),
    ({"size": 2**40}, "size: got 1099511627776"),
    ({"size": 10**4000}, "size: got a number of 13288 bits"),
    ({"size": 16, "width": [8, 6, 6]}, "size: got 16, but the tensors are of 8"),
    ({"width": 8}, "width: got 8, but the tensors are of [8, 6]"),
    ({"width": [8, 7]}, "width: got [8, 7], but the tensors are of [8, 6]"),
    ({"width": [8, True]}, "width: got [8, True]"),
    ({"width": [8, 0]}, "width: got [8, 0]"),
    ({"width": [8] * 20_000}, "width: got [8, 8, "),
    ({"width": {}}, "width: got {}, must be"),
    ({"style_features": None}, "style_features: got None"),
    ({"style_features": 0}, "style_features: got 0"),
    ({"embedding_size": WIDE}, f"embedding_size: got {WIDE}"),
    ({"embedding_size": 5}, "embedding_size: got 5, but the tensors are of 4"),
    ({"encoding_features": 9}, "encoding_features: got 9, but the tensors are of 8"),
    ({"mapping_layers": WIDE}, f"mapping_layers: got {WIDE}"),
    ({"mapping_layers": 3}, "mapping_layers: got 3, but the tensors are of 2"),
    ({"variant": "both"}, "variant: got 'both', may be 'skip', 'res'"),
    ({"variant": ["skip"]}, "variant: got ['skip']"),
    ({"variant": "res"}, "does not fit: shortcuts.1.weight: missing, must be [6, 8]"),
    ({"activation": "x" * 40_000}, "activation: got 'xxxxxxx"),
    ({"geometry": "cylinder", "integer_coords": True}, "integer_coords: got True"),
    ({"geometry": "cylinder", "align_corners": False}, "align_corners: got False"),
    ({"max_frequency": "2"}, "max_frequency: got '2', must be a number"),
    ({"max_frequency": -1}, "max_frequency: got -1"),
    ({"max_frequency": True}, "max_frequency: got True"),
    ({"embedding_std": 10**400}, "embedding_std: got a number of"),
    ({"noise": 1}, "noise: got 1, must be True or False"),
    ({"fresh_option": 1}, "unknown settings 'fresh_option': was it written by a later version?"),
    ({"pixel_chunk": -5}, "unknown settings 'pixel_chunk'"),
    ({f"a\n{number}": 1 for number in range(9)}, "and 5 more: was it written by a later version?"),
]


@pytest.mark.parametrize(("change", "words"), SETTINGS, ids=lambda value: str(value)[:40])
def test_settings_that_are_none(generator, tmp_path, change, words):
    text = json.dumps(generator.config | change)
    assert words in refusal(write(tmp_path / "g", generator.state_dict(), {"cips_fast": text}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("null", "settings: got None, must be a JSON object"),
        ("[]", "settings: got []"),
        ("{}", "settings 'size', 'variant', 'width', 'style_features' and 10 more are missing"),
        ('"' + "x" * 1000 + '"', "settings: got 'xxx"),
        ("{", "settings: must be JSON"),
        ("", "settings: must be JSON"),
        ("[" * 60_000, "settings: must be JSON (it is nested too deeply)"),
        ("[" * 100_000 + "]" * 100_000, "settings: got 200000 characters, must be at most"),
        ('{"size": NaN}', "NaN is no number"),
        ('{"size": -Infinity}', "-Infinity is no number"),
        ('{"size": 1e999, "width": 1}', "are missing"),
        ('{"size": ' + "9" * 50_000 + "}", "settings"),
        (json.dumps({"width": [1] * 10**6}), "characters, must be at most"),
    ],
    ids=lambda value: value[:20],
)
def test_settings_that_are_no_json_object(generator, tmp_path, text, words):
    assert words in refusal(write(tmp_path / "g", generator.state_dict(), {"cips_fast": text}))


def test_settings_that_are_infinite(generator, tmp_path):
    text = json.dumps(generator.config).replace('"embedding_std": 1.0', '"embedding_std": 1e999')
    assert "embedding_std: got inf" in refusal(write(tmp_path / "g", generator.state_dict(), {"cips_fast": text}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean_latent": torch.zeros(8, dtype=torch.float64)}, "mean_latent: got torch.float64, must be torch.float32"),
        ({"mean_latent": torch.zeros(8, dtype=torch.half)}, "mean_latent: got torch.float16"),
        ({"mean_latent": torch.zeros(8, dtype=torch.int32)}, "mean_latent: got torch.int32"),
        ({"mean_latent": torch.tensor(1.0)}, "mean_latent: got [], must be [8]"),
        ({"mean_latent": torch.zeros(0)}, "style_features: got 8, but the tensors are of 0"),
        ({"mean_latent": torch.full((8,), torch.nan)}, "mean_latent: 8 of 8 values are not finite"),
        ({"layers.1.bias": torch.tensor([0.0] * 7 + [torch.inf])}, "layers.1.bias: 1 of 8 values are not finite"),
        ({"x\t" * 5000: torch.zeros(1)}, "x?x?x?"),
        ({f"stranger{n}": torch.zeros(1) for n in range(99)}, "and 91 more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tensors_that_do_not_fit(generator, tmp_path, change, words):
    tensors = generator.state_dict() | change
    assert words in refusal(write(tmp_path / "g", tensors, {"cips_fast": json.dumps(generator.config)}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_generator_of_another_precision_comes_back(generator, tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in generator.state_dict().items()}
    read = checkpoint.load(write(tmp_path / "g", tensors, {"cips_fast": json.dumps(generator.config)}))
    assert {tensor.dtype for tensor in read.state_dict().values()} == {dtype}


def header(entries, length=None):
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# A text\n\nof several lines", "is not a checkpoint"),
        (header({}, length=2**63) + b"{" * 100, "is damaged (its header has 9223372036854775808 bytes"),
        (header({}, length=50), "is damaged (its header has 50 bytes, must have at most 2)"),
        (header({"a": F32 | {"dtype": "F99"}}) + bytes(8), "is damaged"),
        (header({"a": F32 | {"data_offsets": [0, 80]}}) + bytes(8), "is damaged"),
        (header({"a": F32 | {"data_offsets": [8, 0]}}) + bytes(8), "is damaged"),
        (header({"a": F32 | {"data_offsets": [0, 4]}}) + bytes(8), "is damaged"),
        (header({"a": F32, "b": F32}) + bytes(8), "is damaged"),
        (header({"a": F32 | {"shape": [-2]}}) + bytes(8), "is damaged"),
        (header({"a": F32 | {"shape": [2**40, 2**40]}}) + bytes(8), "is damaged"),
        (header({"a": F32}) + bytes(4), "is damaged"),
        (header({"a": 3}) + bytes(8), "is damaged"),
        (header({"a": F32, "__metadata__": {"cips_fast": 3}}) + bytes(8), "is damaged"),
        (header({"a": F32}) + bytes(8), "was not written by cips_fast"),
        (header({"__metadata__": {"sha256": "0"}}), "is damaged (its content differs from its checksum)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_lie(tmp_path, content, words):
    path = tmp_path / "g.safetensors"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_header_too_long_to_be_read_quickly(tmp_path):
    path = tmp_path / "g.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 30).to_bytes(8, "little") + b"{")
        file.truncate(1 << 31)  # sparse: no disk is taken
    assert "is damaged (its header has 1073741824 bytes, must have at most" in refusal(path)


def test_every_flipped_byte_is_found(generator, tmp_path):
    """A file with its checksum: refused wherever it is damaged, or the same to the last bit."""
    path = tmp_path / "g.safetensors"
    checkpoint.save(generator, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    places = {*range(24), *rng.sample(range(len(whole)), 200)}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert refusal(path), place
    for length in {*range(24), *rng.sample(range(len(whole)), 100)}:
        path.write_bytes(whole[:length])
        assert refusal(path), length


def test_metadata_is_below_the_checksum(generator, tmp_path):
    path = tmp_path / "g.safetensors"
    checkpoint.save(generator, path)
    tensors, metadata = checkpoint.read_tensors(path)
    write(path, tensors, metadata | {"cips_fast": metadata["cips_fast"].replace("lrelu", "sin")})
    assert "its content differs from its checksum" in refusal(path)


def test_files_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe") if hasattr(os, "mkfifo") else (tmp_path / "pipe").mkdir()
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", "a\0b", tmp_path / "none" / "g"):
        with pytest.raises(FileNotFoundError, match=r"^checkpoint: got .*, which is not a file$"):
            checkpoint.load(path)
    with pytest.raises(OSError, match=r"^checkpoint: 'x+' cannot be read \(File name too long\)$"):
        checkpoint.load("x" * 300)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_file_that_may_not_be_read(generator, tmp_path):
    path = tmp_path / "g.safetensors"
    checkpoint.save(generator, path)
    path.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o7777 == 0o700:
            folder.chmod(0o711)
    os.seteuid(65534)
    try:
        assert path.is_file()
        with pytest.raises(PermissionError, match=r"g.safetensors' cannot be read \(Permission denied\)$"):
            checkpoint.load(path)
    finally:
        os.seteuid(0)


def test_kinds_are_told_by_content(generator, tmp_path):
    path = tmp_path / "file"
    checkpoint.save(generator, path)
    assert kind_of(path) == SAFETENSORS
    for new, kind in ((True, ZIP), (False, PICKLE)):
        torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=new)
        assert kind_of(path) == kind
        assert "is not a safetensors file: torch.save wrote it" in refusal(path)
    path.write_bytes(b'{"some": {"json": 1}}')
    assert kind_of(path) == OTHER


def test_values_are_shown_in_bounded_length():
    for value in ("x" * 10**6, ["y"] * 10**6, [list(range(99))] * 99, 10**5000, 1.5, None, {"a": 1}, b"z" * 999):
        assert len(shown(value)) <= 123
    assert (shown("64"), shown([8, 8]), shown(True)) == ("'64'", "[8, 8]", "True")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    tensors, metadata = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, {str(n): 'é"\\\n' * n for n in range(8)}
    files = [tmp_path / str(n) for n in range(8)]
    for file in files:
        checkpoint.write_tensors(file, tensors, metadata)
    assert len({file.read_bytes() for file in files}) == 1
    read, found = checkpoint.read_tensors(files[0])
    assert {name: found[name] for name in metadata} == metadata
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
