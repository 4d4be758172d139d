"""Shared buffers: lazy memory, fixed size, nothing left behind."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import signal
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


def test_sealed_memory_is_read_only_for_everybody() -> None:
    buffer = SharedBuffer.create(2 * PAGE + 5, "test")
    tensor = buffer.tensor()
    tensor.fill_(9)
    with pytest.raises(OSError, match="busy"):
        SharedBuffer(os.dup(buffer.fd), buffer.nbytes).sealed()
    del tensor
    sealed = buffer.sealed()
    with pytest.raises(ValueError, match="is closed"):
        buffer.tensor()
    assert sealed.tensor().tolist() == [9] * (2 * PAGE + 5)
    with pytest.raises(PermissionError):
        os.pwrite(sealed.fd, b"x", 0)
    with pytest.raises(PermissionError):
        SharedBuffer(sealed.fd, sealed.nbytes)
    with pytest.raises(PermissionError):
        sealed.discard(0, PAGE)
    other = SharedBuffer.open(os.getpid(), sealed.fd, sealed.inode, sealed.nbytes, writable=False)
    assert other.tensor().sum() == 9 * sealed.nbytes
    program = (
        "import sys; from pdv_mp.memory.shared import SharedBuffer; "
        "b = SharedBuffer(int(sys.argv[1]), int(sys.argv[2]), False); b.tensor()[5] = 1"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(sealed.fd), str(sealed.nbytes)],
        pass_fds=[sealed.fd],
        check=False,
    )
    assert ended.returncode == -signal.SIGSEGV
    other.close()
    sealed.close()


def test_a_read_only_tensor_keeps_its_pages() -> None:
    gc.collect()  # other tests' leavings
    descriptors = len(os.listdir("/proc/self/fd"))
    buffer = SharedBuffer.create(PAGE, "pdv-kept").sealed()
    tensor = buffer.tensor()[10:]
    buffer.close()
    del buffer
    gc.collect()
    assert tensor.tolist() == [0] * (PAGE - 10)
    del tensor
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "pdv-kept" not in maps.read()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(("inode", "more"), [(1, 0), (0, 1), (0, -1)])
def test_another_file_than_expected_is_refused(inode: int, more: int) -> None:
    buffer = SharedBuffer.create(PAGE, "test")
    expected = buffer.inode + inode, buffer.nbytes + more
    with pytest.raises(ValueError, match="is inode"):
        SharedBuffer.open(os.getpid(), buffer.fd, *expected, writable=True)
    with pytest.raises(OSError, match="No such file"):
        SharedBuffer.open(os.getpid(), 9999, *expected, writable=True)
    buffer.close()
