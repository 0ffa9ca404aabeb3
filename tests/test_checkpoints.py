"""Checkpoints and weights: what is damaged, altered, forged or from a stranger is refused in a sentence, and nothing in it is run."""

import copy
import dataclasses
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import extra
import numpy as np
import pytest
import torch
import train
from safetensors.torch import save as safetensors_bytes
from unet import UNet

MIB = 2**20


@pytest.fixture
def state() -> dict:
    """Weights and description of a network so small that its file can be damaged in many places."""
    torch.manual_seed(0)
    network = UNet(base_width=2, depth=1)
    return dict(
        description=dict(network=network.settings, image_width=48, image_height=32, threshold=0.5, trained={}),
        weights=network.state_dict(),
        history=[dict(epoch=1, val_dice=0.5)],
    )


@pytest.fixture
def best(state, tmp_path) -> Path:
    extra.save_checkpoint(tmp_path / "best.pt", state)
    return tmp_path / "best.pt"


def refusal(error, path: Path) -> str:
    """The message, after making sure that it is one line that names the file."""
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def rebuild(path: Path, change) -> None:
    """Write a checkpoint anew with sound zip checksums after `change(name, content)` of each member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


# ---------------------------------------------------------------------------------------------------------- soundness


def test_what_is_saved_comes_back_equal(state, best):
    back = extra.read_checkpoint(best)
    assert list(back) == list(state) and back["history"] == state["history"]
    assert all(torch.equal(back["weights"][name], tensor) for name, tensor in state["weights"].items())


def test_tensors_of_every_layout_come_back_equal(tmp_path):
    tensors = [
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.arange(12.0).reshape(3, 4).T,
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    ]
    tensors += [
        torch.tensor([1, 2]),
        torch.tensor([True]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([float("nan")]),
    ]
    extra.save_checkpoint(tmp_path / "x.pt", dict(tensors=tensors))
    back = extra.read_checkpoint(tmp_path / "x.pt")["tensors"]
    assert all(torch.equal(one, other) or one.isnan().all() for one, other in zip(tensors, back, strict=True))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    # NumPy 2.4 counts in numpy.int64: the Dice of an epoch once made every checkpoint unreadable.
    with pytest.raises(TypeError, match="plain values only, got float64"):
        extra.save_checkpoint(tmp_path / "last.pt", dict(dice=np.float64(0.5)))
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_before_is_kept(tmp_path):
    for number in (1, 2, 3):
        extra.save_checkpoint(tmp_path / "last.pt", dict(number=number), keep_previous=True)
    assert extra.read_checkpoint(tmp_path / "last.pt") == dict(number=3)
    assert extra.read_checkpoint(tmp_path / "last.previous.pt") == dict(number=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"]


def test_a_file_cut_at_any_length_is_refused_by_name(best):
    whole = best.read_bytes()
    for length in sorted({0, 1, 4, 30, len(whole) - 1, len(whole) - 22, *range(0, len(whole), len(whole) // 40)}):
        best.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged") as error:
            extra.read_checkpoint(best)
        refusal(error, best)


def test_a_flipped_bit_never_loads_as_something_else(state, best):
    whole, refused = best.read_bytes(), 0
    positions = np.random.default_rng(0).integers(8 * len(whole), size=150).tolist()
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        best.write_bytes(damaged)
        try:
            back = extra.read_checkpoint(best)
        except (ValueError, PermissionError) as error:
            assert str(best) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # the bit was in what fills the archive up
            assert extra.digest(back) == extra.digest(state)
    assert refused > 75


def test_altered_weights_in_a_sound_archive_do_not_fit_the_checksum(best):
    def alter(name, content):
        return content[:-4] + struct.pack("<f", 7.0) if name.endswith("data/4") else content

    rebuild(best, alter)
    with pytest.raises(ValueError, match="does not fit its checksum") as error:
        extra.read_checkpoint(best)
    refusal(error, best)


@pytest.mark.parametrize("damage", ["cut", "missing", "zeros", "empty"])
def test_the_one_before_takes_the_place_of_a_damaged_one_and_says_so(tmp_path, capsys, damage):
    last = tmp_path / "last.pt"
    for number in (1, 2):
        extra.save_checkpoint(last, dict(number=number), keep_previous=True)
    content = last.read_bytes()
    last.unlink()
    if damage != "missing":
        last.write_bytes({"cut": content[: len(content) // 2], "zeros": bytes(len(content)), "empty": b""}[damage])
    assert extra.load_checkpoint(last) == dict(number=1)
    assert f"Going on from {tmp_path / 'last.previous.pt'}" in capsys.readouterr().err


def test_two_damaged_checkpoints_are_refused(tmp_path):
    for name in ("last.pt", "last.previous.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"last\.previous\.pt is damaged"):
        extra.load_checkpoint(tmp_path / "last.pt")


def test_nothing_to_go_on_from_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to go on from"):
        extra.load_checkpoint(tmp_path / "last.pt")


# --------------------------------------------------------------------------------------------------------------- code


class Touch:
    """An object whose loading makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["archive", "protocol 4", "legacy", "bare pickle", "beside real weights"])
def test_a_checkpoint_that_carries_code_is_refused_and_the_code_not_run(state, tmp_path, kind):
    path, marker = tmp_path / "best.pt", tmp_path / "the code was run"
    content = {**state, "extra": Touch(marker)} if kind == "beside real weights" else {"weights": Touch(marker)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(
            content,
            path,
            _use_new_zipfile_serialization=kind != "legacy",
            pickle_protocol=4 if kind == "protocol 4" else 2,
        )
    with pytest.raises((PermissionError, ValueError)) as error:
        extra.read_checkpoint(path)
    message = refusal(error, path)
    assert "carries code" in message or kind in ("bare pickle", "legacy")
    assert not marker.exists()
    if kind != "bare pickle":
        torch.load(path, weights_only=False)  # the file is a real one: where code may run, it does
        assert marker.exists()


def test_code_is_never_passed_over_for_the_checkpoint_before(tmp_path):
    extra.save_checkpoint(tmp_path / "last.previous.pt", dict(number=1))
    torch.save({"weights": Touch(tmp_path / "marker")}, tmp_path / "last.pt")
    with pytest.raises(PermissionError, match="carries code"):
        extra.load_checkpoint(tmp_path / "last.pt")


def test_no_script_loads_with_anything_but_weights_only():
    for script in (Path(extra.__file__).parent).glob("*.py"):
        text = script.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True)"), script
        assert "pickle.load" not in text and "allow_pickle=True" not in text, script


# ------------------------------------------------------------------------------------------------------------- forgery


def forged_pickle(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")


def many_lists() -> bytes:
    """A kilobyte that stands for 2**60 values: each list holds the one before twice."""
    program = b"\x80\x02}(X\x08\x00\x00\x00checksumX\x01\x00\x00\x00x" + b"X\x02\x00\x00\x0000]q\x00"
    for level in range(1, 61):
        program += (
            b"X\x02\x00\x00\x00%02d" % level + b"]q" + bytes([level]) + b"(" + 2 * (b"h" + bytes([level - 1])) + b"e"
        )
    return program + b"u."


def forge(kind: str, path: Path) -> None:
    if kind == "a terabyte of bytes":
        forged_pickle(path, b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.")
    elif kind == "lists of lists":
        forged_pickle(path, many_lists())
    elif kind == "deep nesting":
        forged_pickle(
            path,
            b"\x80\x02}(X\x01\x00\x00\x00a"
            + b"]" * 100_000
            + b"a" * 99_999
            + b"X\x08\x00\x00\x00checksumX\x01\x00\x00\x00xu.",
        )
    elif kind == "not a dictionary":
        forged_pickle(path, b"\x80\x02]q\x00.")
    elif kind == "a view of one number":
        torch.save({"weights": torch.zeros(1).expand(2**40), "checksum": "x"}, path)
    elif kind == "many views of one tensor":
        tensor = torch.zeros(1000)
        torch.save({"weights": [tensor.view(1000) for _ in range(1000)], "checksum": "x"}, path)
    elif kind == "a packed archive":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", bytes(40 * MIB))
    elif kind == "storage larger than its bytes":
        torch.save({"weights": torch.arange(7.0), "checksum": "x"}, path)
        rebuild(
            path,
            lambda name, content: (
                content.replace(b"K\x07", b"J" + struct.pack("<i", 10**9)) if name.endswith(".pkl") else content
            ),
        )
    elif kind == "sparse tensor":
        torch.save(
            {
                "weights": torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.long), [], (2**40, 2**20)),
                "checksum": "x",
            },
            path,
        )
    elif kind == "tensor without memory":
        torch.save({"weights": torch.zeros(2**40, device="meta"), "checksum": "x"}, path)
    elif kind == "two tables of contents":
        forged_pickle(path, b"\x80\x02}.")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("y/data.pkl", pickle.dumps(Touch(path.with_name("marker"))))
    elif kind == "of another project":
        torch.save(OrderedDict(weight=torch.zeros(3)), path)
    elif kind == "NumPy numbers":
        torch.save({"dice": np.float64(0.5)}, path)


FORGERIES = {  # and why each is refused
    "a terabyte of bytes": r"carries code \(__builtin__\.bytearray\)",
    "lists of lists": "more than its own size",
    "deep nesting": "recursion depth",
    "not a dictionary": "no checksum",
    "a view of one number": "more than its own size",
    "many views of one tensor": "more than its own size",
    "a packed archive": "more than its own size",
    "storage larger than its bytes": "does not match expected size",  # PyTorch compares them
    "sparse tensor": "_rebuild_sparse_tensor",
    "tensor without memory": "_rebuild_meta_tensor_no_storage",
    "two tables of contents": "one table of contents",
    "of another project": "no checksum",
    "NumPy numbers": "numpy",
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_checkpoint_gets_a_sentence_before_it_gets_memory(tmp_path, kind):
    path = tmp_path / "last.pt"
    forge(kind, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, PermissionError), match=FORGERIES[kind]) as error:
        extra.read_checkpoint(path)
    refusal(error, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024  # KiB


def test_forged_settings_of_a_network_are_refused(state, tmp_path):
    path = tmp_path / "best.pt"
    for key, value in (
        ("base_width", 10**9),
        ("base_width", 512),
        ("base_width", 4),
        ("base_width", -1),
        ("base_width", 2.0),
        ("base_width", "2"),
        ("base_width", None),
        ("base_width", True),
        ("depth", 0),
        ("depth", 7),
        ("depth", 10**6),
        ("kernel_size", 2),
        ("kernel_size", 31),
        ("in_channels", 64),
        ("out_channels", 256),
        ("unknown", 1),
    ):
        forged = copy.deepcopy(state)
        forged["description"]["network"][key] = value
        extra.save_checkpoint(path, forged)
        with pytest.raises(ValueError, match="does not describe a U-Net") as error:
            extra.load_network(path)
        refusal(error, path)
    for key, value in (
        ("image_width", 0),
        ("image_width", 2**40),
        ("image_height", 33),
        ("image_height", "32"),
        ("threshold", float("nan")),
        ("threshold", 0.0),
        ("threshold", "0.5"),
        ("network", []),
        ("network", None),
        ("network", {}),
        ("image_width", None),
    ):
        forged = copy.deepcopy(state)
        forged["description"][key] = value
        extra.save_checkpoint(path, forged)
        with pytest.raises(ValueError, match="does not describe a U-Net") as error:
            extra.load_network(path)
        refusal(error, path)


@pytest.mark.parametrize("description", [None, [], "x", 3, {}, {"network": "x"}])
def test_a_description_of_the_wrong_kind_is_refused(state, tmp_path, description):
    extra.save_checkpoint(tmp_path / "best.pt", {**state, "description": description})
    with pytest.raises(ValueError, match="does not describe a U-Net") as error:
        extra.load_network(tmp_path / "best.pt")
    refusal(error, tmp_path / "best.pt")


@pytest.mark.parametrize("weights", [None, [], {"head.bias": "x"}, {"head.bias": [1.0]}, 3])
def test_weights_of_the_wrong_kind_are_refused(state, tmp_path, weights):
    extra.save_checkpoint(tmp_path / "best.pt", {**state, "weights": weights})
    with pytest.raises(ValueError, match="does not hold the weights|does not describe") as error:
        extra.load_network(tmp_path / "best.pt")
    refusal(error, tmp_path / "best.pt")


# --------------------------------------------------------------------------------------------------------- safetensors


@pytest.fixture
def shared(state, tmp_path) -> Path:
    """Weights as they are given to others."""
    network = UNet(**state["description"]["network"])
    network.load_state_dict(state["weights"])
    extra.save_weights(tmp_path / "car.safetensors", network, state["description"])
    return tmp_path / "car.safetensors"


def test_shared_weights_come_back(state, shared):
    network, description = extra.load_network(shared)
    assert description == state["description"]
    assert torch.equal(network.head.weight, state["weights"]["head.weight"].half().float())


def test_shared_weights_cut_at_any_length_are_refused(shared):
    whole = shared.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        shared.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged") as error:
            extra.load_network(shared)
        refusal(error, shared)


def test_flipped_bits_in_the_header_of_shared_weights_give_a_sentence_or_a_network(shared):
    whole = shared.read_bytes()
    refused, header = 0, 8 + struct.unpack("<Q", whole[:8])[0]
    for position in np.random.default_rng(0).integers(8 * header, size=150).tolist():
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        shared.write_bytes(damaged)
        try:
            assert isinstance(
                extra.load_network(shared)[0], UNet
            )  # safetensors have no checksum: in "trained" a letter may change
        except ValueError as error:
            assert str(shared) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 75


def forge_shared(path: Path, change) -> None:
    """Change the header of a safetensors file, keeping its length field right."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["head.weight"].update(shape=[2**40, 1, 1, 1]),
        lambda h: h["head.weight"].update(data_offsets=[0, 2**40]),
        lambda h: h["head.weight"].update(shape=[2**40, 2**40, 2**40]),
        lambda h: h["head.weight"].update(shape=[-1, 2, 1, 1]),
        lambda h: h["head.weight"].update(dtype="I16"),
        lambda h: h["head.weight"].update(dtype="C64"),
        lambda h: h["head.weight"].update(dtype="X"),
        lambda h: h.pop("head.weight") and None,
        lambda h: h.pop("__metadata__") and None,
        lambda h: h["__metadata__"].pop("description") and None,
        lambda h: h["__metadata__"].update(description="not JSON"),
        lambda h: h["__metadata__"].update(description="[" * 100_000),
        lambda h: h["__metadata__"].update(description="1" * 100_000),
        lambda h: h["__metadata__"].update(description="[]"),
        lambda h: h["__metadata__"].update(description='{"network": {"base_width": 1000000000}}'),
        lambda h: "x" * 200,
        lambda h: "{}",
        lambda h: "",
    ],
)
def test_a_forged_header_of_shared_weights_gets_a_sentence_before_it_gets_memory(shared, change):
    forge_shared(shared, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as error:
        extra.load_network(shared)
    refusal(error, shared)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024  # KiB


@pytest.mark.parametrize("length", [2**63, 2**40, 2**64 - 1, 10**6])
def test_a_header_said_to_be_huge_is_refused(shared, length):
    shared.write_bytes(struct.pack("<Q", length) + shared.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged") as error:
        extra.load_network(shared)
    refusal(error, shared)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(state, tmp_path, value):
    state["weights"]["head.bias"] = torch.tensor([value])
    path = tmp_path / "car.safetensors"
    path.write_bytes(safetensors_bytes(state["weights"], metadata={"description": json.dumps(state["description"])}))
    extra.save_checkpoint(tmp_path / "best.pt", state)
    for file in (path, tmp_path / "best.pt"):
        with pytest.raises(ValueError, match="finite numbers") as error:
            extra.load_network(file)
        refusal(error, file)


def test_a_missing_file_of_weights_is_said(tmp_path):
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            extra.load_network(tmp_path / name)
    os.symlink("loop.pt", tmp_path / "loop.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        extra.load_network(tmp_path / "loop.pt")


# ------------------------------------------------------------------------------------------------ a stranger's training


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory) -> tuple[train.Config, dict]:
    """A finished training of one epoch and its last.pt."""
    folder = tmp_path_factory.mktemp("trained")
    config = train.Config(
        train_image_dir=tiny_set / "train",
        train_mask_dir=tiny_set / "train_masks",
        validation_share=0.34,
        image_width=48,
        image_height=32,
        base_width=2,
        batch_size=8,
        epochs=1,
        device="cpu",
        precision="float32",
        workers=0,
        augment=False,
        background=0,
        checkpoint_dir=folder / "checkpoints",
        prediction_dir=folder / "predictions",
        cache_dir=folder / "cache",
    )
    train.train(config)
    return config, extra.read_checkpoint(folder / "checkpoints" / "last.pt")


def put(*keys, value):
    """A change of one value deep in a state; value `del` takes it away."""

    def change(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        if value == "del":
            del state[keys[-1]]
        else:
            state[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(
            put(key, value="del")
            for key in ("config", "network", "weights", "optimizer", "scaler", "progress", "data_fingerprint")
        ),
        *(
            put(key, value=value)
            for key in ("config", "network", "weights", "optimizer", "progress")
            for value in (None, [], 3, "x")
        ),
        put("progress", "epoch", value="1"),
        put("progress", "epoch", value=-1),
        put("progress", "epoch", value=10**12),
        put("progress", "batch", value=5),
        put("progress", "micro_batches", value=0),
        put("progress", "loss_sum", value=None),
        put("progress", "best_dice", value=float("nan")),
        put("progress", "history", value=[[]]),
        put("progress", "history", value=[{"epoch": 1}]),
        put("progress", "history", value=3),
        put("progress", "history", 0, "val_dice", value="high"),
        put("progress", "unknown", value=1),
        put("config", "base_width", value=torch.zeros(3)),
        put("network", "head.weight", value=torch.zeros(5)),
        put("network", "head.weight", value=[1.0]),
        put("optimizer", "state", 0, "exp_avg", value=torch.zeros(1)),
        put("optimizer", "state", 0, "step", value=3),
        put("optimizer", "state", 0, value="del"),
        put("optimizer", "state", value=[1]),
    ],
)
def test_a_strangers_training_of_wrong_content_gets_a_sentence(trained, tmp_path, change):
    config, state = trained
    state = copy.deepcopy(state)
    change(state)
    config = dataclasses.replace(config, checkpoint_dir=tmp_path, prediction_dir=tmp_path, load_model=True)
    extra.save_checkpoint(tmp_path / "last.pt", state)
    with pytest.raises(ValueError) as error:
        train.train(config)
    refusal(error, tmp_path / "last.pt")


def test_weights_alone_are_no_training_to_go_on_with(trained, tmp_path):
    config, _ = trained
    shutil.copy(config.checkpoint_dir / "best.pt", tmp_path / "last.pt")
    with pytest.raises(ValueError, match="holds weights but no training"):
        train.train(dataclasses.replace(config, checkpoint_dir=tmp_path, load_model=True))


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_lost_best_checkpoint_is_made_anew_and_said(trained, tmp_path, capsys, damage):
    config, state = trained
    shutil.copytree(config.checkpoint_dir, tmp_path / "copy")
    best = tmp_path / "copy" / "best.pt"
    best.unlink() if damage == "missing" else best.write_bytes(best.read_bytes()[:1000])
    train.train(dataclasses.replace(config, checkpoint_dir=tmp_path / "copy", prediction_dir=tmp_path, load_model=True))
    assert "The best weights are lost" in capsys.readouterr().err
    assert extra.digest(extra.read_checkpoint(best)["weights"]) == extra.digest(state["weights"])
