# %% [markdown]
# # A frozen CNN that sees each image once
#
# The head of a classifier of handwritten digits is trained on the features of a frozen CNN. The features of an image
# are computed in the first epoch, and read from the disk in all later ones, in later runs as well.
#
#     scripts/with-python python python/examples/images.py [FOLDER]
#
# The file is a script, and its cells run in Jupyter and VS Code.

# %%
from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

import tensorcask as tc

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
DIGITS = HERE.parents[1] / "examples" / "data" / "optdigits.csv"
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
torch.manual_seed(0)

# %% [markdown]
# ## The data: 1,797 real digits
#
# A line has 64 grey values and the digit. Images are enlarged to 3 × 64 × 64, as a CNN of photographs expects. A
# sample has an id that does not change between runs: its line.


# %%
def load() -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.tensor([[int(number) for number in line.split(",")] for line in DIGITS.read_text().splitlines()])
    grey = numbers[:, :64].reshape(-1, 1, 8, 8) / 16.0
    return torch.nn.functional.interpolate(grey, size=64, mode="bilinear").expand(-1, 3, -1, -1), numbers[:, 64]


images, digits = load()
ids = torch.arange(len(images))
train, test = ids[:1200], ids[1200:]
print(f"{len(images)} images of shape {list(images.shape[1:])}")

# %% [markdown]
# ## The frozen backbone
#
# A residual network as in torchvision. Its weights are random, as nothing is downloaded here; the features of random
# filters are good enough for digits.


# %%
class Block(torch.nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(channels, outputs, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU(),
            torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
        )
        self.shortcut = torch.nn.Conv2d(channels, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


class ResNet(torch.nn.Module):
    """Images ``[n, 3, 64, 64]`` to features ``[n, 1024]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 7, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))
        self.blocks = torch.nn.Sequential(Block(32, 64, 1), Block(64, 64, 1), Block(64, 64, 2))
        self.pool = torch.nn.AdaptiveAvgPool2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(self.blocks(self.stem(images))).flatten(1)


# `cache` takes a frozen module. The result is a module again, which takes its place in a model.
backbone = ResNet().eval().requires_grad_(False)
cached = tc.cache(backbone, folder, module_id="digits-resnet")

# %% [markdown]
# ## Training the head
#
# The loop is the usual one. A sample is found by its id; without `ids`, it would be found by its content.


# %%
class Classifier(torch.nn.Module):
    def __init__(self, features: torch.nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(1024), torch.nn.Linear(1024, 10))

    def forward(self, x: torch.Tensor, **key: object) -> torch.Tensor:
        return self.head(self.features(x, **key))


def train_epochs(model: Classifier, count: int, with_ids: bool) -> list[float]:
    """Seconds of each epoch."""
    torch.manual_seed(1)
    model.head.apply(lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=3e-3)
    seconds = []
    for _epoch in range(count):
        begin_s = time.perf_counter()
        for batch in train[torch.randperm(len(train))].split(100):
            logits = model(images[batch], ids=batch) if with_ids else model(images[batch])
            loss = torch.nn.functional.cross_entropy(logits, digits[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin_s)
    return seconds


model = Classifier(cached)
epochs = train_epochs(model, 8, with_ids=True)
stats = cached.end_epoch()
best_s = min(epochs[1:])
print(f"epoch 1: {epochs[0]:.2f} s; epochs 2 to 8: {best_s:.4f} s: {epochs[0] / best_s:.0f} times as fast")
print(f"{stats['misses']} images were computed, {stats['hits']} were found")

# %% [markdown]
# ## The same accuracy


# %%
def accuracy(model: Classifier, **key: object) -> float:
    with torch.no_grad():
        return float((model(images[test], **key).argmax(1) == digits[test]).float().mean())


with_cache = accuracy(model, ids=test)
direct = Classifier(backbone)
direct.head = model.head
without_cache = accuracy(direct)
print(f"accuracy on {len(test)} images: {100 * with_cache:.2f} % with the cache, {100 * without_cache:.2f} % without")
assert with_cache == without_cache

# %% [markdown]
# ## Augmentations
#
# A variant is a number that belongs to the key. Here, variant 1 is the image shifted to the right.

# %%
shifted = images.roll(4, dims=3)
features = [cached(shifted[:200], ids=ids[:200], variant=1) for _ in range(2)]
assert torch.equal(*features) and not torch.equal(features[0], cached(images[:200], ids=ids[:200]))
print(f"variant 1: {cached.end_epoch()['misses']} computed")

# %% [markdown]
# ## Is the backbone deterministic?
#
# A share of the hits is computed again and compared. A difference would be an error.

# %%
cached.verify(share=0.05)
cached(images[:600], ids=ids[:600])
print(f"{cached.end_epoch()['verified']} of 600 hits were verified")
cached.verify(None)

# %% [markdown]
# ## The next run
#
# A new handle finds everything on disk. One changed weight makes other features, so these are computed.

# %%
cached.close()
with tc.cache(backbone, folder, module_id="digits-resnet") as cached:
    cached(images[:1200], ids=ids[:1200])
    print(f"reopened: {cached.stats()['misses']} of 1200 computed")
    backbone.stem[0].bias[0] += 1
    cached(images[:10], ids=ids[:10])
    print(f"another weight: {cached.stats()['misses']} of 10 computed; {cached.why_miss(1100)}")
