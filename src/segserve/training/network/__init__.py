"""Networks: building them, their layers, freezing, and pretrained weights."""
