"""OpenVINO and PyTorch compute one network: the same logits at any size, in any precision, from several threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from carvana.files import PROJECT_DIR
from carvana.runtime import OpenVinoRuntime, TorchRuntime, choose_runtime, fold_batch_norm
from carvana.segmenter import Segmenter
from red_network import draw_photo, save_random_weights
from unet import UNet

CPU = torch.device("cpu")
SIZES = [(320, 480), (480, 320), (160, 240), (333, 500), (97, 131), (64, 64), (1, 1), (5, 300), (300, 5), (641, 959)]


def random_network(**settings) -> UNet:
    """Make a network whose batch norm has seen something."""
    torch.manual_seed(0)
    network = UNet(**dict(base_width=8) | settings).eval().requires_grad_(False)
    network.colour_mean.uniform_(0.3, 0.7), network.colour_std.uniform_(0.2, 0.3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1), layer.bias.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2), layer.weight.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize(
    "settings", [dict(), dict(kernel_size=5, depth=2), dict(depth=1), dict(base_width=5, depth=3), dict(kernel_size=1)]
)
def test_openvino_computes_the_logits_of_any_network_once_batch_norm_is_folded(settings):
    network, folded = random_network(**settings), fold_batch_norm(random_network(**settings))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    ours, theirs = OpenVinoRuntime(folded, torch.float32), TorchRuntime(network, CPU, torch.float32)
    for size in ((64, 96), (96, 64), (32, 32)):
        photo = draw_photo(size[1], size[0]).astype(np.float32) / 255
        wanted = theirs(photo)
        assert wanted.shape == size and wanted.dtype == np.float32
        np.testing.assert_allclose(ours(photo), wanted, atol=1e-4 * np.ptp(wanted))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_runtimes_agree_on_ten_sizes(tmp_path, monkeypatch, precision):
    """Probability within 1e-4 in float32 at most; in bfloat16, whose every layer rounds to 8 bits, within 1e-2 on
    average."""
    weights = save_random_weights(tmp_path / "random.safetensors")
    ours = Segmenter(weights, "cpu", precision=precision)
    monkeypatch.setitem(sys.modules, "openvino", None)
    exact = Segmenter(weights, "cpu", precision="float32")
    assert ours.runtime.name.startswith("OpenVINO") and exact.runtime.name.startswith("PyTorch")
    for height, width in SIZES:
        noise = np.random.default_rng(0).normal(0, 10, (height, width, 3))
        photo = (draw_photo(width, height) + noise).clip(0, 255).astype(np.uint8)
        difference = np.abs(ours(photo) - exact(photo))
        if precision == "float32":
            assert difference.max() < 1e-4
            assert ((ours(photo) > 0.45) == (exact(photo) > 0.45)).mean() >= 0.9999
        else:
            assert difference.mean() < 1e-2


def test_without_openvino_pytorch_computes_and_says_why(monkeypatch):
    network = fold_batch_norm(random_network())
    monkeypatch.setitem(sys.modules, "openvino", None)
    runtime = choose_runtime(network, CPU, torch.float32)
    assert isinstance(runtime, TorchRuntime) and "would be faster, but: import of openvino" in runtime.name


def test_several_threads_get_what_one_gets_and_a_result_outlives_the_next_photo():
    network = fold_batch_norm(random_network())
    runtime = OpenVinoRuntime(network, torch.float32, n_parallel=3)
    photos = [np.random.default_rng(n).random((32 * (1 + n % 3), 64, 3), np.float32) for n in range(12)]
    alone = [runtime(photo) for photo in photos]
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(alone, pool.map(runtime, photos)):
            np.testing.assert_array_equal(one, other)


def test_openvino_reports_to_nobody():
    """Its telemetry would send an event at each import."""
    code = "import sys, carvana.runtime as r; r.import_openvino(); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_DIR / "scripts", check=True
    )
    assert done.stdout.strip() == "None"


def test_a_signal_is_survived_after_another_thread_has_dropped_the_network():
    code = """
import os, signal, threading
from carvana.segmenter import Segmenter
kept = [Segmenter()]
thread = threading.Thread(target=kept.clear)
thread.start(), thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR / "scripts", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
