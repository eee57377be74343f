"""From a float graph to an integer model: calibration, folding, the quantiser, searches, fidelity."""

from stepwell.quantize.driver import check_window, in_mode, quantize

__all__ = ["check_window", "in_mode", "quantize"]
