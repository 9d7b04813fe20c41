"""onnxruntime as an engine: networks exported to ONNX by torch."""
