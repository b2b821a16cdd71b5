"""What holds for all tests."""

import torch

torch.set_num_threads(1)  # networks this small only lose by sharing their work, and beside other work much more
