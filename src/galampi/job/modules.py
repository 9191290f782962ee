"""The modules that a job names: which, where they lie, and how they are imported.

Whoever only reads a run takes no more than their names, and so runs no code of it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from galampi.errors import USERS_FAILURES, UserError
from galampi.job.settings import Job

_IMPORTED: dict[str, dict[str, str]] = {}
"""Modules that jobs of this process have brought, by the folder they lie in, each with its source as it was then."""


def named_modules(job: Job) -> Iterator[tuple[str, str]]:
    """Yield the settings that name a module, each with the module's name."""
    for key, reference in (("environment.id", job.environment.id), ("network.kind", job.network.kind)):
        module, colon, _ = reference.rpartition(":")
        if colon:
            yield key, module
    for entry in job.environment.wrappers_and_kwargs:
        yield "environment.wrappers", entry.wrapper.partition(":")[0]


def find_modules(job: Job) -> dict[str, str]:
    """Return where each module that a job names would be imported from, and import none.

    Raises:
        UserError: One is nowhere.
    """
    found = {}
    for key, module in named_modules(job):
        first, *rest = module.split(".")
        places = [job.modules_folder] if job.modules_folder else []
        # What was installed to be edited may be known to a finder of its own alone, so all are asked.
        spec = PathFinder.find_spec(first, places) or _spec_of_finders(first)
        if spec is None and first not in sys.modules:
            where = f"neither in {job.modules_folder} nor installed" if job.modules_folder else "not installed"
            raise UserError(f"{key} names the module {module!r}, which is {where}")
        origin = spec.origin if spec is not None and spec.origin is not None else "a place of its own"
        found[module] = str(Path(origin).parent.joinpath(*rest)) if rest else origin
    return found


def _spec_of_finders(name: str) -> ModuleSpec | None:
    found = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


def import_modules(job: Job) -> None:
    """Import what a job names; modules beside its file come first, now and later.

    Raises:
        UserError: A module cannot be imported.
    """
    folder = job.modules_folder
    if folder:
        _forget_those_of_others(folder)
        if any(_digest(name) != digest for name, digest in _IMPORTED.get(folder, {}).items()):
            # Edited since, as beside a notebook.
            _forget(folder)
        if sys.path[:1] != [folder]:
            sys.path[:] = [folder, *(each for each in sys.path if each != folder)]
            importlib.invalidate_caches()
    found = find_modules(job)
    before = set(sys.modules)
    try:
        for key, module in named_modules(job):
            import_module(module, f"{key}: module {module!r} ({found[module]})")
            if another := _loaded_from_elsewhere(module, folder):
                raise UserError(
                    f"{key}: module {module!r} ({found[module]}) is not what is imported already, from {another}; give "
                    "it another name, or install what lies there (pip install -e)"
                )
    finally:
        if folder:
            new = _below(folder, sys.modules.keys() - before)
            _IMPORTED.setdefault(folder, {}).update({name: _digest(name) for name in new})


def _forget_those_of_others(folder: str) -> None:
    """Let modules be imported anew that jobs of other folders have brought: they may have the names of this one's."""
    for other in _IMPORTED.keys() - {folder}:
        _forget(other)


def _forget(folder: str) -> None:
    """Let modules that jobs have brought be imported anew."""
    for name in _IMPORTED.pop(folder):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def _digest(name: str) -> str:
    """Return the SHA-256 of the source of an imported module; '' if it has none, as a package without a file."""
    path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _below(folder: str, names: Iterable[str]) -> Iterator[str]:
    """Yield those of some modules that lie below a folder, but for what is installed there."""
    for name in names:
        module = sys.modules.get(name)
        # Of a package without a file of its own its parts have one.
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if place is not None and Path(folder) in Path(place).parents and "site-packages" not in Path(place).parts:
            yield name


def _loaded_from_elsewhere(module: str, folder: str) -> str:
    """Return from where a module is imported that lies in a folder too; '' if it is that one, or does not."""
    first = module.partition(".")[0]
    beside = PathFinder.find_spec(first, [folder]) if folder else None
    loaded = getattr(sys.modules.get(first), "__file__", None)
    if beside is None or beside.origin is None or loaded is None:
        return ""
    return "" if Path(loaded).resolve() == Path(beside.origin).resolve() else str(loaded)


def import_again(job: Job, before: Sequence[str], tell: Callable[[str], None]) -> None:
    """Import what the job of a run names, and say where from, and what has changed since the run began.

    Args:
        job: The run's.
        before: What `imported_sources` told when it began, a module each.
        tell: Takes a line.

    Raises:
        UserError: A module has gone, or cannot be imported.
    """
    for module, path in find_modules(job).items():
        tell(f"imports the module {module} from {path}: the job of the run names it")
    import_modules(job)
    now = imported_sources(job)
    for name, _, source in (line.partition(" ") for line in before):
        path, _, digest = source.rpartition(" ")
        if name not in now:
            tell(f"module {name} was imported from {path} when the run began, and is no longer")
        elif not now[name].endswith(digest):
            tell(f"module {name} has changed since the run began: {now[name].rpartition(' ')[0]}")


def import_module(name: str, subject: str) -> None:
    """Import a module of somebody else's; `subject` begins the error.

    Raises:
        UserError: It cannot be imported, whatever it raises.
    """
    try:
        importlib.import_module(name)
    except USERS_FAILURES as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        reason = "" if missing else f": {one_line(error)}"
        raise UserError(f"{subject} cannot be imported{reason}") from error


def imported_sources(job: Job) -> dict[str, str]:
    """Return path and SHA-256 of the source of each module that a job names, and of all imported from its folder."""
    names = {module for _, module in named_modules(job)}
    sources = {}
    for name, module in sorted(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "")
        is_beside = bool(job.modules_folder) and Path(job.modules_folder) in path.parents
        # Environments may be installed within the folder.
        if path.is_file() and (name in names or (is_beside and "site-packages" not in path.parts)):
            sources[name] = f"{path} {_digest(name)}"
    return sources


def one_line(error: BaseException) -> str:
    """Say an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
