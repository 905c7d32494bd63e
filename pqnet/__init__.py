"""pqnet: networks made 10-40x smaller by quantizing blocks of weights, and run from their codes on a CPU.

What loads and runs networks is imported at once, what makes them small when it is first asked for.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pqnet.codecs import CODECS, FITTERS, Fit
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
from pqnet.io import diff as diff
from pqnet.io import patch as patch
from pqnet.io import sign as sign
from pqnet.runtime import Decoder as Decoder
from pqnet.runtime import Model as Model
from pqnet.runtime import conv2d as conv2d
from pqnet.runtime import embedding as embedding
from pqnet.runtime import linear as linear
from pqnet.runtime import load as load

if TYPE_CHECKING:
    from pqnet.fit import KMeansResult as KMeansResult
    from pqnet.fit import assign as assign
    from pqnet.fit import weighted_kmeans as weighted_kmeans
    from pqnet.pipeline import Recipe as Recipe
    from pqnet.pipeline import Statistics as Statistics
    from pqnet.pipeline import load_statistics as load_statistics
    from pqnet.pipeline.calibrate import calibrate as calibrate
    from pqnet.pipeline.compress import compress as compress
    from pqnet.pipeline.plan import plan as plan
    from pqnet.pipeline.quantize import quantize as quantize
    from pqnet.processing import ImageInput as ImageInput
    from pqnet.processing import TextInput as TextInput
    from pqnet.processing import likeliest as likeliest
    from pqnet.processing import prepare as prepare
    from pqnet.processing import with_processing as with_processing
    from pqnet.report.page import write_report as write_report

__version__ = "0.1.0"

_FIT = ("KMeansResult", "assign", "weighted_kmeans")
_PIPELINE = ("Recipe", "Statistics", "calibrate", "compress", "load_statistics", "plan", "quantize")
_PROCESSING = ("ImageInput", "TextInput", "likeliest", "prepare", "with_processing")
_REPORT = ("write_report",)

__all__ = [
    *("PQ", "Additive", "Fixed", "IntN", "Packed", "PackedPQ", "Scalar", "Sparse"),
    *("ConfigError", "FormatError", "PQNetError", "UnsupportedOpError"),
    *("Decoder", "Model", "conv2d", "embedding", "linear", "load"),
    *("diff", "patch", "sign"),
    *_FIT,
    *_PIPELINE,
    *_PROCESSING,
    *_REPORT,
]


_LATER = {"fit": _FIT, "pipeline": _PIPELINE, "processing": _PROCESSING, "report": _REPORT}  # imported when first used


def _home(name: str) -> ModuleType | None:
    """Import the part that a name is or comes from; None if it is none of those that are imported later."""
    if name in ("fit", *_LATER["fit"]):
        import pqnet.fit as fit

        return fit
    if name in ("pipeline", *_LATER["pipeline"]):
        import pqnet.pipeline as pipeline

        return pipeline
    if name in ("processing", *_LATER["processing"]):
        import pqnet.processing as processing

        return processing
    if name in ("report", *_LATER["report"]):
        import pqnet.report as report

        return report
    return None


if not TYPE_CHECKING:  # type checkers know the names above, and find a mistake in any other

    def __getattr__(name: str) -> Any:
        home = _home(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return home if name in _LATER else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *(name for names in _LATER.values() for name in names)})


def _fit(codec: Any, weight: Any, metric: Any = None, warm: Any = None, seed: int = 0, **options: Any) -> Fit:
    """Load `pqnet.fit`, which puts a function for every codec in this one's place, and call the codec's."""
    _home("fit")
    return FITTERS[codec.name](codec, weight, metric, warm, seed, **options)


FITTERS.update(dict.fromkeys(CODECS, _fit))
