"""The command line: ``pqnet compress | convert | plan | quantize | train | run`` and more, see ``pqnet -h``."""
