"""ONNX: files that become models, and models that become files."""

from pqnet_converters.onnx.from_onnx import from_onnx as from_onnx
from pqnet_converters.onnx.to_onnx import to_onnx as to_onnx
