"""What is known of a data set once it has been looked through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from segserve.errors import BadInputError
from segserve.training.data.config import ClassInfo, DataConfig, dropped_weights, usable_weights
from segserve.training.data.request import DataRequest
from segserve.training.data.split import Counts, Split

Size = tuple[int, int]


@dataclass(frozen=True)
class Summary:
    """A data set in figures.

    Attributes:
        classes: names and colours, in order.
        train, validation: how many patches.
        train_pixels, validation_pixels: labelled pixels of each class.
        sizes: (height, width, how many patches), the commonest first.
        class_weights: those in force, one for each class.
        unlabeled_index: the masks' value for pixels without a label.
        source_images: names of the slides.
        downsample: of the patches, if known.
        warnings: what the user should know.
        complete: False where time ran out before every file was looked at.
    """

    classes: list[ClassInfo]
    train: int
    validation: int
    train_pixels: list[int]
    validation_pixels: list[int]
    sizes: list[tuple[int, int, int]]
    class_weights: list[float]
    unlabeled_index: int
    source_images: list[str] = field(default_factory=list)
    downsample: float | None = None
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    def to_wire(self) -> dict[str, Any]:
        """As JSON; what is unknown is left out."""
        wire = {key: value for key, value in asdict(self).items() if value is not None}
        wire["classes"] = [
            {"index": index, "name": info.name} | ({"color": info.color} if info.color else {})
            for index, info in enumerate(self.classes)
        ]
        wire["sizes"] = [list(size) for size in self.sizes]
        return wire


def summarize(
    request: DataRequest,
    config: DataConfig,
    split: Split,
    counts: Counts,
    sizes: Iterable[Size],
    warnings: list[str],
    *,
    complete: bool,
) -> Summary:
    """Figures and warnings of a data set whose files have been checked one by one.

    Args:
        request: what is asked.
        config: what the folder says.
        split: the two sides.
        counts: (N, K) labelled pixels; zero for patches not looked at.
        sizes: of the patches looked at.
        warnings: said so far.
        complete: every patch was looked at.

    Raises:
        BadInputError: fewer than two classes have pixels to train on.
    """
    train, validation = counts[split.train].sum(axis=0), counts[split.validation].sum(axis=0)
    warnings = [*config.warnings, *warnings, *split.warnings]
    if complete:
        warnings += _absent_classes(request.classes, train.tolist(), validation.tolist())
    weights = config.class_weights
    why = usable_weights(weights, len(request.classes)) if weights is not None else None
    if why is not None:
        warnings.append(dropped_weights(why))
    return Summary(
        classes=_classes(request, config, warnings),
        train=len(split.train),
        validation=len(split.validation),
        train_pixels=train.tolist(),
        validation_pixels=validation.tolist(),
        sizes=[(*size, count) for size, count in Counter(sizes).most_common()],
        class_weights=weights if weights is not None and why is None else balanced_weights(train.tolist()),
        unlabeled_index=config.unlabeled_index,
        source_images=config.source_images,
        downsample=config.downsample,
        warnings=warnings,
        complete=complete,
    )


def balanced_weights(pixels: list[int]) -> list[float]:
    """Weights inverse to each class's labelled pixels, total / (classes x count); 1 for a class without any."""
    total = sum(pixels)
    return [total / (len(pixels) * count) if count else 1.0 for count in pixels]


def _absent_classes(names: list[str], train: list[int], validation: list[int]) -> list[str]:
    missing = [name for name, count in zip(names, train, strict=True) if not count]
    if len(names) - len(missing) < 2:
        rest = ", ".join(name for name in names if name not in missing) or "no class"
        raise BadInputError(
            f"Only {rest} has labelled pixels in the training patches: at least two classes are needed; "
            f"annotate {', '.join(missing)} and export again."
        )
    warnings = [f"No training pixel is labelled {name}: the model cannot learn it." for name in missing]
    unseen = [name for name, count in zip(names, validation, strict=True) if not count and name not in missing]
    if unseen:
        warnings.append(f"No validation pixel is labelled {', '.join(unseen)}: left out of the scores.")
    return warnings


def _classes(request: DataRequest, config: DataConfig, warnings: list[str]) -> list[ClassInfo]:
    known = config.classes or [ClassInfo(name) for name in request.classes]
    named = [info.name for info in known]
    if named != request.classes:
        warnings.append(
            f"config.json calls the classes {', '.join(named)}, the request {', '.join(request.classes)}: "
            "the request's names are used, in its order."
        )
    return [ClassInfo(name, info.color) for name, info in zip(request.classes, known, strict=True)]
