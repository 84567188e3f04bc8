import pytest
import torch

from holocron import optim

OPTIMIZERS = {
    "LARS": (optim.LARS, {"lr": 0.05, "momentum": 0.9}),
    "LAMB": (optim.LAMB, {"lr": 0.01}),
    "RaLars": (optim.RaLars, {"lr": 0.01}),
    "TAdam": (optim.TAdam, {"lr": 0.01}),
    "AdaBelief": (optim.AdaBelief, {"lr": 0.01}),
    "AdamP": (optim.AdamP, {"lr": 0.01}),
    "Adan": (optim.Adan, {"lr": 0.01}),
    "AdEMAMix": (optim.AdEMAMix, {"lr": 0.01}),
}


@pytest.fixture(params=list(OPTIMIZERS))
def make(request):
    """A function that builds one of the optimizers: `make(params, **options)`."""
    optimizer_class, options = OPTIMIZERS[request.param]

    def build(params, **overrides):
        return optimizer_class(params, **{**options, **overrides})

    build.optimizer_class = optimizer_class
    build.options = options
    return build


@pytest.fixture
def make_params():
    """A function that draws parameters of several shapes, the second of zeros, always the same ones."""

    def build(dtype=torch.float64, device="cpu"):
        generator = torch.Generator().manual_seed(0)
        shapes = [(4, 3), (5,), (2, 3, 2, 2), (1,), ()]
        params = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        params[1].zero_()
        return [torch.nn.Parameter(param.to(dtype=dtype, device=device)) for param in params]

    return build


@pytest.fixture
def set_grads():
    """A function that gives parameters the gradients of a noisy quadratic; the noise depends on the step alone."""

    def fill(params, step):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = (0.3 * param.detach().double() + noise).to(param)

    return fill
