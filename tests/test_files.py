"""Containers of arrays: what is written is read back, and whatever else stands in a file ends in one line that names it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.instances import files
from headroom.instances.errors import InputError
from headroom.instances.files import read_npz, write_npz
from tests.command import headroom, only_error

HEADER = b"\x93NUMPY\x01\x00"
"""The beginning of an .npy file, version 1.0; the length of its description and the description follow."""


def npy(description: str, content: bytes = b"") -> bytes:
    text = description.encode("latin-1")
    return HEADER + len(text).to_bytes(2, "little") + text + content


def container(path: Path, members: dict[str, bytes], before: bytes = b"") -> Path:
    """A container with these members beside a header that is well; `before` stands in front of the archive."""
    header = io.BytesIO()
    np.save(header, np.frombuffer(b"{}", np.uint8))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {"header.npy": header.getvalue(), **members}.items():
            archive.writestr(name, content)
    path.write_bytes(before + packed.getvalue())
    return path


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_npz(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"a": np.arange(5, dtype=np.int32), "b.c": np.array([[0.5, np.nan]]), "none": np.zeros((0, 3))}
    write_npz(tmp_path / "x.npz", {"name": "ν"}, arrays)
    header, found = read_npz(tmp_path / "x.npz")
    assert header == {"name": "ν"}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_python_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "x.npz", {}, {"a": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", b"\0" * 8), "not a readable .npz container: EOF"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**30,)}"), "not a readable .npz container: "),
        (npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},)}}"), "not a readable .npz container: "),
        (npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**55},)}}"), "needs more memory than there is: Unable to allocate 256. PiB"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."), "not a readable .npz container: Object arrays"),
        (npy("{1: 2, 'shape': 3}"), "not a readable .npz container: "),
        (npy("{[]: 2}"), "not a readable .npz container: "),
        (npy("(" * 9000), "not a readable .npz container: "),
        (npy("'''"), "not a readable .npz container: "),
        (b"\x93NUMPY\x09\x00", "not a readable .npz container: "),
    ],
)
def test_members_that_are_no_arrays(member: bytes, message: str, tmp_path: Path) -> None:
    assert error_of(container(tmp_path / "x.npz", {"a.npy": member})).startswith(message)


def test_an_archive_behind_an_array(tmp_path: Path) -> None:
    one = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}\n", b"{}")
    assert "begins with something else" in error_of(container(tmp_path / "x.npz", {}, before=one))


def test_a_header_that_is_no_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    assert error_of(tmp_path / "x.npz") == "has no member 'header'; expected a headroom .npz container"
    np.savez(tmp_path / "x.npz", header=np.zeros(2))
    assert error_of(tmp_path / "x.npz") == "member 'header' has type float64; expected uint8 JSON text"


def test_more_than_a_container_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 80 MB of zeros deflate to 80 kB: the sizes stated in the archive count, before anything is unpacked.
    write_npz(tmp_path / "x.npz", {}, {"a": np.zeros(10**7)})
    assert (tmp_path / "x.npz").stat().st_size < 10**5
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 10**7)
    assert error_of(tmp_path / "x.npz").startswith("unpacks to 80000")


def test_damaged_containers_are_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_npz(tmp_path / "whole.npz", {"name": "x"}, {"a": rng.random(40), "b": np.arange(30)})
    whole = (tmp_path / "whole.npz").read_bytes()
    refused = 0
    for _ in range(600):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 5)):
            content[at] = rng.integers(256)
        (tmp_path / "x.npz").write_bytes(content[: rng.integers(len(whole))] if rng.random() < 0.2 else content)
        try:
            read_npz(tmp_path / "x.npz")  # nothing else than InputError may come out
        except InputError:
            error_of(tmp_path / "x.npz")
            refused += 1
    assert refused > 400


def test_memory_that_is_not_there_ends_the_command_with_one_line(tmp_path: Path) -> None:
    huge = npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**55},)}}")
    container(tmp_path / "x.npz", {"load.npy": huge})
    assert "x.npz: needs more memory than there is" in only_error(headroom("solve", "x.npz", cwd=tmp_path))
