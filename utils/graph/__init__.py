"""A network as a list of functions, and its readers: read functions first, then onnx_nodes."""
