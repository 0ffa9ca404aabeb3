"""The ONNX file: any size, the same probabilities as PyTorch, and no file at all when they differ."""

import sys
from types import SimpleNamespace

import numpy as np
import predict
import pytest
import torch
from carvana.export import export_network
from carvana.segmenter import Segmenter
from carvana.weights import load_network
from red_network import draw_photo, need, save_random_weights, save_weights_for

need("onnx", "onnxscript", "onnxruntime", requirements="requirements-export.txt")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random_weights(tmp_path_factory.mktemp("weights") / "random.safetensors")


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "unet.onnx"
    assert predict.main(["--export", str(path), "--weights", str(weights)]) == 0
    return path


@pytest.mark.parametrize(
    "size", [(32, 48), (64, 96), (48, 32), (33, 47), (1, 1), (5, 300), (300, 5), (200, 301), (17, 20), (641, 959)]
)
def test_file_gives_the_probability_of_the_python_interface_for_any_size(exported, weights, size):
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    segmenter = Segmenter(weights, "cpu", precision="float32")
    noise = np.random.default_rng(0).normal(0, 10, (*size, 3))
    photo = (draw_photo(size[1], size[0]) + noise).clip(0, 255).astype(np.uint8)
    theirs, ours = session.run(["probability"], {"image": photo})[0], segmenter(photo)
    assert theirs.shape == size and theirs.dtype == np.float32
    assert np.ptp(ours) > 0.05 or min(size) < 10  # or they would agree on nothing
    assert np.abs(theirs - ours).max() < 1e-4
    assert ((theirs > 0.45) == (ours > 0.45)).mean() >= 0.9999


def test_file_says_what_it_is(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    properties = {property.key: property.value for property in model.metadata_props}
    assert float(properties["threshold"]) == 0.45 and "(height, width, 3)" in properties["description"]
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["probability"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_a_file_that_differs_is_not_written(exported, weights, tmp_path, monkeypatch):
    other = load_network(weights)[0]
    other.head.bias += 0.5
    other_weights = save_weights_for(tmp_path / "other.safetensors", other, 48, 32, 0.45)
    model = SimpleNamespace(model_proto=onnx.load(exported))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **keywords: model)
    refusal = "must differ by less than 0.0001 from predict.py in float32, got .* The file was not written"
    with pytest.raises(RuntimeError, match=refusal):
        export_network(other_weights, tmp_path / "unet.onnx")
    assert not (tmp_path / "unet.onnx").exists()


def test_missing_package_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    advice = "onnxruntime must be installed to export. Run `pip install -r requirements-export.txt`."
    with pytest.raises(RuntimeError, match=advice):
        export_network(weights, tmp_path / "unet.onnx")
