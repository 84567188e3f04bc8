"""Networks small enough to be exported in a second, one a task."""

import torch
from torch import nn


class TinyNet(nn.Module):
    """Every kind of layer that INT8 treats differently: plain, depthwise and pointwise convolutions, a residual add."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3), keepdim=True).flatten(1))


class TinyBoxes(nn.Module):
    """A detector of two boxes a cell of a 6 × 8 grid, of three classes."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.head = nn.Conv2d(16, 2 * 8, 3, 2, 1)

    def raw_outputs(self, x):
        return self.head(torch.relu(self.stem(x)))

    def decode(self, raw):
        numbers = raw.unflatten(1, (2, 8)).permute(0, 3, 4, 1, 2)
        height, width = numbers.shape[1:3]
        x = (numbers[..., 0].sigmoid() + torch.arange(width)[:, None]) / width
        y = (numbers[..., 1].sigmoid() + torch.arange(height)[:, None, None]) / height
        center, half = torch.stack([x, y], -1), numbers[..., 2:4].exp() * 0.15
        scores = numbers[..., 4:5].sigmoid() * (4 * numbers[..., 5:]).softmax(-1)
        return torch.cat([center - half, center + half], -1).clamp(0, 1).flatten(1, 3), scores.flatten(1, 3)


class TinySegmenter(nn.Module):
    """Scores of three classes at half the size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)))
