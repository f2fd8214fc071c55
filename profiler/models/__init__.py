"""ONNX models in memory."""
