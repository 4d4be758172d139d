"""Shared buffers: lazy memory, fixed size, nothing left behind."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys

import pytest

from pdv_mp.memory.shared import SharedBuffer

PAGE = mmap.PAGESIZE


def test_memory_is_committed_when_touched_and_given_back_by_discard() -> None:
    buffer = SharedBuffer.create(1 << 40, "test")
    tensor = buffer.tensor()
    assert tensor.shape == (1 << 40,)
    assert buffer.committed_bytes() == 0
    tensor[10 * PAGE : 14 * PAGE] = 7
    assert buffer.committed_bytes() == 4 * PAGE
    buffer.discard(11 * PAGE, 2 * PAGE)
    assert buffer.committed_bytes() == 2 * PAGE
    assert tensor[10 * PAGE : 14 * PAGE : PAGE].tolist() == [7, 0, 0, 7]
    assert buffer.committed_bytes() == 4 * PAGE, "reads commit pages, too"
    buffer.close()


def test_the_size_is_sealed() -> None:
    buffer = SharedBuffer.create(4 * PAGE, "test")
    for size in (PAGE, 8 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd, size)
    assert fcntl.fcntl(buffer.fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    buffer.close()


def test_another_process_sees_the_same_memory() -> None:
    buffer = SharedBuffer.create(2 * PAGE, "test")
    program = (
        "import sys; from pdv_mp.memory.shared import SharedBuffer; "
        "b = SharedBuffer(int(sys.argv[1]), int(sys.argv[2])); b.tensor()[5] += 1"
    )
    tensor = buffer.tensor()
    tensor[5] = 41
    subprocess.run(
        [sys.executable, "-c", program, str(buffer.fd), str(buffer.nbytes)],
        pass_fds=[buffer.fd],
        check=True,
    )
    assert tensor[5] == 42
    buffer.close()


def test_tensors_outlive_close_and_nothing_outlives_them() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    buffer = SharedBuffer.create(PAGE, "pdv-left-over")
    tensor = buffer.tensor()
    buffer.close()
    buffer.close()
    tensor[0] = 3
    assert tensor[0] == 3
    del tensor
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "pdv-left-over" not in maps.read()
    for use in (buffer.tensor, lambda: buffer.fd, lambda: buffer.discard(0, PAGE)):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_wrong_ranges_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        SharedBuffer.create(0, "test")
    buffer = SharedBuffer.create(4 * PAGE, "test")
    for offset, nbytes, message in (
        (1, PAGE, "not aligned"),
        (0, PAGE - 1, "not aligned"),
        (4 * PAGE, PAGE, "lies outside"),
        (0, 0, "lies outside"),
        (-PAGE, PAGE, "lies outside"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.discard(offset, nbytes)
    buffer.close()
