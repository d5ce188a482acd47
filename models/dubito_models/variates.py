"""Less variance from the same draws of a regression: what of a draw is known without drawing it.

*Control variate.* To first order around the mean masks mu a prediction is y(m) = y(mu) + c(m), with c = sum_i g_i (m_i -
mu_i). Whatever the gradients g, as long as they are fixed before the draws are, c has mean 0 and variance sum_i g_i^2
Var m_i. So y - c has the mean of y, and Var y is the estimate of Var y less that of Var c plus the known Var c: both
stay unbiased, and only what is not linear is left to chance (control variates with known coefficient 1; Glasserman
2003, "Monte Carlo Methods in Financial Engineering", section 4.1). Sites may be left out of c: that is a gradient of 0.

*Rao-Blackwell.* Where a network ends in dropout and a linear layer, a draw's mean and variance over the last mask are
sums, so that mask need not be drawn (Casella & Robert 1996, "Rao-Blackwellisation of sampling schemes").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dubito_models.errors import UnsupportedNetwork
from dubito_models.kernels import recur
from dubito_models.predictive import Array
from dubito_models.program import Boundary, StochasticProgram
from dubito_models.rewriting import alpha_masked, is_view, masked_attention, multiply_by_mask, spread_over_rows
from dubito_models.sites import Site
