"""The operations, one family per file; importing this package fills the registry."""

from pqnet.graph.ops import activation as activation
from pqnet.graph.ops import attention as attention
from pqnet.graph.ops import conv as conv
from pqnet.graph.ops import detection as detection
from pqnet.graph.ops import elementwise as elementwise
from pqnet.graph.ops import linear as linear
from pqnet.graph.ops import norm as norm
from pqnet.graph.ops import pool as pool
from pqnet.graph.ops import recurrent as recurrent
from pqnet.graph.ops import reduce as reduce
from pqnet.graph.ops import resize as resize
from pqnet.graph.ops import scatter as scatter
from pqnet.graph.ops import shape as shape
