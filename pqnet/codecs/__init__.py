"""What is stored: layouts of blocks, bit packing and the codecs."""

from pqnet.codecs.additive import Additive as Additive
from pqnet.codecs.additive import PackedAdditive as PackedAdditive
from pqnet.codecs.base import CODECS as CODECS
from pqnet.codecs.base import FITTERS as FITTERS
from pqnet.codecs.base import PACKED as PACKED
from pqnet.codecs.base import Codec as Codec
from pqnet.codecs.base import Fit as Fit
from pqnet.codecs.base import Packed as Packed
from pqnet.codecs.base import StoredSize as StoredSize
from pqnet.codecs.base import codec_from_attrs as codec_from_attrs
from pqnet.codecs.decoding import Decoding as Decoding
from pqnet.codecs.decoding import Entries as Entries
from pqnet.codecs.decoding import EntryLists as EntryLists
from pqnet.codecs.decoding import Lookup as Lookup
from pqnet.codecs.fixed import Fixed as Fixed
from pqnet.codecs.intn import IntN as IntN
from pqnet.codecs.pq import PQ as PQ
from pqnet.codecs.pq import PackedPQ as PackedPQ
from pqnet.codecs.scalar import PackedScalar as PackedScalar
from pqnet.codecs.scalar import Scalar as Scalar
from pqnet.codecs.scalar import ScalarCodec as ScalarCodec
from pqnet.codecs.sparse import PackedSparse as PackedSparse
from pqnet.codecs.sparse import Sparse as Sparse
