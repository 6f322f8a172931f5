"""Checkpoints: the weights in them, whatever else was saved with those, and nothing of it run."""

from __future__ import annotations

import re
import stat
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from segserve.errors import BadInputError, SegserveError
from segserve.models.formats import inert_pickle
from segserve.models.names import SAFETENSORS

ZIP = b"PK\x03\x04"  # as torch tells its own zip files
WRAPPERS = ("state_dict", "model_state_dict", "model", "network_weights")
# What DataParallel puts before every name, and torch.compile into it.
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
SHOWN = 10

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file, dense tensors on the processor, and the names of what else is in it."""

    state: State
    left_out: list[str]


def read_state_dict(path: Path) -> State:
    """The weights of a checkpoint; see `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what `torch.save` or safetensors wrote, as weights alone.

    Args:
        path: `.safetensors`, or any file of torch.save's: a state dict, or a dictionary that holds one under
            one of `WRAPPERS`.

    Returns:
        The tensors, without the prefixes of `WRAPPED` in their names. They may lie in the file, which must stay
        as it is while they are used.

    Raises:
        BadInputError: it is no such file, or damaged, or holds no weights.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = load_file(path) if path.suffix.lower() == SAFETENSORS else _read(path)
    except SegserveError:
        raise
    except Exception as error:  # a damaged or hostile file makes the readers raise nearly anything
        raise BadInputError(
            f"The checkpoint {path.name} cannot be read: it is damaged, or neither torch.save nor safetensors wrote it."
        ) from error
    return _weights(path, content)


def write_safetensors(state: State, path: Path) -> None:
    """Write weights; the file appears whole, by rename.

    Raises:
        BadInputError: safetensors has no place for one of them.
        OSError: there is no room, or no permission.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".segserve-") as folder:
        whole = Path(folder) / path.name
        try:
            save_file(dict(_separate(state)), whole, metadata={"format": "pt"})
        except (KeyError, ValueError) as error:
            raise BadInputError(f"These weights cannot be written as safetensors: {error}.") from error
        # The library keeps others from reading its files; as they are wished for elsewhere, they are here.
        usual = Path(folder) / "usual"
        usual.touch()
        whole.chmod(stat.S_IMODE(usual.stat().st_mode))
        whole.replace(path)


def _read(path: Path) -> Any:  # noqa: ANN401  # whatever the file holds
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        _check_archive(path)
    elif tarfile.is_tarfile(path):
        raise BadInputError(
            f"The checkpoint {path.name} is a tar archive, as torch wrote them before 2017: load it in Python, where "
            f"it came from, and save its state_dict with torch.save."
        )
    return torch.load(path, map_location="cpu", pickle_module=inert_pickle, weights_only=False, mmap=zipped)


def _check_archive(path: Path) -> None:
    """Refuse what torch.load would give to another reader, and archives that are larger inside than outside."""
    with path.open("rb") as file:
        records = torch._C.PyTorchFileReader(file).get_all_records()
    for record, backend in (("constants.pkl", "torchscript"), ("archive_format", "pt2")):
        if record in records:
            raise BadInputError(
                f"{path.name} is a whole network, not a checkpoint: load it with backend_type {backend!r}, no config."
            )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BadInputError(
            f"The checkpoint {path.name} is a compressed archive: torch.save writes them uncompressed, send that file."
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise BadInputError(f"The checkpoint {path.name} is damaged: it is smaller than what it says it holds.")


def _weights(path: Path, content: object) -> Checkpoint:
    whole = content if isinstance(content, dict) else {}
    inner = next((key for key in WRAPPERS if isinstance(whole.get(key), dict) and _tensors(whole[key])), None)
    held = whole if inner is None else whole[inner]
    found = _tensors(held)
    if not found:
        keys = ", ".join(key for key in whole if isinstance(key, str))[:200]
        raise BadInputError(
            f"The checkpoint {path.name} holds no weights: {keys or 'nothing with a name'} is in it, and none of that "
            f"is a state dict. Save the network's state_dict()."
        )
    size = path.stat().st_size
    if larger := next((key for key, value in found.items() if value.nbytes > size), None):
        raise BadInputError(
            f"The checkpoint {path.name} is damaged: its tensor {larger[:200]} is larger than the file."
        )
    state = {WRAPPED.sub("", key): value.detach() for key, value in found.items()}
    if len(state) != len(found):
        raise BadInputError(f"The checkpoint {path.name} holds some tensors twice, with and without 'module.'.")
    others = [] if inner is None else [str(key) for key in whole if key != inner]
    return Checkpoint(state, [*others, *(str(key) for key in held if key not in found)])


def _tensors(held: Mapping[object, object]) -> State:
    return {
        key: value
        for key, value in held.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
    }


def _separate(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in memory of its own and in order, as safetensors wants them."""
    taken: set[int] = set()
    for name, value in state.items():
        storage = value.untyped_storage()
        alone = value.is_contiguous() and storage.nbytes() == value.nbytes and storage.data_ptr() not in taken
        taken.add(storage.data_ptr())
        yield name, value if alone else value.clone(memory_format=torch.contiguous_format)
