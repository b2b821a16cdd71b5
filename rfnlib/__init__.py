"""rfnlib: train, attack and measure surrogates for transferable adversarial examples."""

import os

# A thread of torch's OpenMP pool (libgomp) that waits for work spins by default, for so long that it keeps
# the core from whatever else runs: beside one other busy process a training step took several times as
# long on two cores. Spinning for some microseconds only, then sleeping, is as fast when nothing else
# runs, on small networks too. It is read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.2.0.dev0"
