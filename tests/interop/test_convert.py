"""Weights of open_clip's and Hugging Face's give their features, and come out as they went in."""

import json
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from clipdg_jax.errors import UserError
from clipdg_jax.interop import architectures, convert, leaves, state_dicts
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints

# Written by tools/make_interop_fixture.py.
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
OPEN_CLIP = FIXTURES / "open_clip" / "open_clip_pytorch_model.bin"
HUGGING_FACE = FIXTURES / "hugging_face" / "model.safetensors"
SOURCES = {"open_clip": OPEN_CLIP, "hugging_face": HUGGING_FACE}


@pytest.fixture(scope="module")
def expected():
    with np.load(FIXTURES / "expected.npz") as arrays:
        return dict(arrays)


def load(path, **stated):
    return convert.to_ours(convert.read_weights(path), **stated)


@pytest.fixture(scope="module")
def open_clip():
    return load(OPEN_CLIP)


def save(path, state, note=None):
    safetensors.numpy.save_file(dict(state), path, note)
    return path


@pytest.mark.parametrize("form", SOURCES)
def test_features_are_the_librarys(form, expected):
    converted = load(SOURCES[form])
    assert converted.config.activation == {"open_clip": "gelu", "hugging_face": "quick_gelu"}[form]
    assert converted.stated.startswith(str(SOURCES[form].parent))
    model = model_lib.Model(converted.config)
    image = jax.jit(model.encode_image)(converted.params, expected["image"])
    text = jax.jit(model.encode_text)(converted.params, expected["tokens"])
    np.testing.assert_allclose(image, expected[f"{form}/image"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(text, expected[f"{form}/text"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", SOURCES)
def test_round_trip_through_a_checkpoint_is_bit_for_bit(form, tmp_path):
    weights = convert.read_weights(SOURCES[form])
    converted = convert.to_ours(weights)
    convert.save_checkpoint(converted, weights, tmp_path / "run")
    written = convert.export(tmp_path / "run", tmp_path / "out", form)
    back = convert.read_weights(written[-1])
    assert back.form == form
    assert back.state.keys() == weights.state.keys()
    for name, value in weights.state.items():
        assert value.dtype == back.state[name].dtype
        np.testing.assert_array_equal(value.view(np.uint32), back.state[name].view(np.uint32))
    again = convert.to_ours(back)
    assert again.config == converted.config
    for name, value in converted.params.items():
        np.testing.assert_array_equal(value, again.params[name], err_msg=name)
    loaded = checkpoints.load_params(tmp_path / "run" / "checkpoints")
    assert loaded.architecture == converted.config.architecture
    with pytest.raises(UserError, match="is there already"):
        convert.save_checkpoint(converted, weights, tmp_path / "run")
    with pytest.raises(UserError, match="is there already"):
        convert.export(tmp_path / "run", tmp_path / "out", form)


def test_through_the_other_format_too(open_clip, tmp_path):
    """open_clip -> ours -> Hugging Face -> ours."""
    weights = convert.read_weights(OPEN_CLIP)
    convert.save_checkpoint(open_clip, weights, tmp_path / "run")
    *_, file = convert.export(tmp_path / "run", tmp_path / "out", "hugging_face")
    again = load(file)
    assert again.config == open_clip.config
    assert again.params.keys() == open_clip.params.keys()
    for name, value in open_clip.params.items():
        np.testing.assert_array_equal(value, again.params[name], err_msg=name)


def test_a_training_checkpoint(expected, tmp_path):
    """Names with `module.`, half precision, the optimiser beside it: the state dict is taken."""
    shutil.copy(FIXTURES / "open_clip" / architectures.OPEN_CLIP_FILE, tmp_path)
    converted = load(shutil.copy(FIXTURES / "training.pt", tmp_path))
    scale = converted.params["logit_scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, expected["training/logit_scale"])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
@pytest.mark.parametrize("form", leaves.FORMATS)
def test_every_leaf_once_at_full_size(name, form):
    model = model_lib.Model(config_lib.PRESETS[name])
    found = list(leaves.leaves(model, form, bias=True))
    bias = ["logit_bias"] if form == "open_clip" else []
    assert sorted(leaf.name for leaf in found) == sorted([*model.shapes(), *bias])
    foreign = [part for leaf in found for part in leaf.foreign]
    assert len(set(foreign)) == len(foreign)
    sizes = [np.prod(leaf.foreign_shape, dtype=int) * len(leaf.foreign) for leaf in found]
    assert sum(sizes) == model.num_params() + len(bias)
    projection = next(leaf for leaf in found if leaf.name == "visual.conv1.weight")
    size, width = model.config.vision.patch_size, model.config.vision.width
    assert projection.foreign_shape == (width, 3, size, size)


def test_the_sigmoid_losss_bias_travels(open_clip):
    model = model_lib.Model(open_clip.config)
    params = {**open_clip.params, "logit_bias": np.float32(-9.5)}
    state = state_dicts.to_foreign(params, model, "open_clip")
    back, aside = state_dicts.to_ours(state, model, "open_clip", "here")
    assert (float(back["logit_bias"]), aside) == (-9.5, ())
    exported = architectures.to_open_clip(open_clip.config, bias=True)
    assert exported["model_cfg"]["init_logit_bias"] == 0


def state_of(open_clip):
    return state_dicts.to_foreign(open_clip.params, model_lib.Model(open_clip.config), "open_clip")


def beside(path, **changes):
    config = json.loads((FIXTURES / "open_clip" / architectures.OPEN_CLIP_FILE).read_text())
    config["model_cfg"] |= changes
    (path / architectures.OPEN_CLIP_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ln_final.bias"), r"has no ln_final\.bias"),
        (lambda s: s.update(extra=np.zeros(3, np.float32)), "has extra, which the model has not"),
        (
            lambda s: s.update({"ln_final.bias": np.zeros(9, np.float32)}),
            r"ln_final\.bias is \[9\], in the model it is \[8\]",
        ),
        (
            lambda s: s.update({"ln_final.bias": np.full(8, np.nan, np.float32)}),
            r"ln_final\.bias has numbers that are not finite",
        ),
        (
            lambda s: s.update({"ln_final.bias": np.zeros(8, np.int32)}),
            r"ln_final\.bias is of type int32",
        ),
        (lambda s: s.pop("visual.conv1.weight"), "only CLIP's ViT models are known"),
    ],
)
def test_wrong_leaves_are_named(change, message, open_clip, tmp_path):
    state = dict(state_of(open_clip))
    change(state)
    beside(tmp_path)
    with pytest.raises(UserError, match=message):
        load(save(tmp_path / "w.safetensors", state))


def test_truncated_safetensors(tmp_path):
    beside(tmp_path)
    whole = HUGGING_FACE.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / "w.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.safetensors: is not a whole safetensors file"):
            load(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="ends with none of"):
        load(shutil.copy(HUGGING_FACE, tmp_path / "w.h5"))


def test_bfloat16_safetensors_are_widened(tmp_path):
    head = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(
        len(head).to_bytes(8, "little") + head + b"\x80\x3f\x20\xc0"
    )
    state, note = convert._read_safetensors(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(state["a"], np.float32([1, -2.5]))
    assert note is None


def test_the_activation_must_be_stated_and_statements_must_agree(open_clip, tmp_path):
    state = state_of(open_clip)
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match="says which model"):
        load(path)
    # The weights fit ViT-B-32's names, and nothing says the activation: it has to be said.
    with pytest.raises(UserError, match="state it with --activation"):
        load(path, model="ViT-B-32")
    with pytest.raises(UserError, match="--activation=quick_gelu, but --model=ViT-B-32 has gelu"):
        load(path, model="ViT-B-32", activation="quick_gelu")
    # Said consistently, it goes on to the shapes, which are not those of ViT-B-32.
    with pytest.raises(UserError, match="in the model it is"):
        load(path, model="ViT-B-32", activation="gelu")
    beside(tmp_path, quick_gelu=True)
    assert load(path).config.activation == "quick_gelu"
    with pytest.raises(UserError, match=r"--activation=gelu, but .*open_clip_config\.json has"):
        load(path, activation="gelu")


def test_quick_gelu_weights_are_refused_for_a_gelu_model(open_clip, tmp_path):
    big = {name: np.zeros((), np.float32) for name in leaves.OPENAI_MARKS} | state_of(open_clip)
    path = save(tmp_path / "w.safetensors", big)
    with pytest.raises(UserError, match="state dict of OpenAI's, whose activation is quick_gelu"):
        load(path, model="ViT-B-32")
    beside(tmp_path)
    with pytest.raises(UserError, match="OpenAI's"):
        load(path)
    beside(tmp_path, quick_gelu=True)
    assert load(path).aside == tuple(sorted(leaves.OPENAI_MARKS))
    # And by the configuration beside Hugging Face's weights:
    with pytest.raises(UserError, match=r"activation is quick_gelu by .* and gelu by --model=tiny"):
        load(HUGGING_FACE, model="tiny-plain")


def test_our_own_note_in_an_export_is_believed_and_compared(open_clip, tmp_path):
    note = {convert.NOTE: json.dumps(open_clip.config.architecture)}
    path = save(tmp_path / "w.safetensors", state_of(open_clip), note)
    converted = load(path)  # nothing beside it
    assert converted.config == open_clip.config
    assert converted.stated == f"{path} itself"
    beside(tmp_path, quick_gelu=True)
    with pytest.raises(UserError, match="activation is quick_gelu by"):
        load(path)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base_patch16_clip_224"),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "ls_init_value", 0.1),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "no_causal_mask", True),
    ],
)
def test_models_that_are_not_ours_are_refused_by_the_field(section, field, value):
    config = architectures.to_open_clip(config_lib.PRESETS["ViT-B-32"])
    assert architectures.from_open_clip(config, "x") == config_lib.PRESETS["ViT-B-32"]
    config["model_cfg"][section][field] = value
    with pytest.raises(UserError, match=rf"x: {section}\.{field} is "):
        architectures.from_open_clip(config, "x")


def test_configurations_make_the_round_trip():
    for name, config in config_lib.PRESETS.items():
        if config.vision.stem:
            for export in (architectures.to_open_clip, architectures.to_hugging_face):
                with pytest.raises(UserError, match=r"model\.vision\.stem"):
                    export(config)
            continue
        assert architectures.from_open_clip(architectures.to_open_clip(config), name) == config
        documents = architectures.to_hugging_face(config)
        assert architectures.from_hugging_face(*documents, name) == config
    # Hugging Face leaves out what has its default; the default activation is QuickGELU.
    bare = architectures.from_hugging_face({"model_type": "clip", "vision_config": {}}, {}, "x")
    assert bare == config_lib.PRESETS["ViT-B-32-quickgelu"]


def cut(path, state, parts):
    """Weights in several files, with an index, as Hugging Face's library cuts large ones."""
    where = {}
    for k, names in enumerate(parts):
        file = f"model-{k + 1:05d}-of-{len(parts):05d}.safetensors"
        save(path / file, {name: state[name] for name in names})
        where |= dict.fromkeys(names, file)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_weights_cut_into_files_are_read_by_their_index(tmp_path):
    weights = convert.read_weights(HUGGING_FACE)
    names = sorted(weights.state)
    shutil.copy(HUGGING_FACE.parent / architectures.HUGGING_FACE_FILE, tmp_path)
    index = cut(tmp_path, weights.state, (names[:20], names[20:30], names[30:]))
    found = convert.read_weights(index)
    assert [part.name for part in found.parts] == [
        f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)
    ]
    converted = convert.to_ours(found)
    for name, value in convert.to_ours(weights).params.items():
        np.testing.assert_array_equal(value, converted.params[name], err_msg=name)
    convert.save_checkpoint(converted, found, tmp_path / "run")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"model-00002-of-00003\.safetensors: there is no such file"
    ):
        convert.read_weights(index)
    save(tmp_path / "model-00002-of-00003.safetensors", {"other": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=rf"{names[20]} is in none of its files"):
        convert.read_weights(index)
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        convert.read_weights(index)


@pytest.mark.parametrize(
    ("given", "named", "leaf"),
    [
        ("ViT-B-16", "ViT-B-32", r"visual\.conv1\.weight is \[768, 3, 16, 16\]"),
        ("ViT-L-14", "ViT-B-32", r"ln_final\.bias is \[768\]"),
        ("ViT-B-32", "ViT-L-14", r"ln_final\.bias is \[512\]"),
    ],
)
def test_a_wrong_architecture_is_refused_in_one_line(given, named, leaf):
    other = model_lib.Model(config_lib.PRESETS[given])
    # Views of one number: they have the shapes and take no memory.
    state = {
        part: np.broadcast_to(np.float32(0), one.foreign_shape)
        for one in leaves.leaves(other, "open_clip")
        for part in one.foreign
    }
    model = model_lib.Model(config_lib.PRESETS[named])
    message = rf"^w: {leaf}, in the model it is \[[^\n]*; name the model that it is of$"
    with pytest.raises(UserError, match=message):
        state_dicts.to_ours(state, model, "open_clip", "w")


def test_a_full_disk_is_one_line_and_what_a_kill_left_is_no_obstacle(open_clip, tmp_path):
    weights = convert.read_weights(OPEN_CLIP)
    # As a conversion leaves it that is killed while it writes.
    (tmp_path / "run" / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    convert.save_checkpoint(open_clip, weights, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"open_clip_model\.safetensors: no space left"):
            convert.export(tmp_path / "run", tmp_path / "out", "open_clip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Weights whole or not at all; the configuration is this model's and no obstacle.
    assert [path.name for path in (tmp_path / "out").iterdir()] == [architectures.OPEN_CLIP_FILE]
    *_, file = convert.export(tmp_path / "run", tmp_path / "out", "open_clip")
    assert load(file).config == open_clip.config
    pathlib.Path(file).unlink()
    beside(tmp_path / "out", quick_gelu=True)
    with pytest.raises(UserError, match=r"open_clip_config\.json: is there already"):
        convert.export(tmp_path / "run", tmp_path / "out", "open_clip")
