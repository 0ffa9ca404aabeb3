"""The network as an ONNX file that needs nothing around it: photo in, probability out, both of the photo's own size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carvana.files import PROJECT_DIR, write_file
from carvana.pictures import area_average, load_image
from carvana.segmenter import Segmenter

SAMPLE = PROJECT_DIR / "assets/sample-car.jpg"  # a synthetic car
CHECK_HEIGHTS = 320, 1280, 480, 641, 333, 97, 1080, 720, 1600, 200
CHECK_WIDTHS = 480, 1918, 320, 959, 500, 131, 1920, 720, 1200, 900
MAX_DIFFERENCE = 1e-4  # largest, of a probability
MIN_AGREEMENT = 0.9999  # fraction of the pixels with the same mask


class PhotoToProbability(nn.Module):
    """What `Segmenter` does to a photo, as one graph in float32: resize, pad, network, crop, upsample."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.network, self.divisor = segmenter.network, segmenter.divisor
        self.fit = segmenter.fit

    def forward(self, image: Tensor) -> Tensor:
        """Turn an RGB photo (height, width, 3), uint8, into probabilities (height, width), float32."""
        native_height, native_width = image.shape[0], image.shape[1]
        height, width = self.fit(native_height, native_width)
        rows = resizing_matrix(native_height, height, self.pad(height))
        columns = resizing_matrix(native_width, width, self.pad(width))
        photo = image.permute(2, 0, 1).float()
        small = rows @ photo @ columns.T
        logits = self.network(small[None] / 255)[:, :, :height, :width]
        size = native_height, native_width
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0].sigmoid()

    def pad(self, side):
        """Round up to a multiple of the divisor, dividing no negative number: ONNX rounds those towards zero."""
        return (side + self.divisor - 1) // self.divisor * self.divisor


def resizing_matrix(n_from, n_to, n_padded) -> Tensor:
    """Write a resize of one axis as a matrix (n_padded, n_from), float32.

    It does what `pictures.area_average` does, then repeats the border's pixels: each new pixel is the mean of the area
    that it covers, or interpolated where there are more new pixels than old ones.
    """
    # In float64: at pixel 1918 a float32 knows its place only to 1/8192 of a pixel.
    new, old = torch.arange(n_padded).clamp(max=n_to - 1).double()[:, None], torch.arange(n_from).double()[None]
    ratio = torch.scalar_tensor(n_from, dtype=torch.float64) / n_to
    overlap = (torch.minimum((new + 1) * ratio, old + 1) - torch.maximum(new * ratio, old)).clamp(min=0) / ratio
    middle = ((new + 0.5) * ratio - 0.5).clamp(min=0, max=n_from - 1)
    nearness = (1 - (middle - old).abs()).clamp(min=0)
    return torch.where(ratio >= 1, overlap, nearness).float()


def export_network(weights: Path, path: Path) -> int:
    """Make an .onnx file of .safetensors weights; write it only if it agrees with `Segmenter`.

    Raises:
        RuntimeError: If a package is missing, or the two do not agree.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx needs it
    except ModuleNotFoundError as error:
        advice = "Run `pip install -r requirements-export.txt`."
        raise RuntimeError(f"{error.name} must be installed to export. {advice}") from None
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
    compare(session, segmenter)
    write_file(path, content)
    print(f"{path}: {len(content) / 1e6:.1f} MB; {description}")
    return 0


def compare(session, segmenter: Segmenter) -> None:
    """Compare ONNX runtime with `segmenter` on a photo at ten sizes; raise a RuntimeError if they differ too much."""
    sample = load_image(SAMPLE)
    difference, n_same, n_pixels = 0.0, 0, 0
    for height, width in zip(CHECK_HEIGHTS, CHECK_WIDTHS):
        photo = area_average(sample, width, height)
        ours, theirs = segmenter(photo), session.run(None, {"image": photo})[0]
        difference = max(difference, float(np.abs(ours - theirs).max()))
        n_same += np.count_nonzero((ours > segmenter.threshold) == (theirs > segmenter.threshold))
        n_pixels += ours.size
    same = n_same / n_pixels
    got = f"{difference:.1e} in probability at most, the same mask for {same:.4%} of the pixels"
    print(f"difference from predict.py in float32 on {len(CHECK_HEIGHTS)} sizes: {got}")
    if difference >= MAX_DIFFERENCE or same < MIN_AGREEMENT:
        raise RuntimeError(
            f"the exported network must differ by less than {MAX_DIFFERENCE} from predict.py in float32, got {got}. "
            "The file was not written: try the versions in requirements-export.txt."
        )
