"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----


# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----


# ---- W3: fidelity: noise is never silent ----


# ---- W4: padding='same': exact in windows, refused in carry ----


# ---- W5: check: source, float stream and integer side by side ----


# ---- W6: columns are matched by name ----


# ---- W7: csv headers of numbers ----


# ---- W8: banners and noise before a live stream ----


# ---- W9: held outputs ----


# ---- W10: hard_sigmoid by the version of Keras ----


# ---- W11: raw data into a model of scaled data ----


# ---- W12: several outputs ----


# ---- W13: hidden weights that keep few codes ----


# ---- W14: short calibration sequences ----


# ---- W15: concatenations of relu layers at 8 bits ----


# ---- W16: info's ranges by channel ----


# ---- the cases of the design folder ----
