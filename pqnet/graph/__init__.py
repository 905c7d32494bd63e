"""Networks as plain data: `Graph`, `Node`, the operations with their shape rules and NumPy meaning, and rewrites."""

from pqnet.graph import ops as ops
from pqnet.graph.graph import Graph as Graph
from pqnet.graph.graph import GraphBuilder as GraphBuilder
from pqnet.graph.graph import Node as Node
from pqnet.graph.graph import ValueInfo as ValueInfo
from pqnet.graph.layers import WeightOp as WeightOp
from pqnet.graph.layers import weight_op as weight_op
from pqnet.graph.op import OPS as OPS
from pqnet.graph.op import Info as Info
