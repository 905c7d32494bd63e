"""How nodes become steps: one file a family of operations, registered by `builder.lowers`."""

from pqnet.runtime.lower import attention as attention
from pqnet.runtime.lower import axis as axis
from pqnet.runtime.lower import copy as copy
from pqnet.runtime.lower import detection as detection
from pqnet.runtime.lower import elementwise as elementwise
from pqnet.runtime.lower import embedding as embedding
from pqnet.runtime.lower import gather as gather
from pqnet.runtime.lower import layers as layers
from pqnet.runtime.lower import matmul as matmul
from pqnet.runtime.lower import norm as norm
from pqnet.runtime.lower import pool as pool
from pqnet.runtime.lower import recurrent as recurrent
from pqnet.runtime.lower import reduce as reduce
from pqnet.runtime.lower import resize as resize
from pqnet.runtime.lower import running as running
from pqnet.runtime.lower import shape as shape
from pqnet.runtime.lower import transposed as transposed
from pqnet.runtime.lower import typed as typed
from pqnet.runtime.lower import volumes as volumes
