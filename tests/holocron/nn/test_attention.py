import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch.autograd import gradcheck

from holocron import nn


def random_statistics(module):
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight)
    return module.double().eval()


def test_sam_equals_formula():
    module = nn.SAM(3).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    scale = torch.sigmoid(torch.einsum("nchw,c->nhw", x, module.conv.weight.flatten()) + module.conv.bias)
    torch.testing.assert_close(module(x), x * scale.unsqueeze(1))
    assert list(module.state_dict()) == ["conv.weight", "conv.bias"]


def test_triplet_attention_equals_formula():
    torch.manual_seed(0)
    module = random_statistics(nn.TripletAttention())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros_like(x)
    for branch, dim in ((module.c_branch, 1), (module.h_branch, 2), (module.w_branch, 3)):
        _, conv, norm, _ = branch.compress
        order = {1: (1, 2, 3), 2: (2, 1, 3), 3: (3, 2, 1)}[dim]
        rotated = x.permute(0, *order)
        pooled = torch.stack([rotated.max(1).values, rotated.mean(1)], 1)
        scale = torch.sigmoid(norm(nnf.conv2d(pooled, conv.weight, padding=3)))
        expected = expected + (rotated * scale).permute(0, *order) / 3
    torch.testing.assert_close(module(x), expected)
    assert gradcheck(module, x[:1, :2, :3, :2].detach().requires_grad_())


def test_dim_attention_refuses_other_dimensions():
    with pytest.raises(ValueError, match="dim"):
        nn.DimAttention(0)


def lambda_reference(module, x, r):
    """Pixel by pixel: the lambda of each, applied to its queries."""
    batch, _, h, w = x.shape
    u, heads = module.u, module.num_heads
    q = module.norm_q(module.to_q(x)).detach().numpy().reshape(batch, heads, -1, h, w)
    k = module.to_k(x).detach().numpy().reshape(batch, -1, u, h, w)
    k = np.exp(k) / np.exp(k).sum((3, 4), keepdims=True)
    v = module.norm_v(module.to_v(x)).detach().numpy().reshape(batch, -1, u, h, w)
    out = np.zeros((batch, heads, v.shape[1], h, w))
    for b, i, j in itertools.product(range(batch), range(h), range(w)):
        total = np.einsum("kuij,vuij->kv", k[b], v[b])
        for m, n in itertools.product(range(h), range(w)):
            if r is None:
                embedding = module.pos_emb[i * w + j, m * w + n].detach().numpy()
            else:
                row, col = m - i + r // 2, n - j + r // 2
                if not (0 <= row < r and 0 <= col < r):
                    continue
                embedding = module.R[:, :, 0, row, col].detach().numpy()
            total = total + np.einsum("ku,vu->kv", embedding, v[b, :, :, m, n])
        out[b, :, :, i, j] = np.einsum("hk,kv->hv", q[b, :, :, i, j], total)
    return out.reshape(batch, -1, h, w)


@pytest.mark.parametrize(("n", "r"), [(None, 3), (None, 7), (20, None)])
@pytest.mark.parametrize(("heads", "dim_u"), [(1, 1), (2, 3)])
def test_lambda_layer_equals_formula(n, r, heads, dim_u):
    torch.manual_seed(0)
    module = random_statistics(nn.LambdaLayer(3, 4, 5, n=n, r=r, num_heads=heads, dim_u=dim_u))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(module(x).detach().numpy(), lambda_reference(module, x, r), rtol=1e-8, atol=1e-10)


def test_lambda_layer_gradient():
    module = random_statistics(nn.LambdaLayer(2, 2, 2, r=3, num_heads=1))
    assert gradcheck(module, torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True))


def test_lambda_layer_is_traced_without_loops():
    def count(channels, size):
        module = nn.LambdaLayer(channels, channels, 4, r=3).eval()
        return len(torch.export.export(module, (torch.randn(1, channels, size, size),)).graph.nodes)

    assert count(4, 4) == count(8, 9)


def test_lambda_layer_refuses():
    for kwargs in ({"out_channels": 6, "r": 3}, {"r": 4}, {}):
        with pytest.raises(AssertionError):
            nn.LambdaLayer(**{"in_channels": 4, "out_channels": 8, "dim_k": 2, **kwargs})
    with pytest.raises(ValueError, match="pixels"):
        nn.LambdaLayer(4, 8, 2, n=16)(torch.randn(2, 4, 5, 5))


def test_lambda_layer_state():
    shared = ["to_q.weight", "to_k.weight", "to_v.weight"]
    local = nn.LambdaLayer(4, 8, 2, r=3, dim_u=2).state_dict()
    assert local["R"].shape == (2, 2, 1, 3, 3)
    assert nn.LambdaLayer(4, 8, 2, n=9).state_dict()["pos_emb"].shape == (9, 9, 2, 1)
    assert set(shared) < set(local)
