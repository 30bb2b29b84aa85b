"""Open what was dropped: files on their own, a folder as one dump, the files of a dump as one too."""

from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.show.widgets.sources import Source, first_sentence, open_sources
from workbench.trace.importers.dumps.binary_files import RAW_SUFFIXES

ONE_TENSOR = (".npy", *RAW_SUFFIXES)  # endings of files with one tensor: several of them are one dump
MAX_FILES = 100  # of a folder that is no dump


def open_dropped(folder: Path) -> tuple[list[Source], list[str]]:
    """Open everything in a folder of dropped files.

    Returns
    -------
    sources : list of Source
    problems : list of str
        A sentence on each thing that cannot be opened.
    """
    entries = _as_dump(folder, [path for path in sorted(folder.iterdir()) if _suffix(path) != ".toml"])
    mappings = sorted(folder.glob("*.toml"))
    sources: list[Source] = []
    problems: list[str] = []
    for path in entries[:MAX_FILES]:
        own = [mapping for mapping in mappings if mapping.stem == path.stem or len(mappings) == 1]
        try:
            sources += open_sources(path, own[0] if own else None)
        except WorkbenchError as error:
            problem = [_sentence(path, error, folder)]
            if path.is_dir() and not _is_dump(path):  # a folder of runs and sounds
                found, others = open_dropped(path)
                sources += found
                problem = others if found else problem
            problems += problem
    if len(entries) > MAX_FILES:
        problems.append(f"{len(entries)} things were dropped; the first {MAX_FILES} were opened")
    if mappings and not entries:
        problems.append(f"{mappings[0].name} is a mapping; drop it together with the dump that it describes")
    for source in sources:
        if "source" in source.trace.attrs:
            source.trace.attrs["source"] = source.name  # the temporary folder is removed
    return sources, problems


def _suffix(path: Path) -> str:
    return path.suffix.lower() if path.is_file() else ""


def _is_dump(folder: Path) -> bool:
    """Whether a folder has several files of one tensor each."""
    return sum(_suffix(path) in ONE_TENSOR for path in folder.iterdir()) > 1


def _as_dump(folder: Path, entries: list[Path]) -> list[Path]:
    """Move loose files of one tensor each into a folder of their own, which is opened as one dump."""
    if not _is_dump(folder):
        return entries
    tensors = [path for path in entries if _suffix(path) in ONE_TENSOR]
    together = folder / f"{len(tensors)} files"
    together.mkdir(exist_ok=True)
    for path in tensors:
        path.rename(together / path.name)
    return [together, *(path for path in entries if path not in (*tensors, together))]


def _sentence(path: Path, error: WorkbenchError, folder: Path) -> str:
    """Return why something cannot be opened, without the temporary folder's name."""
    text = first_sentence(error).replace(f"{folder}/", "").replace(str(folder), "")
    return text if path.name in text else f"{path.name}: {text}"
