"""Output files appear whole or not at all, and only where a file is or can be."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES, EEXIST, EISDIR
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: temporaries of killed processes stay
    fcntl = None

TEMPORARIES = ".stepwell-writing-"
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
KINDS |= {stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to a temporary file beside ``path``, then rename it into place. A symbolic
    link is followed.

    Raises OSError (with the path) when the folder is missing or not writable, the disk is full, or
    something that is no regular file is there: a folder, a device, a FIFO. Then nothing has
    changed.
    """
    return write_all({Path(path): content})[0]


def write_all(
    contents: Mapping[Path, bytes | str], guard: Path | None = None, meanwhile: bytes | str = b""
) -> list[Path]:
    """The same for files that belong together: none is renamed before all are written, and an error
    undoes the renames.

    ``guard``: the one of them that holds ``meanwhile`` from the first rename to the last, so that a
    process that is killed between them leaves a sign. It is renamed at the very end.
    """
    targets = {path: _target(path) for path in contents}
    with ExitStack() as at_end:
        beside: dict[Path, Path] = {}
        renames: list[tuple[Path, Path]] = []  # temporary, path

        def stage(path: Path, content: bytes | str) -> None:
            with _named(path):
                folder = targets[path].parent
                if folder not in beside:
                    beside[folder] = at_end.enter_context(_temporaries(folder))
                temporary = beside[folder] / f"new{len(renames)}"
                temporary.write_bytes(content.encode() if isinstance(content, str) else content)
                os.chmod(temporary, _mode(targets[path]))
            renames.append((temporary, path))

        if guard is not None:
            stage(guard, meanwhile)
        for path in sorted(contents, key=lambda path: path == guard):
            stage(path, contents[path])
        _rename(renames, targets)
    return list(contents)


def _rename(renames: list[tuple[Path, Path]], targets: Mapping[Path, Path]) -> None:
    """All of them, or none: what was there is kept until the last one is done."""
    kept: dict[Path, Path | None] = {}
    try:
        for temporary, path in renames:
            target = targets[path]
            with _named(path):
                if target not in kept:
                    kept[target] = _kept(target, temporary.with_name(f"old{len(kept)}"))
                os.replace(temporary, target)
    except BaseException:
        for target, old in kept.items():
            with suppress(OSError):
                target.unlink(missing_ok=True) if old is None else os.replace(old, target)
        raise


def _kept(target: Path, place: Path) -> Path | None:
    """A second name, or a copy where there are none, of ``target``; None when it is not there."""
    if not target.exists():
        return None
    try:
        os.link(target, place)
    except OSError:
        shutil.copy2(target, place)
    return place


def _target(path: Path) -> Path:
    """The file that ``path`` names, past symbolic links. OSError when something is there that is no
    regular file.
    """
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        kind = "file"
    if kind == "folder":
        raise IsADirectoryError(EISDIR, "is a folder", str(path))
    if kind != "file":
        raise FileExistsError(EEXIST, f"is a {kind}: give the name of a file", str(path))
    return Path(os.path.realpath(path))


def kind_of(path: Path) -> str:
    """ "file", "folder", "device", "FIFO", ..: of what is there, past symbolic links. OSError when
    nothing is.
    """
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "special file")


def _mode(target: Path) -> int:
    """Permissions: those of the file that is replaced, or those of any new file."""
    return stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Make ``folder`` and those above it; take away again what was made when the files that it is
    for cannot be written.
    """
    check_can_make(folder)
    folder = Path(os.path.realpath(folder))
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def check_can_make(folder: str | Path, *files: str) -> None:
    """Raises the OSError that ``folder_for`` would, or ``write_all`` for ``files`` in it, before
    long work that ends in them.
    """
    real = Path(os.path.realpath(folder))
    there = next(place for place in (real, *real.parents) if place.exists())
    if not there.is_dir():
        said = f"File exists and is a {kind_of(there)}: give a folder"
        raise FileExistsError(EEXIST, said, str(folder if there == real else there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(EACCES, os.strerror(EACCES), str(folder))
    for name in files:
        _target(Path(folder) / name)


def check_can_write(path: str | Path) -> None:
    """Raises the OSError that ``write_whole`` would, before long work that ends in it."""
    with _named(Path(path)), _temporaries(_target(Path(path)).parent):
        pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name what was asked for: not the temporary file, and not nothing, as those of a full
    disk do.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _temporaries(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, gone at the end. Those that killed processes left behind go, too.

    The folder is locked as long as its process lives: a lock ends with it, however it ends.
    """
    remove_left(folder)
    while True:
        made = Path(tempfile.mkdtemp(dir=folder, prefix=TEMPORARIES))
        with _locked(made) as is_mine:
            if (
                is_mine is False or not made.exists()
            ):  # another process took it for a dead one's before it was locked
                continue
            try:
                yield made
            finally:
                shutil.rmtree(made, ignore_errors=True)
            return


def remove_left(folder: Path) -> None:
    """Remove the temporary folders that killed processes left behind."""
    for left in folder.glob(f"{TEMPORARIES}*"):
        with _locked(left) as is_mine:
            if is_mine:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Whether this process has the folder's lock now: False when another has it, None where nothing
    can be locked.
    """
    handle = is_mine = None
    try:
        if fcntl:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = True
    except BlockingIOError:
        is_mine = False
    except OSError:
        is_mine = None
    try:
        yield is_mine
    finally:
        if handle is not None:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
