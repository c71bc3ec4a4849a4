"""The numbers of the network's formulas, which the kernels fold into their code.

`cips_fast.reference` states the formulas with the same numbers; a test compares the two. Importing this module needs
neither Triton nor a GPU.
"""

import math

LRELU_SLOPE = 0.2  # lrelu(v) = v for v > 0, else 0.2 v
LRELU_GAIN = math.sqrt(2)  # the activation is √2 lrelu(v)
DEMODULATION_EPS = 1e-8  # d = 1/√(Σ v² + 1e-8)
INVERSE_SQRT_2 = 0.7071067811865476  # a residual block is (y + x)/√2
