"""Pickles read without running any of them: tensors and plain containers come to life, nothing else does.

`torch.load` takes a module like this one as its `pickle_module`. What torch itself does with a pickle's parts (storages
by name, tensors by offset and size) it still does; whatever else a pickle asks for is `INERT`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar

import torch
from torch._utils import _rebuild_tensor, _rebuild_tensor_v3


class Inert:
    """Stands for everything that is not known; can be filled like a list, a set or a dictionary, and stays empty."""

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None:
        """Forget the value."""

    def extend(self, values: object) -> None:
        """Forget the values."""

    add = append


INERT = Inert()


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> torch.Tensor:  # noqa: ANN401  # a pickle's
    tensor: torch.Tensor = _rebuild_tensor(storage, offset, size, stride)
    return tensor


def _typed_tensor(
    storage: Any,  # noqa: ANN401  # a pickle's
    offset: int,
    size: Any,  # noqa: ANN401  # a pickle's
    stride: Any,  # noqa: ANN401  # a pickle's
    _requires_grad: object,
    _hooks: object,
    dtype: torch.dtype,
    *_: object,
) -> torch.Tensor:
    tensor: torch.Tensor = _rebuild_tensor_v3(storage, offset, size, stride, False, {}, dtype)
    return tensor


def _parameter(data: object, *_: object) -> object:
    return data


def _of_type(function: object, _kind: object, arguments: tuple[object, ...], *_: object) -> object:
    return _called(function, arguments)


Known = dict[tuple[str, str], Any]
FUNCTIONS: Known = {
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): torch.Size,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch.nn.parameter", "Parameter"): _parameter,
}
# Only compared and passed on; the storage classes of other names are torch's own business, before it asks here.
VALUES: Known = {
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch", "UntypedStorage"): torch.UntypedStorage,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
}


def _called(function: object, arguments: Iterable[object]) -> object:
    known: Any = next((one for one in FUNCTIONS.values() if one is function), None)
    return known(*arguments) if known else INERT


class Unpickler(pickle._Unpickler):
    """Python's own reader with each instruction that could run code replaced.

    It is the one written in Python: the one written in C cannot be changed so, and makes a table as large as the
    highest number that a file gives to one of its objects.
    """

    # The base class's own, which its types do not tell.
    stack: list[Any]
    append: Callable[[object], None]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # as in the base class
        """What a pickle names, if it is known."""
        return FUNCTIONS.get((module, name)) or VALUES.get((module, name)) or INERT

    def get_extension(self, code: int) -> None:
        """A name by number: whatever this process may have registered, no checkpoint needs."""
        self.append(INERT)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def _new(self) -> None:
        self._reduce()

    def _new_with_keywords(self) -> None:
        self.stack.pop()
        self._reduce()

    def _instance(self) -> None:
        self.readline()
        self.readline()
        self.pop_mark()
        self.append(INERT)

    def _object(self) -> None:
        self.pop_mark()
        self.append(INERT)

    def _build(self) -> None:
        self.stack.pop()

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new,
        pickle.NEWOBJ_EX[0]: _new_with_keywords,
        pickle.INST[0]: _instance,
        pickle.OBJ[0]: _object,
        pickle.BUILD[0]: _build,
    }


def load(file: IO[bytes], **options: Any) -> Any:  # noqa: ANN401  # as pickle.load
    """Read one pickle."""
    return Unpickler(file, **options).load()
