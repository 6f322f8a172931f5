"""Packages of torch.export (.pt2), as torch.export.save writes them: a network's operations and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from segserve.engines.base import TensorSpec, TorchNetwork, without_paths
from segserve.errors import BadInputError
from segserve.models.backends import archive_records
from segserve.models.formats.one_output import OneOutput
from segserve.models.formats.opened import Opened
from segserve.models.metadata import KNOWN, read_metadata
from segserve.models.trust import trusted_file

COMPILED = "data/aotinductor/"
FORMAT = "archive_format"
MODES = ("train", "training")  # what operations that differ while a network is trained call that argument


def open_exported(path: Path, trusted: Sequence[Path]) -> Opened:
    """Read an exported network. Its metadata are the package's extra files of the names in `KNOWN`.

    Args:
        path: the package.
        trusted: folders whose files may be run whoever owns them.

    Raises:
        NotTrustedError: the file may not be run.
        BadInputError: it is no exported network that can be read, was exported for training, or takes several inputs.
    """
    real = trusted_file(path, trusted)
    _refuse_others(path.name, archive_records(real))
    texts = dict.fromkeys(KNOWN, "")
    try:
        with real.open("rb") as stream:
            program = torch.export.load(stream, extra_files=texts)
    except Exception as error:  # a damaged file raises any of them
        raise BadInputError(
            f"{path.name} cannot be read as a package of torch.export ({without_paths(str(error).partition('.')[0])}): "
            f"export the network again, with the server's version of torch ({torch.__version__}) or an older one."
        ) from error
    _refuse_training(program, path)
    spec = _input(program, path)
    return Opened(
        network=TorchNetwork(OneOutput(program.module().float())),
        shape=spec.shape,
        described=str(spec),
        metadata=read_metadata({key: text for key, text in texts.items() if text}),
        files=[real],
    )


def _refuse_others(name: str, inside: Sequence[str]) -> None:
    """Refuse what torch would report on for pages, and machine code, which it would run."""
    if any(record.startswith(COMPILED) for record in inside):
        raise BadInputError(
            f"{name} holds machine code that AOTInductor compiled: save the network with torch.export.save."
        )
    if FORMAT not in inside:
        raise BadInputError(
            f"{name} is not a package of torch.export: save the network with torch.export.save, "
            f"or name the backend_type that it is of."
        )


def _refuse_training(program: torch.export.ExportedProgram, path: Path) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
        if any(given.get(mode) is True for mode in MODES):
            raise BadInputError(
                f"{path.name} was exported for training: call the network's eval() before exporting it."
            )


def _input(program: torch.export.ExportedProgram, path: Path) -> TensorSpec:
    """The network's one input."""
    names = program.graph_signature.user_inputs
    tensors = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or not isinstance(tensors[0], torch.Tensor):
        raise BadInputError(f"The network in {path.name} has {len(names)} inputs; one tensor is expected.")
    shape = tuple(size if isinstance(size, int) else None for size in tensors[0].shape)
    return TensorSpec((str(names[0]),), str(tensors[0].dtype).removeprefix("torch."), shape)
