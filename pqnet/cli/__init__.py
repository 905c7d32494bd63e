"""The command line: ``pqnet convert | calibrate | quantize | run | inspect | verify | demo``."""
