"""Train the denoiser of the tests, tests/networks/skff_unet.py, on photographs in scikit-image's wheel: on one thread.

    python tools/train_denoiser.py [--steps 1500]

Photographs of ``HELD_OUT`` are not trained on. Prints the PSNR before and after on those, and writes the weights as float16,
which are the numbers that the tests load: 110 kB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from skdeploy.images.dataset import photographs
from tests.networks.denoising import HELD_OUT, noisy_pairs
from tests.networks.skff_unet import SIGMA, WEIGHTS, SKFFUNet

SIDE: Final = 48  # pixels of a patch
BATCH: Final = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    pictures = [
        np.asarray(Image.open(file).convert("RGB"), np.float32) / np.float32(255)
        for file in photographs().files
        if file.name not in HELD_OUT
    ]
    network = SKFFUNet()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, asked.steps)
    for step in range(asked.steps):
        clean = torch.from_numpy(np.stack([patch(pictures, random) for _ in range(BATCH)]))
        noisy = clean + torch.randn_like(clean) * SIGMA / 255
        noisy = (noisy.clamp(0, 1) * 255).round() / 255  # as a camera writes it, and an image file holds it
        loss = torch.nn.functional.mse_loss(network(noisy), clean)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {-10 * np.log10(loss.item()):.2f} dB", flush=True)
    halves = {name: tensor.half().float() for name, tensor in network.state_dict().items()}
    network.load_state_dict(halves)
    save_file({name: tensor.half().contiguous() for name, tensor in halves.items()}, asked.output)
    noisy_images, clean_images = noisy_pairs(16)
    with torch.inference_mode():
        planes = torch.from_numpy(noisy_images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        restored = 255 * network.eval()(planes).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
    before, after = (psnr(images, clean_images) for images in (noisy_images, restored))
    print(f"{len(clean_images)} held-out crops: noisy {before:.2f} dB, restored {after:.2f} dB; {asked.output}")


def patch(pictures: list[NDArray[np.float32]], random: np.random.Generator) -> NDArray[np.float32]:
    """A random patch, (3, SIDE, SIDE), turned and mirrored at random."""
    picture = pictures[random.integers(len(pictures))]
    top, left = (random.integers(side - SIDE + 1) for side in picture.shape[:2])
    found = np.rot90(picture[top : top + SIDE, left : left + SIDE], int(random.integers(4)))
    found = found[:, ::-1] if random.integers(2) else found
    return np.ascontiguousarray(found.transpose(2, 0, 1))


def psnr(found: NDArray[Any], clean: NDArray[Any]) -> float:
    """The mean over images of their PSNR."""
    errors = ((found.astype(np.float64) - clean) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))


if __name__ == "__main__":
    main()
