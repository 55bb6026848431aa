"""Thousands of damaged and rearranged checkpoints through the command, in one process."""

import argparse
import contextlib
import io
import json
import shutil
import sys
import warnings
from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.cli import main
from mae_hf.conversion import convert
from mae_hf.conversion.layouts import LAYOUTS
from mae_hf.key_maps import native_to_official
from tests.helpers import HEAD_OPTIONS

EXAMPLES = 3000
SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}
REFERENCE_FILES = ["full", "full_legacy", "full_fp16", "training_checkpoint", "encoder"]
REFERENCE_FILES += ["finetuned", "finetuned_cls", "linprobe"]
SMALL_FILES = ["small", "small_legacy", "small_encoder", "small_classifier"]
FILES = [f"{name}.pth" for name in [*REFERENCE_FILES, *SMALL_FILES]]
FOLDERS = {  # and what they are made of
    "mae_hf": "small",
    "mae_hf_encoder": "small_encoder",
    "mae_hf_classifier": "small_classifier",
    "mae_hf_shards": "small",
    "vit_mae": "small",
    "vit_mae_encoder": "small_encoder",
    "vit_mae_shards": "small",
    "timm": "small",
}
SOURCES = [*FILES, *FOLDERS]
DTYPES = ["float16", "bfloat16", "float64", "float8_e4m3fn", "int64", "bool", "complex64"]
HUGE = 10**30
ODD_VALUES = [None, 0, 3, float("nan"), "x", [3], {"a": 1}, HUGE]
ODD_FIELDS = ["dtype", "attn_implementation", "id2label", "rope_parameters"]
ODD_ARGS = [
    argparse.Namespace(norm_pix_loss=True, mask_ratio=0.6),
    argparse.Namespace(norm_pix_loss=torch.zeros(2), mask_ratio="x"),
    {"norm_pix_loss": "x", "mask_ratio": 2.0, 3: None},
    [torch.zeros(2)],
]


@pytest.fixture(scope="module")
def sources(reference, tmp_path_factory):
    """What is mutated, by name: the reference files, and a smaller model in files and folders of every layout."""
    place = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    weights = native_to_official(MAEForPreTraining(MAEConfig(**SMALL)).state_dict())
    encoder = {key: value for key, value in weights.items() if not key.startswith(("decoder_", "mask_token"))}
    head = {"head.weight": torch.randn(10, 16), "head.bias": torch.randn(10)}
    torch.save({"model": weights}, place / "small.pth")
    torch.save({"model": weights}, place / "small_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": encoder}, place / "small_encoder.pth")
    torch.save({"model": {**encoder, **head}}, place / "small_classifier.pth")
    for name, file in FOLDERS.items():
        options = ["--max-shard-size", "20KB"] if name.endswith("shards") else []
        arguments = [str(place / f"{file}.pth"), str(place / name), "--to", layout_of(name), *options]
        assert run(["convert", *arguments, *HEAD_OPTIONS])[0] == 0
    return {name: next(top / name for top in (place, reference / "tiny") if (top / name).exists()) for name in SOURCES}


@pytest.fixture(scope="module")
def clean(sources, tmp_path_factory):
    """What the sources become as they are, by name and target; classifiers do not go into every layout."""
    place, made = tmp_path_factory.mktemp("clean"), {}
    for name, to in product(SOURCES, LAYOUTS):
        path = place / f"{name}-{to}"
        if run(["convert", str(sources[name]), str(path), "--to", to, *heads_for(name)])[0] == 0:
            made[name, to] = path
    return made


def layout_of(name):
    return next((layout for layout in LAYOUTS if name.startswith(layout)), "official")


def heads_for(name):
    return HEAD_OPTIONS if name.endswith(".pth") else []


def run(arguments):
    """Exit status, and the lines on standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    return status, errors.getvalue().splitlines()


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read(path):
    """The tensors as PyTorch and safetensors read them, without this package."""
    if path.is_dir():
        files = sorted(path.glob("model*.safetensors"))
        return {key: value for file in files for key, value in load_file(file).items()}
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a damaged file, PyTorch may say that its pickle protocol is unusual
        content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("model", content)


def to_native(layout, state_dict):
    return LAYOUTS[layout].to_native(LAYOUTS[layout].normalise(state_dict))


def native_bits(layout, state_dict):
    """Type, shape and bytes of each tensor by its native name."""
    native = to_native(layout, state_dict)
    assert sum(map(torch.numel, native.values())) == sum(map(torch.numel, state_dict.values())), "a tensor is lost"
    return {key: (value.dtype, value.shape, bits(value)) for key, value in native.items()}


def bits(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def models(path):
    """The names in a converted file or folder, and those of the same model without biases of query, key and value."""
    biases = ("qkv.bias", "query.bias", "key.bias", "value.bias")
    names = frozenset(read(path))
    return names, frozenset(name for name in names if not name.endswith(biases))


def mutate_bytes(draw, path):
    """Flip bytes of a file, or cut it off."""
    content = bytearray(path.read_bytes())
    last = len(content) - 1
    if draw(st.booleans(), "cut"):
        del content[draw(st.integers(0, last), "length") :]
    else:
        place = st.integers(0, last) | st.integers(0, min(last, 2000)) | st.integers(max(0, last - 100), last)
        for position in draw(st.lists(place, min_size=1, max_size=4, unique=True), "positions"):
            content[position] ^= draw(st.integers(1, 255), "xor")
    path.write_bytes(content)


def mutate_fields(draw, path):
    """Drop or change a value in a JSON file."""
    content = json.loads(path.read_text())
    fields = draw(st.sampled_from([content, *(value for value in content.values() if isinstance(value, dict))]))
    key = draw(st.sampled_from([*fields, *ODD_FIELDS]), "field")
    value = draw(st.sampled_from(["drop", *ODD_VALUES]), "value")
    if value == "drop":
        fields.pop(key, None)
    else:
        fields[key] = value
    path.write_text(json.dumps(content))


def mutate_weights(draw, weights, names):
    """Rename, drop or double tensors, or change values, shape or type of one; see `other_names`."""
    key = draw(st.sampled_from(sorted(weights)), "key")
    value, others = weights[key], names.get(key, [key])
    change = draw(st.sampled_from(["rename", "drop", "double", "double all", "fill", "reshape", "retype"]), "change")
    if change == "rename":
        spoilt = [f"module.{key}", f"{key}x", key.replace(".0.", ".1.")]
        weights[draw(st.sampled_from([*others, *spoilt]), "name")] = weights.pop(key)
    elif change == "drop":
        del weights[key]
    elif change == "double":
        name = draw(st.sampled_from(others), "name")
        weights[name] = torch.full(value.shape, 3).to(value.dtype)  # not the same, so that it shows which of them wins
    elif change == "double all":
        way = draw(st.integers(0, len(others) - 1), "way")
        doubles = {names[key][way]: torch.zeros_like(value) for key, value in weights.items() if key in names}
        weights |= {name: value for name, value in doubles.items() if name not in weights}
    elif change == "fill":
        number = draw(st.sampled_from([0.0, 1.0, float("nan"), float("inf")]), "number")
        weights[key] = torch.full(value.shape, number).to(value.dtype)
    elif change == "reshape":
        shape = value.shape
        shapes = [(), (0,), (*shape, 1), (1, *shape), shape[:-1], shape[::-1], (shape.numel(),), [n + 1 for n in shape]]
        weights[key] = torch.ones(draw(st.sampled_from(shapes), "shape"), dtype=value.dtype)
    else:
        dtype = getattr(torch, draw(st.sampled_from(DTYPES), "dtype"))
        weights[key] = torch.ones(value.shape).to(dtype)


@cache
def other_names(layout, keys):
    """What each tensor is called in other spellings of its layout, and in every layout; the same where they agree."""
    native = to_native(layout, {key: torch.full((3,), number) for number, key in enumerate(keys)})
    everywhere = [other.from_native(native) for other in LAYOUTS.values()]
    return {
        key: [
            key.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
            key.split(".", 1)[-1],
            *(next(name for name, value in names.items() if number in value) for names in everywhere),
        ]
        for number, key in enumerate(keys)
    }


def mutate_file(draw, path):
    """Mutate a `.pth` file; tell whether PyTorch's checksums notice every change."""
    is_zip = path.read_bytes()[:2] == b"PK"
    if draw(st.sampled_from(["bytes", "weights", "weights"]), "what") == "bytes":
        mutate_bytes(draw, path)
        return is_zip
    weights = dict(read(path))
    names = other_names("official", tuple(weights))
    for _ in range(draw(st.integers(1, 2), "changes")):
        mutate_weights(draw, weights, names)
    content = {"model": weights, "args": draw(st.sampled_from(ODD_ARGS))} if draw(st.booleans(), "args") else weights
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return False


def mutate_folder(draw, path):
    what, pattern = draw(st.sampled_from([("bytes", "*"), ("fields", "*.json"), ("weights", "*.safetensors")]), "what")
    file = draw(st.sampled_from(sorted(path.glob(pattern))), "file")
    if what == "bytes":
        mutate_bytes(draw, file)
    elif what == "fields":
        mutate_fields(draw, file)
    else:
        weights = {key: value.clone() for key, value in load_file(file).items()}
        names = other_names(layout_of(path.name), tuple(weights))
        for _ in range(draw(st.integers(1, 2), "changes")):
            mutate_weights(draw, weights, names)
        save_file(weights, file)
    return False


@pytest.mark.heavy
def test_mutated_checkpoints_give_their_own_tensors_or_one_line(sources, clean, tmp_path, monkeypatch):
    counts, pairs = Counter(), set()
    module = sys.modules[convert.__module__]  # the name is that of the function
    read_source = module.read_source

    def counted(name):
        found = read_source(name)
        counts["past reading"] += 1
        return found

    monkeypatch.setattr(module, "read_source", counted)
    complete = {
        to: {names for (_, made), path in clean.items() if made == to for names in models(path)} for to in LAYOUTS
    }
    originals = {name: read(path) for name, path in sources.items() if path.is_file()}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(FILES) | st.sampled_from([*FOLDERS]), "source")
        to = data.draw(st.sampled_from(list(LAYOUTS)), "to")
        exists = data.draw(st.booleans(), "destination exists")
        for folder in ("from", "to"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
            (tmp_path / folder).mkdir()
        source, destination = tmp_path / "from" / name, tmp_path / "to" / "out"
        if sources[name].is_dir():
            shutil.copytree(sources[name], source)
        else:
            shutil.copy(sources[name], source)
        checksummed = (mutate_folder if source.is_dir() else mutate_file)(data.draw, source)
        if exists:
            old = clean["small.pth", to]
            (shutil.copytree if old.is_dir() else shutil.copy)(old, destination)
        before = snapshot(tmp_path / "to")

        options = ["--to", to, *heads_for(name), *(["--overwrite"] if exists else [])]
        status, lines = run(["convert", str(source), str(destination), *options])

        counts[f"exit status {status}"] += 1
        errors = [line for line in lines if not line.startswith("mae-hf: warning: ")]
        if status == 0:
            assert errors == []
            assert list((tmp_path / "to").iterdir()) == [destination]
            found = read(destination)
            wanted = native_bits(layout_of(name), originals[name] if checksummed else read(source))
            if to == "timm":
                wanted = {key: value for key, value in wanted.items() if not key.startswith("decoder.")}
            found_bits = native_bits(to, found)
            assert sorted(found_bits) == sorted(wanted)
            assert [key for key in wanted if found_bits[key] != wanted[key]] == []
            assert frozenset(found) in complete[to], "names of no model"
            if to != "official":
                assert {"config.json", "README.md"} < {path.name for path in destination.iterdir()}
        else:
            assert status == 1 and len(errors) == 1 and errors[0].startswith("mae-hf: ")
            assert "mae-hf: unexpected" not in errors[0]
            assert snapshot(tmp_path / "to") == before
        counts["examples"] += 1
        pairs.add((name, to))

    check()
    print(dict(counts))
    assert counts["examples"] >= EXAMPLES and counts["past reading"] >= counts["examples"] / 4
    assert pairs == set(product(SOURCES, LAYOUTS))
