"""Optimizers for PyTorch modules, each written from its paper, and wrappers around optimizers.

All of them are :class:`torch.optim.Optimizer`, and work with parameter groups, closures, learning rate schedulers,
gradient scalers and checkpoints. What holds for every optimizer here, and is set per parameter group:

- `foreach`: whether to update lists of tensors at once instead of one tensor after the other. The default, None, does
  so for plain tensors on a CPU, a CUDA or an XPU device, and pays off with many small tensors. Lists are cut so that
  the temporaries, a few times the size of a list, stay small: a list holds up to 2^17 elements (one tensor, if it is
  larger) on a CPU, and 2^26 on an accelerator. False selects the plain implementation, whose temporaries are a few
  times the largest tensor; both give the same numbers up to rounding.
- `maximize`: ascend instead of descend.
- Parameters in float16 or bfloat16 have their state, and are updated, in float32; float64 stays float64.
- Sparse and complex gradients are refused with a `RuntimeError`, before any parameter is touched. Parameters without a
  gradient are left alone.

Options of all groups are set through the parameters: `LAMB([{"params": model.parameters(), "maximize": True}])`.
"""

from holocron.optim import wrapper
from holocron.optim.adabelief import AdaBelief
from holocron.optim.adamp import AdamP
from holocron.optim.adan import Adan
from holocron.optim.ademamix import AdEMAMix
from holocron.optim.lamb import LAMB
from holocron.optim.lars import LARS
from holocron.optim.ralars import RaLars
from holocron.optim.tadam import TAdam

__all__ = ["LAMB", "LARS", "AdEMAMix", "AdaBelief", "AdamP", "Adan", "RaLars", "TAdam", "wrapper"]
