"""A checkpoint's weights put into a network."""

from __future__ import annotations

import torch

from segserve.errors import BadInputError, by
from segserve.models.formats.checkpoint import SHOWN, State

PREFIX = "backbone."


def fit(network: torch.nn.Module, state: State, *, strict: bool) -> list[str]:
    """Put weights into a network, converted to the types that it keeps them in.

    Args:
        network: gets the weights.
        state: of the network, or of a larger model whose `backbone` it is.
        strict: refuse weights that are not exactly the network's.

    Returns:
        What did not fit, in words; nothing of it if `strict`.

    Raises:
        BadInputError: names, and shapes, of what does not fit; or the network itself refuses the weights.
    """
    own = network.state_dict()
    given = _of_backbone(state, set(own))
    shaped = {name: given[name] for name in own if name in given and given[name].shape != own[name].shape}
    fitting = {name: value for name, value in given.items() if name not in shaped}
    try:
        result = network.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise BadInputError("The config's network refuses the checkpoint's weights.") from error
    missing = [name for name in result.missing_keys if name not in shaped]
    others = [f"{name} is {_size(value)} instead of {_size(own[name])}" for name, value in shaped.items()]
    problems = [
        _listed(missing, f"of the network's {len(own)} tensors are missing in the checkpoint"),
        _listed(result.unexpected_keys, "of the checkpoint's tensors are not in the network"),
        _listed(others, "have another shape"),
    ]
    complaints = [problem for problem in problems if problem]
    if complaints and strict:
        raise BadInputError(
            f"The checkpoint does not fit the config: {'; '.join(complaints)}. Send the config that it was trained "
            f"with, or strict: false to load what fits."
        )
    return [f"The checkpoint does not fit the config, and was loaded in part: {one}." for one in complaints]


def _of_backbone(state: State, names: set[str]) -> State:
    if names <= set(state) or not any(name.startswith(PREFIX) for name in state):
        return state
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def _listed(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _size(tensor: torch.Tensor) -> str:
    return by(tensor.shape) or "one number"
