"""How ONNX operations become pqnet's: one rule each, one family per file; importing this registers them."""

from pqnet_converters.onnx.registry import RULES as RULES
from pqnet_converters.onnx.registry import rule as rule
from pqnet_converters.onnx.rules import activation as activation
from pqnet_converters.onnx.rules import attention as attention
from pqnet_converters.onnx.rules import control as control
from pqnet_converters.onnx.rules import detection as detection
from pqnet_converters.onnx.rules import elementwise as elementwise
from pqnet_converters.onnx.rules import index as index
from pqnet_converters.onnx.rules import layers as layers
from pqnet_converters.onnx.rules import norm as norm
from pqnet_converters.onnx.rules import pool as pool
from pqnet_converters.onnx.rules import quantized as quantized
from pqnet_converters.onnx.rules import recurrent as recurrent
from pqnet_converters.onnx.rules import reduce as reduce
from pqnet_converters.onnx.rules import resize as resize
from pqnet_converters.onnx.rules import shape as shape
