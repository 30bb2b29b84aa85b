"""Open what was dropped: files on their own, a folder as one dump, the files of a dump as one too."""

from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.show.widgets.sources import Source, first_sentence, open_sources
from workbench.trace.importers.dumps.binary_files import RAW_SUFFIXES

ONE_TENSOR = (".npy", *RAW_SUFFIXES)  # endings of files with one tensor: several of them are one dump
MAX_FILES = 20  # that are opened one by one; a folder with more is a dump or a mistake


def open_dropped(folder: Path) -> tuple[list[Source], list[str]]:
    """Open everything in a folder of dropped files.

    Returns
    -------
    sources : list of Source
    problems : list of str
        A sentence on each thing that cannot be opened.
    """
    entries = sorted(folder.iterdir())
    mappings = [path for path in entries if path.suffix.lower() == ".toml"]
    entries = [path for path in entries if path not in mappings]
    tensors = [path for path in entries if path.is_file() and path.suffix.lower() in ONE_TENSOR]
    together = f"{len(tensors)} files"  # what a dump is called whose folder is not known
    if len(tensors) > 1:
        (folder / together).mkdir(exist_ok=True)
        for path in tensors:
            path.rename(folder / together / path.name)
        entries = [folder / together, *(path for path in entries if path not in tensors)]
    sources: list[Source] = []
    problems: list[str] = []
    for path in entries:
        own = [mapping for mapping in mappings if mapping.stem == path.stem]
        try:
            sources += open_sources(path, (own or mappings or [None])[0])
        except WorkbenchError as error:
            found, others = _open_each(path, folder)
            sources += found
            problems += others
            if not found or path.name == together:  # else it is a folder of runs, and no dump
                problems.append(_sentence(path, error, folder))
    if mappings and not entries:
        problems.append(f"{mappings[0].name} is a mapping; drop it together with the dump that it describes")
    for source in sources:
        if "source" in source.trace.attrs:
            source.trace.attrs["source"] = source.name  # the temporary folder is removed
    return sources, problems


def _open_each(path: Path, folder: Path) -> tuple[list[Source], list[str]]:
    """Open the files of a folder that is no dump, such as traces and sounds; nothing for a file."""
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else []
    sources: list[Source] = []
    problems: list[str] = []
    for each in files[:MAX_FILES]:
        try:
            sources += open_sources(each)
        except WorkbenchError as error:
            problems.append(_sentence(each, error, folder))
    if len(files) > MAX_FILES:
        problems.append(f"{path.name} has {len(files)} files; the first {MAX_FILES} were opened")
    return sources, problems


def _sentence(path: Path, error: WorkbenchError, folder: Path) -> str:
    """Return why something cannot be opened, without the temporary folder's name."""
    text = first_sentence(error).replace(f"{folder}/", "").replace(str(folder), "")
    return text if path.name in text else f"{path.name}: {text}"
