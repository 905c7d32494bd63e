"""How aten operations become pqnet's: one rule each, one family per file; importing this registers them."""

from pqnet_converters.torch.aten import activation as activation
from pqnet_converters.torch.aten import composite as composite
from pqnet_converters.torch.aten import create as create
from pqnet_converters.torch.aten import detection as detection
from pqnet_converters.torch.aten import elementwise as elementwise
from pqnet_converters.torch.aten import index as index
from pqnet_converters.torch.aten import layers as layers
from pqnet_converters.torch.aten import norm as norm
from pqnet_converters.torch.aten import pool as pool
from pqnet_converters.torch.aten import recurrent as recurrent
from pqnet_converters.torch.aten import reduce as reduce
from pqnet_converters.torch.aten import resize as resize
from pqnet_converters.torch.aten import shape as shape
from pqnet_converters.torch.aten.registry import RULES as RULES
from pqnet_converters.torch.aten.registry import rule as rule
