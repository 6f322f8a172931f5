"""A folder of volumes for `segserve infer`: what is to be done, and how it went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from segserve.cli.output import fail
from segserve.errors import DiskFullError, SegserveError, is_disk_full

# What a volume's name may end in, and what the name of its labels then ends in.
ENDINGS = {".nii.gz": ".nii.gz", ".nii": ".nii", ".nrrd": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}

Pair = tuple[Path, Path]


def pairs_in(images: Path, output: Path) -> list[Pair]:
    """Each volume of a folder, in the order of their names, and the file for its labels; ends the command if none is.

    Args:
        images: a folder; hidden files and folders in it are passed over.
        output: the folder for the labels, which may be missing yet.
    """
    if output.exists() and (not output.is_dir() or output.samefile(images)):
        fail(f"the output {output} must be a folder, and another one than {images}.")
    pairs: dict[Path, Path] = {}
    for image in sorted(path for path in images.iterdir() if path.is_file() and not path.name.startswith(".")):
        name = _labels_name(image.name)
        if name and output / name in pairs:
            fail(f"{pairs[output / name].name} and {image.name} would both become {name}: rename one of them.")
        if name:
            pairs[output / name] = image
    if not pairs:
        fail(f"the folder {images} holds no volume: no name in it ends in {', '.join(ENDINGS)}.")
    return [(image, labels) for labels, image in pairs.items()]


def segment_all(pairs: list[Pair], load: Callable[[], Callable[[Path, Path], None]]) -> None:
    """Segment what has no labels yet, go on after a failure, and tell how it went; exit status 1 if any failed.

    Args:
        pairs: volumes, and the files for their labels.
        load: loads the network, once, if there is anything to do; what it gives segments a volume into a file.
    """
    missing = [pair for pair in pairs if not pair[1].exists()]
    failed = _failures(load(), missing) if missing else []
    done, skipped = len(missing) - len(failed), len(pairs) - len(missing)
    names = f": {', '.join(failed)}" if failed else ""
    typer.echo(f"{done} segmented, {skipped} skipped (their labels exist), {len(failed)} failed{names}")
    if failed:
        raise typer.Exit(1)


def _failures(segment: Callable[[Path, Path], None], pairs: list[Pair]) -> list[str]:
    """Segment what can be; the names of the volumes that cannot."""
    failed: list[str] = []
    for image, labels in pairs:
        try:
            segment(image, labels)
        except Exception as error:  # whatever one volume does, the others are worth having
            failed.append(image.name)
            typer.echo(f"segserve: {image}: {sentence(error, image)}", err=True)
    return failed


def sentence(error: Exception, path: Path) -> str:
    """What went wrong, in words; `path` where the error itself names no file."""
    if isinstance(error, SegserveError):
        return error.message
    if isinstance(error, OSError):
        return DiskFullError().message if is_disk_full(error) else f"{error.filename or path}: {error.strerror}."
    return f"{type(error).__name__}: {error}"


def _labels_name(name: str) -> str | None:
    for ending, ours in ENDINGS.items():
        if name.lower().endswith(ending):
            return name if ours == ending else name[: -len(ending)] + ours
    return None
