"""Opening and reading plain files without surprises: no blocking on pipes, no links out of a folder, no short reads.

Files are read into owned memory, never mapped: a file that shrinks under a mapping kills the process with SIGBUS.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from types import TracebackType

from llmcore.errors import ArgumentError, ArgumentTypeError, CheckpointError, StorageError, escape

_CHUNK_BYTES = 1 << 30  # Linux and macOS cut a single read a little below 2 GiB
_RETRIES = 1000


def shown(path: object) -> str:
    """`path` as text that is safe in a message."""
    return escape(str(path), 200)[1:-1]


def storage_error(action: str, path: object, error: OSError, *, offset: int | None = None) -> StorageError:
    """A StorageError that keeps the errno of `error`."""
    where = "" if offset is None else f" at byte {offset}"
    made = StorageError(f"{shown(path)}: can't {action}{where}: {error.strerror or escape(str(error))}")
    made.errno = error.errno
    return made


def check_path(path: object) -> None:
    """Raises ArgumentTypeError for what is neither str nor os.PathLike, ArgumentError for what can name no file."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be str or os.PathLike, got {type(path).__name__}")
    try:
        named = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise ArgumentError(f"path: {escape(path, 200)} can't be the name of a file")


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at `path`, a link included. Raises StorageError where that can't be seen."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # or no name of a file at all
        return False
    except OSError as error:
        raise storage_error("look up", path, error) from None
    return True


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file at `path`, or a link to one. Raises as `exists`."""
    return exists(path) and os.path.isfile(path)


class PlainFile:
    """A regular file open for reading. `size` is its length in bytes when it was opened.

    Opening never blocks (a FIFO is refused, not waited for) and reads never return less than asked. Several threads
    may read at once. Raises StorageError.
    """

    def __init__(self, path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        self._fd = -1  # first: `close` is called whatever fails
        self.path = Path(path)
        self._lock = threading.Lock()
        flags = os.O_RDONLY
        for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
            flags |= getattr(os, name, 0)
        if dir_fd is not None:  # the name was vetted by the caller: what it means must not change before it is opened
            flags |= getattr(os, "O_NOFOLLOW", 0)
        try:
            self._fd = os.open(self.path.name if dir_fd is not None else self.path, flags, dir_fd=dir_fd)
        except OSError as error:
            raise storage_error("open", path, error) from None
        except ValueError:  # a NUL in the name
            raise StorageError(f"{shown(path)}: can't open: not a file name") from None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        try:
            self._stat = os.fstat(self._fd)
        except OSError as error:
            raise storage_error("inspect", self.path, error) from None
        if not stat.S_ISREG(self._stat.st_mode):
            made = StorageError(f"{shown(self.path)}: is {_kind(self._stat.st_mode)}, not a regular file")
            made.errno = errno.EINVAL
            raise made
        self.size = self._stat.st_size
        # Files of /proc say that they are regular and empty, and then give bytes or errors.
        if self.size == 0 and self._read_some(memoryview(bytearray(1)), 0):
            raise StorageError(f"{shown(self.path)}: is a virtual file, not a regular file on a disk")

    @property
    def links(self) -> int:
        """How many names (hard links) the file has."""
        return self._stat.st_nlink

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two names of one file."""
        return self._stat.st_dev, self._stat.st_ino

    @property
    def modified_ns(self) -> int:
        """Time of the last change, in nanoseconds since 1970."""
        return self._stat.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raises StorageError when the file was written to, cut or replaced since it was opened."""
        try:
            now = os.fstat(self._fd)
            named = os.stat(self.path)
        except OSError as error:
            raise storage_error("inspect", self.path, error) from None
        was = self._stat
        if (now.st_size, now.st_mtime_ns) != (was.st_size, was.st_mtime_ns) or not os.path.samestat(named, was):
            raise StorageError(f"{shown(self.path)}: the file changed while it was being read; load it again")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` (bytes) from `offset`. Raises StorageError, also when the file ends before that."""
        done = 0
        while done < len(buffer):
            count = self._read_some(buffer[done : done + _CHUNK_BYTES], offset + done)
            if count == 0:
                raise StorageError(
                    f"{shown(self.path)}: ends at byte {offset + done}, wanted {len(buffer) - done} bytes more; "
                    "the file was cut while it was being read"
                )
            done += count

    def read(self, count: int, offset: int) -> bytearray:
        """`count` bytes from `offset`. The caller has checked `count` against `size`."""
        data = bytearray(count)
        self.read_into(memoryview(data), offset)
        return data

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        for _ in range(_RETRIES):
            try:
                if hasattr(os, "preadv"):
                    return os.preadv(self._fd, [buffer], offset)
                with self._lock:  # Windows has one file position for all threads
                    os.lseek(self._fd, offset, os.SEEK_SET)
                    data = os.read(self._fd, len(buffer))
                    buffer[: len(data)] = data
                    return len(data)
            except (InterruptedError, BlockingIOError):
                continue
            except OSError as error:
                raise storage_error("read", self.path, error, offset=offset) from None
        raise StorageError(f"{shown(self.path)}: can't read at byte {offset}: no data after {_RETRIES} attempts")

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """Closes the file; more calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> PlainFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def open_inside(folder: Path, name: str) -> PlainFile:
    """Opens the file `name` of `folder`, which a file of untrusted content may have chosen.

    A link that leads out of the folder is refused, be it symbolic or hard; in a snapshot of the Hugging Face cache
    the files are links to that model's own blobs. Raises CheckpointError for such a link, else StorageError.
    """
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise CheckpointError(f"{shown(folder)}: {escape(name)} is not the name of a file in the folder")
    return open_below(folder, name)


def open_below(folder: Path, name: str) -> PlainFile:
    """The same for a name that we chose, also one in a folder within."""
    path = folder / name
    base = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    inside = real.parent == base or base in real.parents
    if not inside and base.parent.name == "snapshots":
        inside = base.parent.parent / "blobs" in real.parents
    if not inside:
        raise CheckpointError(f"{shown(path)}: is a link out of the folder, to {shown(real)}; put a copy in its place")
    file = _open_without_links(real)
    try:
        file.path = path
        # Only the links of this folder are known to be the owner's own doing.
        if file.links > 1 and file.links > _names_of(file.identity, Path(os.path.realpath(path.parent))):
            raise CheckpointError(f"{shown(path)}: has a hard link outside the folder; put a copy in its place")
    except BaseException:
        file.close()
        raise
    return file


def _open_without_links(path: Path) -> PlainFile:
    """Opens `path`, already resolved, so that a link put there in the meantime isn't followed."""
    if os.open not in os.supports_dir_fd:
        return PlainFile(path)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error("open", path, error) from None
    try:
        return PlainFile(path, dir_fd=folder)
    finally:
        os.close(folder)


def _names_of(identity: tuple[int, int], folder: Path) -> int:
    """How many names in `folder` are the file `identity`."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            count += (found.st_dev, found.st_ino) == identity
    return count


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "something else"
