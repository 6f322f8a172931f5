"""What a client asks of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segserve.errors import BadInputError
from segserve.training.spec import TrainingSpec


@dataclass(frozen=True)
class DataRequest:
    """The part of a training request that the data must fit.

    Attributes:
        data_path: the training folder, on the server's machine.
        classes: their names; the order gives their numbers in the masks.
        num_channels: bands of an image the network sees, those of the context not counted.
        channel_names: of these bands.
        context_scale: above 1, the wider view is laid behind the patch's own bands.
        validation_split: the part of the patches that is held out where `validation/` is empty.
        seed: of the draw of these patches.
    """

    data_path: str
    classes: list[str]
    num_channels: int
    channel_names: list[str] | None = None
    context_scale: int = 1
    validation_split: float = 0.2
    seed: int = 0

    @classmethod
    def of(cls, spec: TrainingSpec) -> DataRequest:
        """The part of a training that its data must fit."""
        return cls(
            data_path=spec.data_path,
            classes=spec.classes,
            num_channels=spec.input_config.num_channels,
            channel_names=spec.input_config.channel_names or None,
            context_scale=spec.architecture.context_scale,
            validation_split=spec.training.validation_split,
            seed=spec.training.seed,
        )

    @property
    def has_context(self) -> bool:
        """True if wider views are used."""
        return self.context_scale > 1


def data_folder(request: DataRequest) -> Path:
    """The training folder.

    Raises:
        BadInputError: the path is relative or leads to no folder.
    """
    path = Path(request.data_path)
    hint = "data_path is a path on the machine that the server runs on, seen from there"
    try:
        if path.is_absolute() and path.is_dir():
            return path
    except (OSError, ValueError):  # such as a name that is too long, or holds a zero byte
        pass
    what = "is not a folder" if path.is_absolute() else "is not an absolute path there"
    raise BadInputError(f"{request.data_path[:500]} {what}: {hint}.")
