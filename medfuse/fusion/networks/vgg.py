"""VGG19 up to relu3_1: what a network that was trained to recognise things sees in an image.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1, E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Mean and standard deviation of ImageNet that the two published sets of weights expect; RGB, grey levels 0-255.
CAFFE = ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
TORCHVISION = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

#: Our name → the convolution's place in torchvision's `features`. Each relu follows its convolution.
PLACES = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10}
#: Tensors of conv3_4, which VGG19 has and VGG16, of the same shapes up to conv3_3, has not.
TORCHVISION_WITNESS, KERAS_WITNESS = "features.16.weight", "block3_conv4_kernel"


class Vgg19(nn.Module):
    """The first five convolutions, frozen; 555,328 parameters, any image size.

    Attributes:
        mean: (3,), subtracted from the image; RGB, grey levels 0-255.
        std: (3,), by which it is then divided. With `mean` it belongs to the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv1_2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2_1 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv2_2 = nn.Conv2d(128, 128, 3, padding=1)
        self.conv3_1 = nn.Conv2d(128, 256, 3, padding=1)
        for name, values in zip(("mean", "std"), CAFFE, strict=True):
            self.register_buffer(name, torch.tensor(values))
        self.requires_grad_(False)

    @property
    def unit(self) -> Tensor:
        """Grey levels to one unit of the first convolution's input; features are about as large as their input."""
        return self.std.mean()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of a luminance, taken for grey.

        Args:
            image: (N, 1, H, W) in [0, 1].

        Returns:
            relu1_1 (N, 64, H, W), relu2_1 (N, 128, ⌈H/2⌉, ⌈W/2⌉) and relu3_1 (N, 256, ⌈H/4⌉, ⌈W/4⌉).
        """
        return self.respond((255 * image - self.mean[:, None, None]) / self.std[:, None, None])

    def respond(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of what the first convolution sees, (N, 3, H, W), as `forward` returns them."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)  # a third faster there
        relu1_1 = self.conv1_1(x).relu_()
        relu2_1 = self.conv2_1(halved(self.conv1_2(relu1_1).relu_())).relu_()
        relu3_1 = self.conv3_1(halved(self.conv2_2(relu2_1).relu_())).relu_()
        return relu1_1, relu2_1, relu3_1


def halved(x: Tensor) -> Tensor:
    """2×2 maxima; at an odd edge of what there is, so that no image is too small."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, with the mean and deviation that they expect.

    Args:
        published: torchvision's state_dict, or the Caffe values as Keras names them (input BGR); what is neither is
            returned as it is.
    """
    if TORCHVISION_WITNESS in published:
        names = {f"features.{place}.": f"{name}." for name, place in PLACES.items()}
        statistics = TORCHVISION
    elif KERAS_WITNESS in published:
        published = {key: _oriented(key, tensor) for key, tensor in published.items()}
        names = {f"block{name[4]}_conv{name[6]}_": f"{name}." for name in PLACES}
        statistics = CAFFE
    else:
        return published
    tensors = {
        names[prefix] + key[len(prefix) :].replace("kernel", "weight"): tensor
        for key, tensor in published.items()
        for prefix in names
        if key.startswith(prefix)
    }
    mean, std = (torch.tensor(values) for values in statistics)
    return tensors | {"mean": mean, "std": std}


def _oriented(key: str, tensor: Tensor) -> Tensor:
    """A kernel (height, width, in, out) as (out, in, height, width), and the first one's input from BGR to RGB."""
    kernel = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    return kernel.flip(1) if key == "block1_conv1_kernel" else kernel
