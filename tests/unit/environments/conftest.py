"""One torch thread, as each rank has by default: more would wait for each other on a busy machine."""

import torch

torch.set_num_threads(1)
