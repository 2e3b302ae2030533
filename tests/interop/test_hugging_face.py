"""Folders in and out: logits as recorded, round trips bit by bit, and what transformers makes of ours."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpt import weights
from jaxpt.core import trees
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import ByteVocabulary, train_bpe
from jaxpt.interop import hugging_face
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import decoder, encoder, encoder_decoder
from jaxpt.sharding import MeshConfig, make_mesh

DECODERS = ["decoder_llama", "decoder_llama_tied", "decoder_gpt2", "decoder_neox_parallel", "decoder_neox_sequential"]
ENCODERS = [
    "encoder_bert", "encoder_electra_generator", "encoder_electra_discriminator", "encoder_deberta",
    "encoder_deberta_absolute",
]  # fmt: skip
ALL = [*DECODERS, *ENCODERS, "t5_1_0", "t5_1_1"]
SMALL = decoder.Config(vocab_size=300, layers=3, width=16, heads=4, kv_heads=2, ffn=24, initializer_stddev=0.3)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 9)))


def outputs(model, ids=None, arrays=None):
    """Logits of a decoder, masked-token logits of an encoder, replacement logits of a discriminator."""
    ids = jnp.asarray(arrays["ids"]) if ids is None else ids
    if isinstance(model.cfg, decoder.Config):
        return np.asarray(jax.jit(lambda p: decoder.apply(p, ids, model.cfg))(model.params))
    if isinstance(model.cfg, encoder_decoder.Config):
        targets, segments = jnp.asarray(arrays["targets"]), jnp.asarray(arrays["real"])
        run = jax.jit(lambda p: encoder_decoder.apply(p, ids, targets, model.cfg, segments=segments))
        return np.asarray(run(model.params))
    names = (("token_types", "token_types"), ("segments", "real"))
    given = {k: jnp.asarray(arrays[v]) for k, v in names if v != "token_types" or model.cfg.token_types}
    head = encoder.mlm_logits if model.cfg.mlm_head else encoder.rtd_logits

    def run(p):
        return head(p, encoder.apply(p, ids, model.cfg, **given), model.cfg)

    return np.asarray(jax.jit(run)(model.params))


@functools.cache
def random_params(cfg):
    model = next(m for m in (decoder, encoder, encoder_decoder) if isinstance(cfg, m.Config))
    return jax.jit(lambda key: model.init(key, cfg))(jax.random.key(0))


def state_of(folder):
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("name", ALL)
def test_a_folder_gives_the_recorded_logits(golden_folder, name):
    """The configuration is read from config.json alone."""
    folder, arrays = golden_folder(name)
    found = outputs(hugging_face.load(folder), arrays=arrays)
    padded = "real" in arrays and "targets" not in arrays
    real = arrays["real"].astype(bool) if padded else np.ones(found.shape[:2], bool)
    assert np.std(arrays["logits"][real]) > 0.15  # the tolerance means something
    assert np.abs(found - arrays["logits"])[real].max() <= 1e-4


@pytest.mark.parametrize("name", ALL)
def test_a_round_trip_is_bit_equal(golden_folder, tmp_path, name):
    folder, _ = golden_folder(name)
    model = hugging_face.load(folder)
    hugging_face.save(tmp_path / "out", model.params, model.cfg, settings=model.settings)
    before, after = state_of(folder), state_of(tmp_path / "out")
    dropped = {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}  # next-sentence prediction is not ours
    assert set(before) - dropped == set(after)
    for key, array in after.items():
        assert array.dtype == before[key].dtype and np.array_equal(array.view(np.uint8), before[key].view(np.uint8)), (
            key
        )
    again = hugging_face.load(tmp_path / "out")
    assert again.cfg == model.cfg
    key = "max_position_embeddings"
    assert again.settings.get(key) == model.settings.get(key)
    for (path, x), y in zip(trees.leaves_with_path(model.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files_keep_their_bits(golden_folder, tmp_path, dtype):
    folder, _ = golden_folder("decoder_neox_parallel")
    save_file({k: v.astype(dtype) for k, v in state_of(folder).items()}, folder / "model.safetensors")
    model = hugging_face.load(folder)
    assert model.cfg.param_dtype == np.dtype(dtype).name
    assert all(x.dtype == dtype for x in jax.tree.leaves(model.params))
    hugging_face.save(tmp_path / "out", model.params, model.cfg)
    for key, array in state_of(folder).items():
        np.testing.assert_array_equal(state_of(tmp_path / "out")[key].view(np.uint16), array.view(np.uint16))
    wide = hugging_face.load(folder, dtype="float32")
    assert wide.cfg.param_dtype == "float32"
    np.testing.assert_array_equal(wide.params["embedding"], np.asarray(model.params["embedding"], np.float32))


def test_shards_and_their_index(golden_folder, tmp_path):
    """Split into files of 20 kB, the same model comes back, and the index says where everything is."""
    folder, arrays = golden_folder("decoder_llama")
    model = hugging_face.load(folder)
    out = tmp_path / "out"
    hugging_face.save(out, model.params, model.cfg)  # one file first, whose remains must not be read afterwards
    hugging_face.save(out, model.params, model.cfg, shard_bytes=20_000)
    files = sorted(p.name for p in out.glob("*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in state_of(folder).values())
    again = hugging_face.load(out)
    assert np.abs(outputs(again, arrays=arrays) - arrays["logits"]).max() <= 1e-4
    hugging_face.save(out, model.params, model.cfg)
    assert [p.name for p in out.glob("model*")] == ["model.safetensors"]


def test_parameters_arrive_sharded(golden_folder):
    folder, arrays = golden_folder("decoder_llama")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    model = hugging_face.load(folder, mesh=mesh)
    up = model.params["blocks"]["mlp"]["up"]["kernel"].w
    assert len({str(shard.index) for shard in up.addressable_shards}) == 4
    with jax.set_mesh(mesh):
        found = outputs(model, arrays=arrays)
    assert np.abs(found - arrays["logits"]).max() <= 1e-4


def test_a_model_saved_without_its_prefix(golden_folder):
    """GPT2Model and BertModel leave "transformer." and "bert." out."""
    folder, arrays = golden_folder("decoder_gpt2")
    bare = {k.removeprefix("transformer."): v for k, v in state_of(folder).items()}
    causal = {"h.0.attn.bias": np.ones((1, 1, 40, 40), np.float32)}  # older files carry the causal mask
    save_file(bare | causal, folder / "model.safetensors")
    assert np.abs(outputs(hugging_face.load(folder), arrays=arrays) - arrays["logits"]).max() <= 1e-4


def test_bert_without_heads_is_written_as_bertmodel(golden_folder, tmp_path):
    folder, _ = golden_folder("encoder_bert")
    model = hugging_face.load(folder)
    cfg = dataclasses.replace(model.cfg, mlm_head=False)
    params = {k: v for k, v in model.params.items() if k != "mlm"}
    hugging_face.save(tmp_path / "out", params, cfg)
    assert "embeddings.word_embeddings.weight" in state_of(tmp_path / "out")
    again = hugging_face.load(tmp_path / "out")
    assert again.cfg == cfg and again.settings["architectures"] == ["BertModel"]


@pytest.mark.parametrize(("rtd_head", "name"), [("none", "ElectraModel"), ("token", "ElectraForPreTraining")])
def test_electra_is_written_with_the_head_it_has(tmp_path, rtd_head, name):
    cfg = dataclasses.replace(FAMILY_OF["electra"], mlm_head=False, rtd_head=rtd_head)
    hugging_face.save(tmp_path, random_params(cfg), cfg)
    again = hugging_face.load(tmp_path)
    assert again.settings["architectures"] == [name] and again.cfg.rtd_head == rtd_head and not again.cfg.mlm_head
    assert ("electra.embeddings.word_embeddings.weight" in state_of(tmp_path)) == (rtd_head == "token")


def test_what_transformers_leaves_out_of_a_deberta_is_read(golden_folder, tmp_path):
    """The token head under its other name, the replaced-token head, and the decoder's positions; written, they come back."""
    folder, arrays = golden_folder("encoder_deberta")
    state, rng = state_of(folder), np.random.default_rng(0)
    for old, new in (("transform.dense", "dense"), ("transform.LayerNorm", "LayerNorm")):
        for part in ("weight", "bias"):
            state[f"lm_predictions.lm_head.{new}.{part}"] = state.pop(f"cls.predictions.{old}.{part}")
    state["lm_predictions.lm_head.bias"] = state.pop("cls.predictions.bias")
    for part, shape in (("dense.weight", (32, 32)), ("dense.bias", 32), ("LayerNorm.weight", 32),
                        ("LayerNorm.bias", 32), ("classifier.weight", (1, 32)), ("classifier.bias", 1)):  # fmt: skip
        state[f"mask_predictions.{part}"] = rng.normal(size=shape).astype(np.float32)
    save_file(state, folder / "model.safetensors")
    model = hugging_face.load(folder)
    assert model.cfg.rtd_head == "token_and_first" and model.cfg.decoder_positions == 40
    real = arrays["real"].astype(bool)
    assert np.abs(outputs(model, arrays=arrays) - arrays["logits"])[real].max() <= 1e-4
    np.testing.assert_array_equal(model.params["rtd"]["out"]["kernel"].w, state["mask_predictions.classifier.weight"])
    hugging_face.save(tmp_path / "out", model.params, model.cfg)
    again = hugging_face.load(tmp_path / "out")
    assert again.cfg == model.cfg
    for (path, x), y in zip(trees.leaves_with_path(model.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("deberta", {"conv_kernel_size": 3}, "conv_kernel_size is 3, expected 0 or None"),
        ("deberta", {"share_att_key": False}, "share_att_key is False, expected True"),
        ("deberta", {"pos_att_type": ["c2p"]}, "pos_att_type is .'c2p'., expected"),
        ("deberta", {"norm_rel_ebd": "none"}, "norm_rel_ebd is 'none', expected 'layer_norm'"),
        ("deberta", {"position_buckets": -1}, "position_buckets is -1, expected a positive integer"),
        ("deberta", {"max_relative_positions": 4}, "config.json: need buckets >= 2 and max_position"),
        ("t5_1_1", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu', expected one of 'relu'"),
        ("t5_1_1", {"is_encoder_decoder": False}, "is_encoder_decoder is False, expected True"),
        ("electra_generator", {"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        (
            "electra_discriminator",
            {"embedding_size": 32},
            r"word_embeddings.weight. has shape \(97, 20\), its config asks for \(97, 32\)",
        ),
    ],
)
def test_variants_that_we_do_not_have_are_refused(golden_folder, name, change, message):
    folder, _ = golden_folder(name if name.startswith("t5") else f"encoder_{name}")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(DataError, match=message):
        hugging_face.load(folder)


def test_matrices_of_any_form_are_exported_as_dense_ones(tmp_path):
    cfg = dataclasses.replace(SMALL, weights=(("blocks/mlp/*", weights.LowRank(rank=4)),))
    params = random_params(cfg)
    hugging_face.save(tmp_path, params, cfg)
    found = hugging_face.load(tmp_path)
    np.testing.assert_allclose(
        outputs(found, IDS), np.asarray(jax.jit(lambda p: decoder.apply(p, IDS, cfg))(params)), atol=1e-4
    )


def test_the_vocabulary_travels_along(tmp_path):
    params = random_params(SMALL)
    for name, vocabulary in (
        ("bytes", ByteVocabulary()),
        ("bpe", train_bpe(["some text, and some more text"] * 9, 300)),
    ):
        hugging_face.save(tmp_path / name, params, SMALL, vocabulary=vocabulary)
        again = hugging_face.load_vocabulary(tmp_path / name)
        assert again.encode("some text é") == vocabulary.encode("some text é")
        settings = hugging_face.load(tmp_path / name).settings
        assert settings["eos_token_id"] == vocabulary.eos_id and settings["pad_token_id"] == vocabulary.pad_id


FAMILY_OF = {
    "llama": SMALL,
    "gpt2": decoder.Config(
        vocab_size=300, layers=2, width=16, heads=4, ffn=24, norm="layer", activation="gelu_tanh", bias=True,
        rotary_fraction=0.0, learned_positions=20, tied_head=True, initializer_stddev=0.3,
    ),
    "gpt_neox": decoder.Config(
        vocab_size=300, layers=2, width=16, heads=4, ffn=24, norm="layer", activation="gelu", bias=True,
        rotary_fraction=0.5, parallel_residual=True, initializer_stddev=0.3,
    ),
    "bert": encoder.Config(
        vocab_size=300, layers=2, width=16, heads=4, ffn=24, learned_positions=20, mlm_head=True, initializer_stddev=0.3
    ),
    "electra": encoder.Config(
        vocab_size=300, layers=2, width=16, heads=4, ffn=24, learned_positions=20, mlm_head=True, embedding_size=12,
        initializer_stddev=0.3,
    ),
    "deberta-v2": encoder.Config(
        vocab_size=300, layers=2, width=16, heads=4, ffn=24, learned_positions=0, token_types=0, mlm_head=True,
        norm_eps=1e-7, disentangled=Disentangled(4, 16), projection="before_norm", initializer_stddev=0.3,
    ),
    "t5": encoder_decoder.Config(
        vocab_size=300, layers=2, decoder_layers=3, width=16, heads=4, head_dim=6, ffn=24, relative_buckets=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILY_OF)
def test_the_family_is_found_from_the_configuration(tmp_path, family):
    cfg = FAMILY_OF[family]
    hugging_face.save(tmp_path, random_params(cfg), cfg)
    again = hugging_face.load(tmp_path)
    assert again.settings["model_type"] == family
    assert dataclasses.replace(again.cfg, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim) == cfg


@pytest.mark.parametrize("family", FAMILY_OF)
def test_transformers_loads_what_we_export(tmp_path, family):
    """Its logits are ours; nothing is left over and nothing made up."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = FAMILY_OF[family]
    model = hugging_face.Model(cfg, random_params(cfg), {})
    hugging_face.save(tmp_path, model.params, cfg, vocabulary=train_bpe(["words and more words"] * 9, 300))
    auto = {decoder: hf.AutoModelForCausalLM, encoder: hf.AutoModelForMaskedLM}
    auto = next((v for m, v in auto.items() if isinstance(cfg, m.Config)), hf.AutoModelForSeq2SeqLM)
    theirs, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    given = [torch.tensor(np.asarray(IDS))]
    with torch.no_grad():
        targets = {"decoder_input_ids": given[0]} if family == "t5" else {}
        expected = theirs.eval()(*given, **targets).logits.numpy()
    ones = {"token_types": np.zeros(IDS.shape, np.int32), "real": np.ones(IDS.shape, np.int32), "targets": IDS}
    assert np.abs(outputs(model, IDS, ones) - expected).max() <= 1e-4
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("words and more")["input_ids"] == hugging_face.load_vocabulary(tmp_path).encode("words and more")
    theirs.save_pretrained(tmp_path / "back", max_shard_size="10KB")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1  # their shards and index, read by us
    back = hugging_face.load(tmp_path / "back")
    for (path, x), y in zip(trees.leaves_with_path(model.params), jax.tree.leaves(back.params), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize(
    ("cfg", "family", "message"),
    [
        (dataclasses.replace(SMALL, learned_positions=9), None, "no family can express this model.*LLaMA cannot"),
        (dataclasses.replace(SMALL, rotary_fraction=0.5), "llama", r"rotary_fraction=0.5 \(has 1.0\)"),
        (SMALL, "gpt-2", "did you mean 'gpt2'"),
        (SMALL, "bert", "another kind of model"),
        (dataclasses.replace(FAMILY_OF["gpt2"], kv_heads=2), "gpt2", "2 key/value heads for 4"),
    ],
)
def test_what_no_family_can_express_is_an_error(tmp_path, cfg, family, message):
    with pytest.raises(ValueError, match=message):
        hugging_face.save(tmp_path, {}, cfg, family=family)
    assert not list(tmp_path.glob("*.safetensors"))


def test_arrays_without_a_name_are_an_error_that_leaves_the_folder_as_it_was(tmp_path):
    params = random_params(SMALL)
    hugging_face.save(tmp_path, params, SMALL)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="no name for adapters"):
        hugging_face.save(tmp_path, params | {"adapters": jnp.ones(3)}, SMALL)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_transformers_reads_our_bytes(tmp_path):
    hf = pytest.importorskip("transformers")
    hugging_face.save(tmp_path, random_params(SMALL), SMALL, vocabulary=ByteVocabulary())
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("hé").input_ids == [*ByteVocabulary().encode("hé"), ByteVocabulary().eos_id]
    assert len(theirs) == ByteVocabulary().size
