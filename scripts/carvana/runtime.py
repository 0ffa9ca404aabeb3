"""What computes the network, from photo to logits: OpenVINO on a CPU if it is installed, else PyTorch.

Both take a network with batch norm folded, see `fold_batch_norm`.
"""

import functools
import sys
import threading

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from unet import UNet


class TorchRuntime:
    """A network computed by PyTorch, on any device, in bfloat16, float16 or float32."""

    def __init__(self, network: UNet, device: torch.device, precision: torch.dtype):
        self.network = network.to(device, memory_format=torch.channels_last)
        self.device, self.precision = device, precision
        self.name = f"PyTorch {torch.__version__.partition('+')[0]}, {name_precision(precision)}"

    @torch.inference_mode()
    def __call__(self, photo: np.ndarray) -> np.ndarray:
        """Compute logits.

        Args:
            photo: RGB (height, width, 3), float32 in [0, 1]; sides are multiples of 2**depth.

        Returns:
            Logits (height, width), float32.
        """
        batch = torch.from_numpy(photo)[None].to(self.device).permute(0, 3, 1, 2)  # channels last without moving a byte
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.network(batch)
        return logits[0, 0].float().cpu().numpy()


class OpenVinoRuntime:
    """A network compiled by OpenVINO for this machine's CPU, for photos of any size, in bfloat16 or float32.

    Args:
        n_parallel: Threads that will call at the same time; the cores are shared among them.
    """

    def __init__(self, network: UNet, precision: torch.dtype, n_parallel: int = 1):
        openvino = import_openvino()
        options = dict(
            INFERENCE_PRECISION_HINT="bf16" if precision == torch.bfloat16 else "f32",
            INFERENCE_NUM_THREADS=max(n_parallel, torch.get_num_threads()),
            NUM_STREAMS=n_parallel,
            ENABLE_CPU_PINNING=False,  # two processes would be pinned to the same cores
        )
        self.compiled = openvino_core().compile_model(to_openvino(network), "CPU", options)
        # Outside the graph, where bfloat16 would round a photo's levels before the mean is subtracted: twice the error.
        mean, std = (values.flatten().cpu().double().numpy() for values in (network.colour_mean, network.colour_std))
        self.normalise = np.column_stack([np.diag(1 / std), -mean / std])
        self.requests = threading.local()  # a request holds the activations of one photo
        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}, {name_precision(precision)}"
        # The binding prepares its NumPy side at the first call: two threads that both make it can wait for each other.
        side = 2 ** len(network.contracting_path)
        self(np.zeros((side, side, 3), np.float32))

    def __call__(self, photo: np.ndarray) -> np.ndarray:
        """Compute logits, see `TorchRuntime`."""
        if not hasattr(self.requests, "own"):
            self.requests.own = self.compiled.create_infer_request()
        return self.requests.own.infer([cv2.transform(photo, self.normalise)[None]])[0][0, 0].copy()


def name_precision(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def import_openvino():
    """Import OpenVINO without its telemetry, which would report each import to Google Analytics unasked."""
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


@functools.cache
def openvino_core():
    """Create OpenVINO's core, once a process.

    With a core goes the stack that it gave to the thread's signal handlers. If another thread drops the last reference,
    as garbage collection may, the first thread is left without any, and the next signal, Ctrl-C too, is a segmentation
    fault (2026.4.1, `SigAltStackSetup`).
    """
    return import_openvino().Core()


def choose_runtime(
    network: UNet, device: torch.device, precision: torch.dtype, n_parallel: int = 1
) -> TorchRuntime | OpenVinoRuntime:
    """Choose the fastest that is there; its name says so, and why it is not OpenVINO. The network is moved."""
    runtime = TorchRuntime(network, device, precision)
    if device.type == "cpu" and precision != torch.float16:
        try:
            return OpenVinoRuntime(network, precision, n_parallel)
        except ImportError as error:
            runtime.name += f" (OpenVINO would be faster, but: {error})"
    return runtime


def fold_batch_norm(network: UNet) -> UNet:
    """Put each batch norm into the convolution before it, which gives the same logits in less time."""
    for double_conv in [*network.contracting_path, network.bottleneck, *network.expanding_path]:
        for place in (0, 3):
            double_conv[place] = fuse_conv_bn_eval(double_conv[place], double_conv[place + 1])
            double_conv[place + 1] = nn.Identity()
    return network


def to_openvino(network: UNet):
    """Write `UNet.forward` as an OpenVINO graph, from a normalised photo (1, h, w, 3) to logits (1, 1, h, w), float32.

    `openvino.convert_model` gives the same graph, but traces the network for it: 2 to 3 seconds at each start.
    """
    openvino = import_openvino()
    ops = openvino.opset13
    array = lambda tensor: tensor.detach().float().cpu().numpy()
    add_bias = lambda x, layer: ops.add(x, array(layer.bias)[:, None, None])

    def convolve(x, layer: nn.Conv2d):
        padding = layer.padding
        return add_bias(ops.convolution(x, array(layer.weight), layer.stride, padding, padding, layer.dilation), layer)

    def convolve_twice(x, double_conv):
        first, _, _, second, _, _ = double_conv
        return ops.relu(convolve(ops.relu(convolve(x, first)), second))

    image = ops.parameter([1, -1, -1, 3], np.float32, "image")
    x = ops.transpose(image, np.array([0, 3, 1, 2]))
    skips = []
    for double_conv in network.contracting_path:
        skips.append(convolve_twice(x, double_conv))
        x = ops.max_pool(skips[-1], [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
    x = convolve_twice(x, network.bottleneck)
    for up_convolution, double_conv in zip(network.up_convolutions, network.expanding_path):
        up = ops.convolution_backprop_data(x, array(up_convolution.weight), up_convolution.stride)
        x = convolve_twice(ops.concat([skips.pop(), add_bias(up, up_convolution)], axis=1), double_conv)
    return openvino.Model([convolve(x, network.head)], [image])
