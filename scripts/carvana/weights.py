"""A file of weights: the network's tensors, and what the file says of itself. It cannot carry code."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from unet import UNet, check_image_size

from carvana.files import PROJECT_DIR, write_file


@dataclass(frozen=True)
class Description:
    """What a file of weights says of itself."""

    image_width: int  # training size in pixels, a multiple of 2**depth
    image_height: int  # likewise
    network: dict  # the arguments of UNet
    threshold: float = 0.5  # probability from which a pixel is car, tuned on validation cars
    trained: dict = field(default_factory=dict)  # how, for people: settings, photos, versions, score card

    def __post_init__(self):
        if type(self.threshold) is not float or not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold!r}.")
        if type(self.image_width) is not int or type(self.image_height) is not int:
            raise ValueError(f"the image size must be whole numbers, got {self.image_width!r}x{self.image_height!r}.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Read what `to_json` wrote. What else stands there is left out: earlier files say more."""
        values = json.loads(text)
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})


def find_weights(name: Path | str) -> Path:
    """Find a file of weights by its path or its short name: `street` is checkpoints/carvana-unet-street.safetensors."""
    shipped = PROJECT_DIR / f"checkpoints/carvana-unet-{name}.safetensors"
    return shipped if not Path(name).exists() and shipped.is_file() else Path(name)


def load_network(path: Path | str) -> tuple[UNet, Description]:
    """Rebuild a network from its .safetensors file alone.

    Args:
        path: The file, or its short name, see `find_weights`.

    Returns:
        The network in float32, for prediction, on the CPU; and the file's description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its tensors do not fit the network that it describes.
    """
    path = find_weights(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Train first, or name another file.")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must be a .safetensors file. Use best.safetensors of a training.")
    try:
        with safe_open(path, framework="pt") as file:  # the library has compared the header with the file's size
            description = Description.from_json((file.metadata() or {})["description"])
            weights = {name: file.get_tensor(name) for name in file.keys()}
        return build_network(description, weights), description
    except (SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a file of this project's weights ({' '.join(str(error).split())[:200]}). "
            "Use a file that train.py saved."
        ) from error


def build_network(description: Description, weights: dict[str, Tensor]) -> UNet:
    """Build a network, for prediction, around its weights, which are turned into float32.

    Raises:
        ValueError: If the weights are not those of the described network, or not finite.
    """
    with torch.device("meta"):  # takes no memory, whatever a file claims to be
        network = UNet(**description.network)
    check_image_size(description.image_height, description.image_width, 2 ** network.settings["depth"])
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    got = {name: tensor.shape for name, tensor in weights.items()}
    for name in expected | got:
        if expected.get(name) != got.get(name):
            raise ValueError(f"tensor {name} must be {expected.get(name)}, got {got.get(name)}")
        if not weights[name].isfinite().all():
            raise ValueError(f"tensor {name} must hold finite numbers")
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def save_weights(path: Path | str, network: UNet, description: Description) -> None:
    """Save a network as safetensors: convolutions in 16-bit floats, batch norm and colours in 32."""
    weights = {
        name: (tensor.half() if tensor.dim() == 4 and not name.startswith("colour") else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    write_file(path, safetensors_bytes(weights, metadata={"format": "pt", "description": description.to_json()}))
