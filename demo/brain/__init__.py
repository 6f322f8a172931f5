"""An ONNX network and an ITKIT model segment a real brain over HTTP."""
