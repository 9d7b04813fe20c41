"""Engines that compute a network: torch compiled, OpenVINO, onnxruntime; which of them does, and what a machine keeps."""
