"""safetensors files made to do harm: one clear line each, nothing large allocated, nothing half loaded."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from misdirect.model.delta import Delta, load_delta, load_tensors, save_delta, save_tensors, swapped_in
from misdirect.model.load import load_lm
from tiny import tiny_folder, tiny_model

NAME = "model.layers.1.mlp.down_proj.weight"


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def float_bytes(value: float) -> bytes:
    return struct.pack("<f", value)


ONE = json.dumps(entry(0, 4)).encode()
FOUR = bytes(4)
# name -> bytes of a file that no one may load as tensors
BROKEN = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 2^63 bytes": packed({}, length=2**63),
    "header of -1 bytes": packed({}, length=2**64 - 1),
    "header of 90 MB in a file of 10 bytes": packed({}, length=90_000_000),
    "no header": packed(b""),
    "lists 100,000 deep": packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "objects 50,000 deep": packed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "not JSON": packed(b"{]"),
    "a list": packed([1]),
    "not UTF-8": packed(b'{"\xff":1}'),
    "half a surrogate": packed(b'{"\\ud800":' + ONE + b"}", FOUR),
    "overlapping offsets": packed({"a": entry(0, 4), "b": entry(0, 4)}, FOUR),
    "partly overlapping": packed({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)),
    "a gap": packed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "past the end": packed({"a": entry(0, 400, (100,))}, FOUR),
    "negative offset": packed({"a": entry(-4, 0)}, FOUR),
    "reversed offsets": packed({"a": entry(4, 0)}, FOUR),
    "offsets of 2^70": packed({"a": entry(0, 2**70)}, FOUR),
    "bytes after the end": packed({"a": entry(0, 4)}, bytes(40)),
    "shape of 2^124": packed({"a": entry(0, 4, (2**62, 2**62))}, FOUR),
    "shape larger than the data": packed({"a": entry(0, 4, (2**40,))}, FOUR),
    "shape of text": packed({"a": entry(0, 4, "1")}, FOUR),
    "shape of fractions": packed({"a": entry(0, 4, (1.5,))}, FOUR),
    "negative shape": packed({"a": entry(0, 4, (-1,))}, FOUR),
    "unknown dtype": packed({"a": entry(0, 4, dtype="F31")}, FOUR),
    "dtype with an escape sequence": packed({"a": entry(0, 4, dtype="\x1b[2J\nF32")}, FOUR),
    "no shape": packed({"a": {"dtype": "F32"}}),
    "metadata of numbers": packed({"__metadata__": {"a": 1}, "a": entry(0, 4)}, FOUR),
    "metadata as a list": packed({"__metadata__": [1], "a": entry(0, 4)}, FOUR),
    "a name twice, the same bytes": packed(b'{"a":' + ONE + b',"a":' + ONE + b"}", FOUR),
    "a name twice, other bytes": packed(b'{"a":' + ONE + b',"a":' + json.dumps(entry(4, 8)).encode() + b"}", bytes(8)),
    "a name with NUL": packed({"a\0b": entry(0, 4)}, FOUR),
    "a name with an escape sequence": packed({"\x1b[31mred": entry(0, 4)}, FOUR),
    "a name with a line break": packed({"a\nb": entry(0, 4)}, FOUR),
    "an empty name": packed({"": entry(0, 4)}, FOUR),
    "a name of 1 MB": packed({"a" * 1_000_000: entry(0, 4)}, FOUR),
}
# name -> bytes of sound safetensors that are no delta
NO_DELTA = {
    "no tensors": packed({}),
    "metadata alone": packed({"__metadata__": {"format": "pt"}}),
    "NaN": packed({NAME: entry(0, 4)}, float_bytes(float("nan"))),
    "infinity": packed({NAME: entry(0, 4)}, float_bytes(float("inf"))),
    "no numbers": packed({NAME: entry(0, 0, (0, 5))}),
    "integers": packed({NAME: entry(0, 8, dtype="I64")}, bytes(8)),
    "truth values": packed({NAME: entry(0, 1, dtype="BOOL")}, b"\7"),
    "complex numbers": packed({NAME: entry(0, 8, dtype="C64")}, bytes(8)),
    "8-bit floats": packed({NAME: entry(0, 1, dtype="F8_E4M3")}, b"\0"),
    "4-bit floats": packed({NAME: entry(0, 4, (8,), "F4")}, FOUR),
    "no index": packed({NAME + "[x]": entry(0, 4)}, FOUR),
    "an open bracket": packed({NAME + "[0": entry(0, 4)}, FOUR),
}
# name of a tensor -> shape; sound deltas, of another model
OTHER_MODEL = {
    "../../etc/passwd": (1,),
    "/etc/passwd": (1,),
    "__class__": (1,),
    "model.layers.99.mlp.down_proj.weight": (32, 80),
    NAME: (80, 32),
    NAME + " ": (32, 80),
    NAME + "[0:99]": (99, 80),
    NAME + "[99:100]": (1, 80),
    NAME + "[0,0,0]": (1,),
    NAME + "[0:2]": (3, 80),
}


def assert_one_clear_line(error: BaseException, *words: str) -> None:
    text = str(error)
    assert text.isprintable()
    assert 20 < len(text) < 500
    for word in words:
        assert word in text


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(BROKEN[kind])
    for load in (load_delta, load_tensors):
        with pytest.raises(ValueError, match="is missing, damaged or cut short") as refused:
            load(path)
        assert_one_clear_line(refused.value, "delta.safetensors")


@pytest.mark.parametrize("kind", NO_DELTA)
def test_a_sound_file_that_is_no_delta_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(NO_DELTA[kind])
    with pytest.raises(ValueError, match="expected") as refused:
        load_delta(path)
    assert_one_clear_line(refused.value)


@pytest.mark.parametrize("name", OTHER_MODEL)
def test_a_delta_of_another_model_changes_nothing(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_delta(Delta({name: torch.ones(OTHER_MODEL[name])}), tmp_path / "delta.safetensors")
    delta = load_delta(tmp_path / "delta.safetensors")
    with (
        pytest.raises(ValueError, match="expected the model that it was made from") as refused,
        swapped_in(delta, model),
    ):
        pytest.fail("entered")
    assert_one_clear_line(refused.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta.safetensors"]


@pytest.mark.parametrize("path", [".", "missing.safetensors"])
def test_a_folder_or_nothing_in_place_of_the_file_is_one_line(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing, damaged or cut short") as refused:
        load_delta(tmp_path / path)
    assert_one_clear_line(refused.value)


LOADING = """
import re, sys
from pathlib import Path
from misdirect.model.delta import load_delta
sound, *hostile = map(Path, sys.argv[1:])
load_delta(sound)
most = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = most()
for path in hostile:
    try:
        load_delta(path)
    except ValueError:
        continue
    sys.exit(f"{path} was loaded")
print(most() - before)
"""


@pytest.mark.long
def test_no_header_makes_anything_large(tmp_path: Path) -> None:
    """In a process of its own, since the peak of this one may lie behind it, and `ru_maxrss` is handed on."""
    save_tensors({"a": torch.ones(2)}, tmp_path / "sound.safetensors")
    paths = [tmp_path / "sound.safetensors"]
    for i, content in enumerate([*BROKEN.values(), *NO_DELTA.values()]):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024


@pytest.mark.long
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_refused_or_loads_tensors(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "delta.safetensors"
    content = bytearray(packed({NAME: entry(0, 8, (2, 1))}, float_bytes(1.0) + float_bytes(2.0)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        delta = load_delta(path)
    except ValueError as error:
        assert_one_clear_line(error)
    else:
        assert all(torch.isfinite(value).all() for value in delta.tensors.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"), "llama", num_hidden_layers=2)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_with_broken_weights_is_one_line(kind: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    (copy / "model.safetensors").write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short .*; fetch it again") as refused:
        load_lm(str(copy), 1)
    assert_one_clear_line(refused.value)


@pytest.mark.parametrize("last", [1, None])
@pytest.mark.parametrize("kind", ["lacks a matrix", "lacks the embedding", "another shape", "nothing of the model"])
def test_weights_that_are_not_the_models_are_one_line(
    kind: str, last: int | None, folder: Path, tmp_path: Path
) -> None:
    copy = copy_of(folder, tmp_path)
    tensors, _ = load_tensors(copy / "model.safetensors")
    if kind == "lacks a matrix":
        del tensors[NAME]
    elif kind == "lacks the embedding":
        del tensors["model.embed_tokens.weight"]
    elif kind == "another shape":
        tensors[NAME] = torch.ones(80, 32)
    else:
        tensors = {"a": torch.ones(1)}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ tensors? of its model: |cannot be loaded") as refused:
        load_lm(str(copy), last)
    assert_one_clear_line(refused.value)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a": "../model/model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "missing.safetensors"}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": null}',
        "{}",
        "[]",
        "[" * 100_000,
        "",
        '{"weight_map": {"a": "\\u0000"}}',
    ],
)
def test_a_list_of_weight_files_that_leaves_the_folder_is_one_line(index: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json (names .* no file in that folder|is not a list)") as refused:
        load_lm(str(copy), 1)
    assert_one_clear_line(refused.value)
