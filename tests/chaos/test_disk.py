"""The small file system that is filled up: mounted by whoever may, given to who may not, and never a large one."""

import errno
import os

import pytest

from tests.chaos.disk import GIVEN, NoSmallDisk, small_disk

MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GIVEN, raising=False)


async def test_it_is_full_and_empty_again() -> None:
    """Not a byte can be written, by whoever comes, until what filled it up is gone."""
    async with small_disk(8 * MEBIBYTE) as disk:
        assert disk.fill() == 8 * MEBIBYTE
        assert disk.free_bytes == 0
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk.path / "another").write_bytes(b"x")
        disk.empty()
        (disk.path / "another").write_bytes(b"x")
    assert not disk.path.exists()


async def test_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used as it is, and left as it was."""
    async with small_disk(8 * MEBIBYTE) as mounted:
        monkeypatch.setenv(GIVEN, str(mounted.path))
        async with small_disk(MEBIBYTE) as disk:
            assert disk.path.parent == mounted.path
            assert disk.fill() == 8 * MEBIBYTE
            assert mounted.free_bytes == 0
        assert list(mounted.path.iterdir()) == []


async def test_a_large_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is somebody's."""
    async with small_disk(8 * MEBIBYTE) as mounted:
        monkeypatch.setenv(GIVEN, str(mounted.path))
        monkeypatch.setattr("tests.chaos.disk.LARGEST_BYTES", MEBIBYTE)
        with pytest.raises(NoSmallDisk, match="would be filled up: give a small one"):
            async with small_disk(MEBIBYTE):
                pass
        assert list(mounted.path.iterdir()) == []


async def test_one_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing may be mounted, that is an error that says what to allow."""
    monkeypatch.setattr("tests.chaos.disk.WAYS", [("false",), ("sh", "-c", "echo 'Operation not permitted' >&2")])
    with pytest.raises(NoSmallDisk, match=r"allow user namespaces .*; tried false: ; sh -c .*Operation not permitted"):
        async with small_disk(MEBIBYTE):
            pass
