"""Holding layers as they are: names to modules, modules to weights and statistics that do not change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from segserve.errors import BadInputError
from segserve.training.network.groups import LayerGroup, layer_groups, owners

# As QuPath's own table names the parts of encoders that it does not know.
DEPTHS_BY_PART = {"encoder.layer_early": (0, 1), "encoder.layer_mid": (2,), "encoder.layer_late": (3, 4)}
BRACKETS = re.compile(r"(?P<path>[\w.]+)\[(?P<first>\d{1,6})?(?P<colon>:)?(?P<last>\d{1,6})?\]", re.ASCII)
SHOWN = 5


@dataclass(frozen=True)
class Frozen:
    """The held part of a network."""

    held: tuple[nn.Module, ...]

    def hold(self) -> None:
        """Put the held modules in evaluation mode; to be called after every `network.train()`.

        A normalisation layer in training mode would go on gathering statistics, and dropout would go on dropping,
        whether or not their weights may change.
        """
        for module in self.held:
            module.training = False


def resolve(network: nn.Module, encoder: str, names: Sequence[str]) -> list[str]:
    """What layer names stand for.

    Args:
        network: built by `build_network`, with or without memory.
        encoder: the name it was built by.
        names: groups of `layer_groups`, `encoder.layer_early|mid|late`, slices such as `encoder.features[0:7]`, or
            paths of modules.

    Returns:
        Paths of the modules that own the parameters, in the network's order.

    Raises:
        BadInputError: a name stands for nothing; the message lists those that would.
    """
    if not names:
        return []  # the groups of some encoders take a run to find out
    groups = layer_groups(network, encoder)
    owned = list(owners(network))
    chosen: set[str] = set()
    unknown = []
    for name in names:
        paths = _paths(network, groups, name)
        if paths is None:
            unknown.append(name)
            continue
        chosen.update(own for own in owned if any(_within(own, path, exact) for path, exact in paths))
    if unknown:
        shown = ", ".join(repr(name[:80]) for name in unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        valid = ", ".join(group.name for group in groups)
        raise BadInputError(f"frozen_layers names {shown}, which this network does not have; it has {valid}.")
    return [own for own in owned if own in chosen]


def freeze(network: nn.Module, encoder: str, names: Sequence[str]) -> Frozen:
    """Keep the named layers as they are: their parameters ask for no gradient.

    Raises:
        BadInputError: as `resolve`, and where nothing would be left to train.
    """
    paths = resolve(network, encoder, names)
    check_something_left(network, paths)
    for path in paths:
        for parameter in network.get_submodule(path).parameters(recurse=False):
            parameter.requires_grad = False
    return Frozen(tuple(_held(network, inherited=False)))


def check_something_left(network: nn.Module, paths: Sequence[str]) -> None:
    """Refuse to freeze a whole network.

    Raises:
        BadInputError: it would have nothing left to train.
    """
    if set(paths) >= set(owners(network)):
        raise BadInputError(
            "frozen_layers names every layer of the network, so nothing is left to train: leave at least the "
            "segmentation_head out."
        )


def _paths(network: nn.Module, groups: list[LayerGroup], name: str) -> list[tuple[str, bool]] | None:
    """Modules that a name stands for, each with whether its parts are left out; None if it stands for nothing."""
    if name in DEPTHS_BY_PART:
        depths = DEPTHS_BY_PART[name]
        return [(path, True) for group in groups if group.depth in depths for path in group.modules]
    for group in groups:
        if group.name == name:
            return [(path, True) for path in group.modules]
    modules = dict(network.named_modules())
    if name and name in modules:
        return [(name, False)]
    match = BRACKETS.fullmatch(name)
    sequence = modules.get(match["path"]) if match else None
    if match is None or not isinstance(sequence, (nn.Sequential, nn.ModuleList)):
        return None
    picked = _picked([child for child, _ in sequence.named_children()], match)
    return None if picked is None else [(f"{match['path']}.{child}", False) for child in picked]


def _picked(children: list[str], match: re.Match[str]) -> list[str] | None:
    first = int(match["first"]) if match["first"] else None
    last = int(match["last"]) if match["last"] else None
    if match["colon"]:
        # An empty slice is no mistake: EfficientNet-B0 has no blocks from the 18th on, and the client may say [18:].
        return children[first:last]
    return [children[first]] if first is not None and last is None and first < len(children) else None


def _within(owner: str, path: str, exact: bool) -> bool:
    return owner == path or (not exact and owner.startswith(f"{path}."))


def _held(module: nn.Module, *, inherited: bool) -> list[nn.Module]:
    """The modules whose parameters are all frozen; those without any go with what they are part of."""
    parameters = list(module.parameters())
    held = inherited if not parameters else not any(parameter.requires_grad for parameter in parameters)
    found = [module] if held else []
    for child in module.children():
        found += _held(child, inherited=held)
    return found
