"""An ONNX network segments a real brain over HTTP."""
