"""Published checkpoints, one file for each format."""

from pqnet_converters.checkpoints.kill_the_bits import from_kill_the_bits as from_kill_the_bits
from pqnet_converters.checkpoints.pqf import from_pqf as from_pqf
