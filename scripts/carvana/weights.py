"""Files of tensors, which cannot carry code; and files of weights, which say of themselves what network they are."""

import dataclasses
import hashlib
import json
from dataclasses import field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from unet import UNet, check_image_size

from carvana.files import PROJECT_DIR, write_file
from carvana.settings import settings_class


@settings_class
class Description:
    """What a file of weights says of itself."""

    image_width: int  # training size in pixels, a multiple of 2**depth
    image_height: int  # likewise
    network: dict[str, int]  # the arguments of UNet
    threshold: float = 0.5  # probability from which a pixel is car, tuned on validation cars
    max_uncertainty: float = 5.0  # in percent; warn above it, see `segmenter.measure_uncertainty`
    trained: dict = field(default_factory=dict)  # how, for people: settings, photos, versions, score card

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}.")


def write_tensors(path: Path | str, tensors: dict[str, Tensor], **header) -> None:
    """Write tensors and a header of plain values as safetensors, with a SHA-256 over both.

    Raises:
        OSError: If the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}}
    write_file(path, safetensors_bytes(tensors, metadata={**texts, "sha256": digest(tensors, texts)}))


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """Read what `write_tensors` wrote, or files that shipped before there was a SHA-256.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Train first, or name another file.")
    try:
        with safe_open(path, framework="pt") as file:  # the library has compared the header with the file's size
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if texts.pop("sha256", None) not in (None, digest(tensors, texts)):
            raise ValueError("its content does not fit its SHA-256")
        return tensors, {key: json.loads(text) for key, text in texts.items() if key != "format"}
    except (SafetensorError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a .safetensors file of this project ({error}).") from error


def digest(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    """Hash tensors, which must be contiguous and on the CPU, and texts, each by name and content."""
    sha = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def find_weights(name: Path | str) -> Path:
    """Find a file of weights by its path or its short name: `street` is checkpoints/carvana-unet-street.safetensors."""
    shipped = PROJECT_DIR / f"checkpoints/carvana-unet-{name}.safetensors"
    return shipped if not Path(name).exists() and shipped.is_file() else Path(name)


def load_network(path: Path | str) -> tuple[UNet, Description]:
    """Rebuild a network from its .safetensors file alone, which may be named by its short name, see `find_weights`.

    Returns:
        The network in float32, for prediction, on the CPU; and the file's description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its tensors do not fit the network that it describes.
    """
    path = find_weights(path)
    tensors, header = read_tensors(path)
    return build_network(path, header, tensors)


def build_network(path: Path | str, header: dict, weights: dict[str, Tensor]) -> tuple[UNet, Description]:
    """Build a network, for prediction, around the weights of a file, which are turned into float32.

    Raises:
        ValueError: If the weights are not those of the network in the header's description, or not finite.
    """
    try:
        names = {field.name for field in dataclasses.fields(Description)}
        # What else stands there is left out: files that shipped before say more.
        description = Description(**{name: value for name, value in header["description"].items() if name in names})
        with torch.device("meta"):  # takes no memory, whatever a file claims to be
            network = UNet(**description.network)
        check_image_size(description.image_height, description.image_width, 2 ** network.settings["depth"])
        shape = lambda tensor: None if tensor is None else tuple(tensor.shape)
        expected = network.state_dict()
        for name in expected | weights:
            wanted, got = shape(expected.get(name)), shape(weights.get(name))
            if wanted != got:
                raise ValueError(f"tensor {name} must have the shape {wanted}, got {got}")
            if not weights[name].isfinite().all():
                raise ValueError(f"tensor {name} must hold finite numbers")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold weights of this project ({error}). Use a file of train.py.") from error
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False), description


def save_weights(path: Path | str, network: UNet, description: Description) -> None:
    """Save a network as safetensors: convolutions in 16-bit floats, batch norm and colours in 32."""
    is_convolution = lambda name, tensor: tensor.dim() == 4 and not name.startswith("colour")
    tensors = network.state_dict().items()
    weights = {name: tensor.half() if is_convolution(name, tensor) else tensor for name, tensor in tensors}
    write_tensors(path, weights, description=dataclasses.asdict(description))
