"""Which files of a training folder belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from segserve.errors import BadInputError, some

SUFFIXES = (".tiff", ".tif", ".png", ".jpg", ".jpeg", ".raw")
RANK = {".tiff": 0, ".tif": 1, ".png": 2, ".jpg": 3, ".jpeg": 3, ".raw": 4}
EXPECTED = "a training folder holds train/images and train/masks, and validation/ likewise"


@dataclass(frozen=True)
class Pair:
    """One patch: its image, its mask, the wider view around it, and its name below the folder."""

    image: Path
    mask: Path
    context: Path | None
    name: str

    @property
    def mask_name(self) -> str:
        """The mask's name below the folder."""
        return f"{self.name.split('/')[0]}/masks/{self.mask.name}"

    @property
    def context_name(self) -> str:
        """The context's name below the folder."""
        return f"{self.name.split('/')[0]}/context/{self.image.name}"


@dataclass(frozen=True)
class Layout:
    """All patches: those to train on, those to validate on, and what was odd."""

    train: list[Pair]
    validation: list[Pair]
    warnings: list[str] = field(default_factory=list)


def find(root: Path, *, context: bool) -> Layout:
    """Pair the images of a training folder with their masks.

    Args:
        root: the folder; it exists.
        context: look for wider views in `context/` too.

    Raises:
        BadInputError: there are no images to train on, two of one name, or an image without a mask.
    """
    warnings: list[str] = []
    train = _part(root, "train", warnings, context=context)
    if not train:
        raise BadInputError(
            f"There are no images ({', '.join(SUFFIXES)}) in {root / 'train' / 'images'}: {EXPECTED}; export again."
        )
    return Layout(train, _part(root, "validation", warnings, context=context), warnings)


def _part(root: Path, part: str, warnings: list[str], *, context: bool) -> list[Pair]:
    found = _files(root / part / "images")
    images = sorted(
        (file for file in found if file.suffix.lower() in RANK), key=lambda file: (RANK[file.suffix.lower()], file.name)
    )
    others = [file for file in found if file.suffix.lower() not in RANK]
    if others:
        warnings.append(f"{_some(f'{part}/images', others)} not images of a known kind and are left out.")
    _check_unique(images, part)
    masks = {file.stem: file for file in _files(root / part / "masks") if file.suffix.lower() == ".png"}
    contexts = {file.name: file for file in _files(root / part / "context")} if context else {}
    pairs = []
    for image in images:
        name = f"{part}/images/{image.name}"
        if image.stem not in masks:
            raise BadInputError(f"{name} has no mask: {part}/masks/{image.stem}.png is missing; export again.")
        pairs.append(Pair(image, masks[image.stem], contexts.get(image.name), name))
    stems = {image.stem for image in images}
    orphans = [mask for stem, mask in masks.items() if stem not in stems]
    if orphans:
        warnings.append(f"{_some(f'{part}/masks', orphans)} without an image and are left out.")
    if context:
        _warn_of_missing_context(pairs, part, warnings)
    return pairs


def _check_unique(images: Iterable[Path], part: str) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        twin = seen.setdefault(image.stem, image)
        if twin is not image:
            raise BadInputError(
                f"{part}/images holds both {twin.name} and {image.name}, which would share one mask: "
                "remove one of them."
            )


def _warn_of_missing_context(pairs: list[Pair], part: str, warnings: list[str]) -> None:
    missing = [pair for pair in pairs if pair.context is None]
    if missing and len(missing) == len(pairs):
        warnings.append(f"{part}/context is missing: the patches themselves stand in for the wider view.")
    elif missing:
        which = _some(f"{part}/context", [pair.image for pair in missing])
        warnings.append(f"{which} missing: the patches themselves stand in for the wider view there.")


def _files(folder: Path) -> list[Path]:
    """The visible files, by name; none if there is no such folder."""
    try:
        return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        place = f"{folder.parent.name}/{folder.name}"
        raise BadInputError(f"The server cannot list {place} ({error.strerror}): let it read the folder.") from error


def _some(place: str, files: list[Path]) -> str:
    return f"In {place}, {some([file.name for file in files], 3)} {'is' if len(files) == 1 else 'are'}"
