"""The command line: ``pqnet convert | compress | calibrate | plan | quantize | train | run | inspect | verify | demo``."""
