"""How operations of graphs become ONNX's: one function each, one family per file; importing this registers them."""

from pqnet_converters.onnx.writer import detection as detection
from pqnet_converters.onnx.writer import elementwise as elementwise
from pqnet_converters.onnx.writer import layers as layers
from pqnet_converters.onnx.writer import reduce as reduce
from pqnet_converters.onnx.writer import shape as shape
from pqnet_converters.onnx.writer.writer import Writer as Writer
