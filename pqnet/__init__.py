"""pqnet: networks made 10-40x smaller by quantizing blocks of weights, and run from their codes on a CPU."""

from pqnet.codecs import PQ as PQ
from pqnet.codecs import Additive as Additive
from pqnet.codecs import Fixed as Fixed
from pqnet.codecs import IntN as IntN
from pqnet.codecs import Packed as Packed
from pqnet.codecs import PackedPQ as PackedPQ
from pqnet.codecs import Scalar as Scalar
from pqnet.codecs import Sparse as Sparse
from pqnet.errors import ConfigError as ConfigError
from pqnet.errors import FormatError as FormatError
from pqnet.errors import PQNetError as PQNetError
from pqnet.errors import UnsupportedOpError as UnsupportedOpError
from pqnet.fit import KMeansResult as KMeansResult
from pqnet.fit import assign as assign
from pqnet.fit import weighted_kmeans as weighted_kmeans
from pqnet.pipeline import Recipe as Recipe
from pqnet.pipeline import Statistics as Statistics
from pqnet.pipeline import calibrate as calibrate
from pqnet.pipeline import load_statistics as load_statistics
from pqnet.pipeline import plan as plan
from pqnet.pipeline import quantize as quantize
from pqnet.runtime import Model as Model
from pqnet.runtime import conv2d as conv2d
from pqnet.runtime import embedding as embedding
from pqnet.runtime import linear as linear
from pqnet.runtime import load as load

__version__ = "0.1.0"
