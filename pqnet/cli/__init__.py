"""The command line: ``pqnet convert | compress | calibrate | plan | quantize | train | run`` and more, see `pqnet -h`."""
