"""The network as an ONNX file that needs nothing around it: photo in, probability out, both of the photo's own size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carvana.files import write_file
from carvana.segmenter import Segmenter

CHECK_SIZES = [
    (320, 480),
    (1280, 1918),
    (480, 320),
    (641, 959),
    (333, 500),
    (97, 131),
    (1080, 1920),
    (720, 720),
    (1600, 1200),
    (200, 900),
]
MAX_DIFFERENCE = 1e-4  # largest, of a probability
MIN_AGREEMENT = 0.9999  # fraction of the pixels with the same mask


class PhotoToProbability(nn.Module):
    """What `Segmenter` does to a photo, as one graph: resize, pad, network, crop, upsample.

    Args:
        segmenter: Its network is used, in float32 on the CPU.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.network, self.divisor = segmenter.network, segmenter.divisor
        self.fit = segmenter.fit

    def forward(self, image: Tensor) -> Tensor:
        """Compute the probability of each pixel to belong to a car.

        Args:
            image: RGB photo (height, width, 3), uint8.

        Returns:
            Probability (height, width), float32 in [0, 1].
        """
        native_height, native_width = image.shape[0], image.shape[1]
        height, width = self.fit(native_height, native_width)
        rows = resizing_matrix(native_height, height, self.pad(height))
        columns = resizing_matrix(native_width, width, self.pad(width))
        photo = image.permute(2, 0, 1).float()
        small = rows @ photo @ columns.T
        logits = self.network(small[None] / 255)[:, :, :height, :width]
        return F.interpolate(logits, (native_height, native_width), mode="bilinear", align_corners=False)[
            0, 0
        ].sigmoid()

    def pad(self, side):
        """Round up to a multiple of the divisor, dividing no negative number: ONNX rounds those towards zero."""
        return (side + self.divisor - 1) // self.divisor * self.divisor


def resizing_matrix(n_from, n_to, n_padded) -> Tensor:
    """Write a resize of one axis as a matrix (n_padded, n_from), float32.

    It does what `pictures.area_average` does, then repeats the border's pixels.
    Each new pixel is the mean of the area that it covers; where there are more new pixels than old ones, they are
    interpolated.
    """
    # In float64: at pixel 1918 a float32 knows its place only to 1/8192 of a pixel.
    new, old = torch.arange(n_padded).clamp(max=n_to - 1).double()[:, None], torch.arange(n_from).double()[None]
    ratio = torch.scalar_tensor(n_from, dtype=torch.float64) / n_to
    overlap = (torch.minimum((new + 1) * ratio, old + 1) - torch.maximum(new * ratio, old)).clamp(min=0) / ratio
    middle = ((new + 0.5) * ratio - 0.5).clamp(min=0, max=n_from - 1)
    nearness = (1 - (middle - old).abs()).clamp(min=0)
    return torch.where(ratio >= 1, overlap, nearness).float()


def export_network(weights: Path, path: Path) -> int:
    """Write the ONNX file, compare it with PyTorch, and keep it only if both agree.

    Args:
        weights: .safetensors.
        path: The .onnx file.

    Raises:
        RuntimeError: If a package is missing, or the file does not agree with PyTorch.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx needs it
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} must be installed to export. Run `pip install -r requirements-export.txt`."
        ) from None

    segmenter = Segmenter(weights, "cpu", precision="float32")
    module = PhotoToProbability(segmenter).eval()
    size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        module,
        (torch.zeros(333, 500, 3, dtype=torch.uint8),),
        dynamo=True,
        dynamic_shapes=(size,),
        input_names=["image"],
        output_names=["probability"],
        verbose=False,
    )
    model = program.model_proto
    description = "image, uint8 (height, width, 3) RGB -> probability, float32 (height, width)"
    onnx.helper.set_model_props(model, dict(threshold=str(segmenter.threshold), description=description))
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    compare(session, module, segmenter)
    write_file(path, content)
    print(f"{path}: {len(content) / 1e6:.1f} MB; {description}")
    return 0


@torch.inference_mode()
def compare(session, module: PhotoToProbability, segmenter: Segmenter) -> None:
    """Compare ONNX runtime with PyTorch on photos of ten sizes, and print the largest difference.

    Raises:
        RuntimeError: If they differ too much.
    """
    rng = np.random.default_rng(0)
    difference, n_same, n_same_command, n_pixels = 0.0, 0, 0, 0
    for height, width in CHECK_SIZES:
        # Patches of colour with some noise: edges at which the network has to decide.
        patches = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 8)).astype(np.float32))
        noise = torch.from_numpy(rng.normal(0, 8, (height, width, 3)).astype(np.float32))
        photo = F.interpolate(patches, (height, width), mode="bicubic")[0].permute(1, 2, 0) + noise
        photo = photo.clamp(0, 255).to(torch.uint8).contiguous()
        ours = module(photo).numpy()
        theirs = session.run(None, {"image": photo.numpy()})[0]
        if theirs.shape != (height, width) or theirs.dtype != np.float32:
            raise RuntimeError(
                f"the exported network must give float32 {(height, width)}, got {theirs.dtype} {theirs.shape}."
            )
        difference = max(difference, float(np.abs(ours - theirs).max()))
        mask = theirs > segmenter.threshold
        n_same += np.count_nonzero(mask == (ours > segmenter.threshold))
        n_same_command += np.count_nonzero(mask == (segmenter(photo.numpy()) > segmenter.threshold))
        n_pixels += mask.size
    same, same_command = n_same / n_pixels, n_same_command / n_pixels
    print(
        f"checked on {len(CHECK_SIZES)} sizes: largest difference in probability {difference:.1e}, "
        f"same mask for {same:.4%} of the pixels; for {same_command:.4%} the mask of predict.py in float32"
    )
    if difference >= MAX_DIFFERENCE or same < MIN_AGREEMENT:
        raise RuntimeError(
            f"the exported network must differ by less than {MAX_DIFFERENCE} from PyTorch's, "
            f"got {difference:.1e} and {same:.4%} equal pixels. The file was not written: try the versions in "
            "requirements-export.txt."
        )
