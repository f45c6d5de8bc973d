"""An SK-UNet, trained on shapes that are drawn on photographs.

A U-Net (Ronneberger, Fischer and Brox, 2015) whose convolutions are selective kernel ones, as SK-UNet has them (Byra et al.,
"Breast mass segmentation in ultrasound with selective kernel U-Net convolutional neural network", 2020): of two branches, one
with dilation, a gate chooses for each channel.

``python -m tests.networks.sk_unet`` trains it again, in some minutes on one core, and writes the weights beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

from skdeploy.images.dataset import photographs

WEIGHTS: Final = Path(__file__).with_suffix(".safetensors")
SIZE: Final = 48  # pixels a side, a multiple of 4: the U goes down twice
CLASSES: Final = ("background", "disc", "square", "triangle")
STEPS: Final = 400


class SelectiveKernel(nn.Module):
    """Two branches of 3x3, one with dilation 2, and a softmax over them for each channel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(out), nn.ReLU()
            )
            for d in (1, 2)
        )
        hidden = max(out // 2, 8)
        self.fuse = nn.Sequential(nn.Conv2d(out, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.select = nn.ModuleList(nn.Conv2d(hidden, out, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.branches], 1)
        fused = self.fuse(maps.sum(1).mean((2, 3), keepdim=True))
        weights = torch.softmax(torch.stack([layer(fused) for layer in self.select], 1), 1)
        return (maps * weights).sum(1)


class SKUNet(nn.Module):
    """(N, 3, H, W) to logits (N, classes, H, W), H and W multiples of 4."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [SelectiveKernel(3, width), SelectiveKernel(width, 2 * width), SelectiveKernel(2 * width, 4 * width)]
        )
        self.widen = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), nn.ConvTranspose2d(2 * width, width, 2, stride=2)]
        )
        self.up = nn.ModuleList([SelectiveKernel(4 * width, 2 * width), SelectiveKernel(2 * width, width)])
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](max_pool2d(first, 2))
        third = self.down[2](max_pool2d(second, 2))
        second = self.up[0](torch.cat([self.widen[0](third), second], 1))
        first = self.up[1](torch.cat([self.widen[1](second), first], 1))
        logits: Tensor = self.head(first)
        return logits


def trained() -> nn.Module:
    """The network with the weights of this folder."""
    network = SKUNet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def drawn(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crops of photographs with up to three shapes on each, uint8 (N, H, W, 3), and the class of each pixel, (N, H, W)."""
    random = np.random.default_rng(seed)
    files = photographs().files
    pictures, masks = [], []
    for _ in range(count):
        picture = Image.open(files[random.integers(len(files))]).convert("RGB").resize((2 * SIZE, 2 * SIZE))
        left, top = random.integers(0, SIZE, 2)
        picture, mask = picture.crop((left, top, left + SIZE, top + SIZE)), Image.new("L", (SIZE, SIZE))
        for _ in range(random.integers(1, 4)):
            kind, radius = int(random.integers(1, 4)), int(random.integers(5, 12))
            x, y = (int(place) for place in random.integers(radius, SIZE - radius, 2))
            for image, colour in ((picture, tuple(map(int, random.integers(0, 256, 3)))), (mask, kind)):
                _draw(ImageDraw.Draw(image), kind, x, y, radius, colour)
        pictures.append(np.asarray(picture))
        masks.append(np.asarray(mask))
    return np.stack(pictures), np.stack(masks)


def _draw(draw: ImageDraw.ImageDraw, kind: int, x: int, y: int, radius: int, colour: tuple[int, ...] | int) -> None:
    corners = (x - radius, y - radius, x + radius, y + radius)
    if kind == 1:
        draw.ellipse(corners, fill=colour)
    elif kind == 2:
        draw.rectangle(corners, fill=colour)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)


def save_images(folder: Path, count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures as files, and the masks that go with them, (N, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, masks = drawn(count, seed)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04}.png")
    return masks


def inputs_of(pictures: NDArray[np.uint8]) -> Tensor:
    """As the card normalises them: (p / 255 - 0.5) / 0.5."""
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def train(steps: int = STEPS) -> SKUNet:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = SKUNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        pictures, masks = drawn(16, seed=step)
        loss = cross_entropy(network(inputs_of(pictures)), torch.from_numpy(masks).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


CARD: Final = f"""schema = 1
name = "sk-unet"
summary = "SK-UNet on shapes drawn on photographs"
task = "segmentation"
[network]
family = "module"
[input]
channels = 3
height = {SIZE}
width = {SIZE}
[preprocess]
resize = {SIZE}
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[source]
paper = "Byra et al., 2020"
url = "https://example.invalid"
licence = "MIT"
[tolerance]
"""


if __name__ == "__main__":
    found = train()
    save_file({name: tensor.contiguous() for name, tensor in found.state_dict().items()}, WEIGHTS)
    unseen, truth = drawn(64, seed=10_000_000)
    with torch.inference_mode():
        agree = found(inputs_of(unseen)).argmax(1).numpy() == truth
    print(
        f"{sum(p.numel() for p in found.parameters()):,} parameters; {agree.mean():.2%} of the pixels of unseen pictures"
    )
