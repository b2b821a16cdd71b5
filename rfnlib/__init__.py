"""rfnlib: train, attack and measure surrogates for transferable adversarial examples."""

import os

# A thread of torch's OpenMP pool that waits for work spins by default, and keeps the core from
# whatever else runs: beside one other busy process a training step took ten times as long on two
# cores. Sleeping instead costs nothing measurable. It is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
