"""ONNX files as backbones: computed by onnxruntime, cut off after the layer that is kept."""
