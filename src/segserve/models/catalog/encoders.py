"""The encoders that the catalogue lists. Others of the same libraries can be trained too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGENET = ("imagenet",)
HISTOLOGY = ("histology",)
TORCHVISION = "MIT (torchvision)"
LUNIT = "Non-commercial (Lunit)"
TISSUE = ("histopathology", "high_accuracy", "tissue_classification")


@dataclass(frozen=True)
class Encoder:
    """One encoder as the catalogue lists it.

    Attributes:
        base: the network it is; differs from `name` where only the weights are special.
        hub_id: the Hugging Face repository of its weights, in timm's format; None where the library knows.
    """

    name: str
    display_name: str
    family: str
    params_millions: float
    pretrained_weights: tuple[str, ...]
    license: str
    recommended_for: tuple[str, ...]
    hub_id: str | None = None

    @property
    def base(self) -> str:
        """The network behind the name."""
        return "resnet50" if self.hub_id else self.name

    @property
    def histology(self) -> bool:
        """True if its weights were learnt on tissue."""
        return self.pretrained_weights == HISTOLOGY

    def wire(self) -> dict[str, Any]:
        """The entry as the protocol sends it."""
        return {
            "name": self.name,
            "display_name": self.display_name,
            "family": self.family,
            "params_millions": self.params_millions,
            "pretrained_weights": list(self.pretrained_weights),
            "license": self.license,
            "recommended_for": list(self.recommended_for),
        }


def _imagenet(name: str, display: str, family: str, millions: float, licence: str, *uses: str) -> Encoder:
    return Encoder(name, display, family, millions, IMAGENET, licence, uses)


def _histology(name: str, display: str, licence: str, hub_id: str, uses: tuple[str, ...]) -> Encoder:
    return Encoder(name, f"{display} (Histology)", "resnet", 25.6, HISTOLOGY, licence, uses, hub_id)


ENCODERS = (
    _imagenet("resnet18", "ResNet-18", "resnet", 11.7, TORCHVISION, "small_datasets", "fast_inference"),
    _imagenet("resnet34", "ResNet-34", "resnet", 21.8, TORCHVISION, "general_purpose", "balanced"),
    _imagenet("resnet50", "ResNet-50", "resnet", 25.6, TORCHVISION, "large_datasets", "high_accuracy"),
    _histology("resnet50_lunit-swav", "ResNet-50 Lunit SwAV", LUNIT, "1aurent/resnet50.lunit_swav", TISSUE),
    _histology("resnet50_lunit-bt", "ResNet-50 Lunit Barlow Twins", LUNIT, "1aurent/resnet50.lunit_bt", TISSUE),
    _histology(
        "resnet50_kather100k",
        "ResNet-50 Kather100K",
        "CC-BY-4.0",
        "1aurent/resnet50.tiatoolbox-kather100k",
        ("histopathology", "colorectal", "tissue_classification"),
    ),
    _histology(
        "resnet50_tcga-brca",
        "ResNet-50 TCGA-BRCA",
        "GPLv3",
        "1aurent/resnet50.tcga_brca_simclr",
        ("histopathology", "breast_cancer", "tissue_classification"),
    ),
    _imagenet("resnet101", "ResNet-101", "resnet", 44.5, TORCHVISION, "very_large_datasets"),
    _imagenet("efficientnet-b0", "EfficientNet-B0", "efficientnet", 5.3, "Apache 2.0", "efficient", "mobile"),
    _imagenet("efficientnet-b3", "EfficientNet-B3", "efficientnet", 12.0, "Apache 2.0", "balanced", "efficient"),
    _imagenet("efficientnet-b4", "EfficientNet-B4", "efficientnet", 19.0, "Apache 2.0", "high_accuracy", "efficient"),
    _imagenet("se_resnet50", "SE-ResNet-50", "se_resnet", 28.1, "MIT", "attention", "histopathology"),
    _imagenet("densenet121", "DenseNet-121", "densenet", 8.0, "BSD", "feature_reuse", "small_objects"),
    _imagenet("densenet169", "DenseNet-169", "densenet", 14.1, "BSD", "feature_reuse"),
    _imagenet("mobilenet_v2", "MobileNet-V2", "mobilenet", 3.5, "Apache 2.0", "mobile", "fast_inference", "low_memory"),
    _imagenet("vgg16_bn", "VGG-16 (BatchNorm)", "vgg", 138.4, TORCHVISION, "texture", "histopathology"),
)
BY_NAME = {entry.name: entry for entry in ENCODERS}


def find_encoder(name: str) -> Encoder | None:
    """The catalogue's entry of this name; None for an encoder that it does not list."""
    return BY_NAME.get(name)
