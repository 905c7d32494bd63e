"""The three steps: calibration, choice of codecs, quantization."""

from pqnet.pipeline.agreement import Agreement as Agreement
from pqnet.pipeline.calibrate import calibrate as calibrate
from pqnet.pipeline.calibrate import statistics_of_inputs as statistics_of_inputs
from pqnet.pipeline.compress import Compressed as Compressed
from pqnet.pipeline.compress import Try as Try
from pqnet.pipeline.compress import compress as compress
from pqnet.pipeline.evaluate import run_dask as run_dask
from pqnet.pipeline.evaluate import run_many as run_many
from pqnet.pipeline.plan import Plan as Plan
from pqnet.pipeline.plan import measure as measure
from pqnet.pipeline.plan import plan as plan
from pqnet.pipeline.presets import PRESETS as PRESETS
from pqnet.pipeline.quantize import quantize as quantize
from pqnet.pipeline.recipe import Recipe as Recipe
from pqnet.pipeline.recipe import resolve_recipe as resolve_recipe
from pqnet.pipeline.statistics import Statistics as Statistics
from pqnet.pipeline.statistics import load_statistics as load_statistics
from pqnet.pipeline.target import FileSizes as FileSizes
from pqnet.pipeline.target import parse_size as parse_size
