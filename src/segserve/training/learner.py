"""A network with its optimiser on one device: a step, a look, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from segserve.errors import BadInputError
from segserve.training.augment import augment
from segserve.training.device import Place
from segserve.training.loss import training_loss
from segserve.training.network.freeze import Frozen
from segserve.training.spec import UNLABELLED, Hyperparameters


class Learner:
    """Moves a network's weights."""

    def __init__(
        self,
        network: nn.Module,
        hyper: Hyperparameters,
        place: Place,
        frozen: Frozen,
        class_weights: list[float] | None,
    ) -> None:
        """Put a network on its device.

        Args:
            network: trained in place.
            hyper: how.
            place: where, and in which precision.
            frozen: what of it stays as it is.
            class_weights: one for each class; None: all alike.
        """
        self._network = network
        self._hyper = hyper
        self._place = place
        self._frozen = frozen
        devices: list[int] | int = [int(place.device.partition(":")[2])] if place.kind == "cuda" else 1
        self._fabric = Fabric(accelerator=place.kind, devices=devices, precision=place.precision)
        network = network.to(memory_format=torch.channels_last)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kind = torch.optim.Adam if hyper.optimizer == "adam" else torch.optim.AdamW
        fused = place.kind != "mps" and place.precision != "16-mixed"
        optimizer = kind(trained, lr=hyper.learning_rate, weight_decay=hyper.weight_decay, fused=fused)
        model, wrapped = self._fabric.setup(network, optimizer)
        self._model, self._optimizer = cast("nn.Module", model), cast("torch.optim.Optimizer", wrapped)
        self._weights = (
            None
            if class_weights is None
            else torch.tensor(class_weights, dtype=torch.float32, device=self._fabric.device)
        )

    def start(self) -> None:
        """Make ready for steps; to be called again after anything else was done with the network."""
        self._model.train()
        self._frozen.hold()

    def step(self, images: Tensor, masks: Tensor, *, epoch: int, batch: int, rate: float) -> float | None:
        """Learn from a batch.

        Args:
            images: (N, C, H, W) float32, normalised to about 0 to 1.
            masks: (N, H, W) int64, class numbers and 255 where unlabelled.
            epoch: number of the running epoch, from 0.
            batch: of this batch in it, from 0.
            rate: the learning rate.

        Returns:
            The loss before the step; None where there was nothing to learn from.

        Raises:
            BadInputError: the loss is no number.
        """
        hyper, seed = self._hyper, _seed(self._hyper.seed, epoch, batch)
        torch.manual_seed(seed)  # for dropout
        images, masks = self._moved(images), masks.to(self._fabric.device)
        if hyper.augmentation:
            images, masks = augment(images, masks, seed)
        if not bool((masks != UNLABELLED).any()):
            return None  # Adam would drift on its momentum
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss = training_loss(hyper.loss_function, self._model(images), masks, self._weights)
        value = float(loss.detach())
        self._refuse_divergence(value, epoch)
        self._fabric.backward(loss)
        if hyper.gradient_clip:
            self._fabric.clip_gradients(
                self._model, self._optimizer, max_norm=hyper.gradient_clip, error_if_nonfinite=False
            )
        self._optimizer.step()
        return value

    def run(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 from anywhere to logits (N, K, H, W) on the device, in the mode the network is in."""
        logits: Tensor = self._model(self._moved(images))
        return logits

    def look(self, images: Tensor, masks: Tensor, *, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run the network, in evaluation mode, on a batch as `step` takes it.

        Returns:
            Logits (N, K, H, W), the masks, both on the device, and the loss.

        Raises:
            BadInputError: the loss is no number.
        """
        target = masks.to(self._fabric.device)
        logits = self.run(images)
        loss = training_loss(self._hyper.loss_function, logits, target, self._weights)
        self._refuse_divergence(float(loss), epoch)
        return logits, target, loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the network."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: `network`, and what `state` gave. The weight decay is the one asked for now."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["weight_decay"] = self._hyper.weight_decay
        if state["precision"]:  # empty unless it had a scaler
            self._fabric.strategy.precision.load_state_dict(state["precision"])

    def give_memory_back(self) -> None:
        """Let others have what the device's allocator keeps for later."""
        if self._place.kind == "cuda":
            torch.cuda.empty_cache()
        elif self._place.kind == "mps":
            torch.mps.empty_cache()

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self._fabric.device, memory_format=torch.channels_last)

    def _refuse_divergence(self, loss: float, epoch: int) -> None:
        if math.isfinite(loss):
            return
        rate = self._hyper.learning_rate
        raise BadInputError(
            f"The training diverged in epoch {epoch + 1}: its loss is no longer a number. "
            f"Lower the learning rate (it is {rate:g}; try {rate / 10:g}), "
            f"and if that does not help, switch mixed_precision off."
        )


def _seed(seed: int, epoch: int, batch: int) -> int:
    """The seed of one batch: of nothing but these three numbers."""
    return int(np.random.SeedSequence((seed, epoch, batch)).generate_state(1, np.uint32)[0])
