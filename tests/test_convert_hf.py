"""`pqnet convert hf`: folders of the package transformers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
t = pytest.importorskip("transformers")
import pqnet  # noqa: E402
from pqnet.cli.main import main  # noqa: E402

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def convert(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Return the exit code of a conversion of ./net to net.h5, and what it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(["convert", "hf", "net", "-o", "net.h5", *options])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "net"


def test_an_encoder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = t.BertModel(t.BertConfig(**SMALL)).eval()
    module.save_pretrained(folder)
    code, said = convert(capsys)
    assert code == 0, said
    assert "random" not in said
    assert "input input_ids: (batch, tokens), batch and tokens free" in said
    model = pqnet.load("net.h5")
    ids, mask = np.random.default_rng(0).integers(0, 60, (3, 13)), np.ones((3, 13), np.int64)
    mask[1, 7:] = 0
    tokens = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    with torch.no_grad():
        want = module(**{name: torch.from_numpy(a) for name, a in tokens.items()})[0].numpy()
    np.testing.assert_allclose(next(iter(model.run(tokens).values())), want, atol=1e-5)
    assert model.golden is not None  # texts of words, of which nothing is padded
    assert len(np.unique(model.golden.inputs()["input_ids"])) > 5
    assert model.golden.inputs()["attention_mask"].all()
    assert main(["verify", "net.h5"]) == 0


def test_a_decoder_in_parts_with_other_weights_than_its_class_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = t.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=7)
    module = t.GPT2LMHeadModel(config).eval()
    torch.save(module.transformer.state_dict(), "base.bin")
    folder.mkdir()
    Path("base.bin").rename(folder / "pytorch_model.bin")  # as older files have it: no head, names without prefix
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    code, said = convert(capsys)
    assert code == 0, said
    assert "random" not in said
    ids = np.random.default_rng(0).integers(0, 60, (2, 9))
    with torch.no_grad():
        want = module(torch.from_numpy(ids)).logits.numpy()
    decoder = pqnet.Decoder(pqnet.load("net.h5"))
    np.testing.assert_allclose(decoder.prefill(ids, logits="all"), want, atol=1e-5)
    assert decoder.model.graph.meta["decoder"]["stop"] == [7]


def test_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {name: value for name, value in SMALL.items() if name != "vocab_size"}
    module = t.ViTForImageClassification(t.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)).eval()
    module.save_pretrained(folder)
    code, said = convert(capsys)
    assert code == 0, said
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).logits.numpy()
    np.testing.assert_allclose(pqnet.load("net.h5")(x), want, atol=1e-5)


def test_random_weights_are_announced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t.BertModel(t.BertConfig(**SMALL)).save_pretrained(folder)
    code, said = convert(capsys, "--architecture", "BertForSequenceClassification")
    assert code == 0, said
    assert "warning: weights: model.safetensors lacks classifier.bias, classifier.weight: random" in said
    (folder / "model.safetensors").unlink()
    code, said = convert(capsys)
    assert code == 0
    assert "warning: weights: random, net has no model.safetensors or pytorch_model.bin" in said


def test_folders_that_cannot_be_converted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(config: object = None) -> str:
        if config is not None:
            folder.mkdir(exist_ok=True)
            text = config if isinstance(config, str) else json.dumps(config)
            (folder / "config.json").write_text(text, encoding="utf-8")
        code, said = convert(capsys)
        assert code == 2
        assert not Path("net.h5").exists()
        assert "Traceback" not in said
        return said

    assert "net: expected a folder with config.json, as save_pretrained writes it, got no such folder" in refusal()
    folder.mkdir()
    (folder / "vocab.txt").touch()
    assert "got ['vocab.txt']" in refusal()
    assert "expected readable JSON" in refusal("{")
    assert "expected an object, got list" in refusal([])
    assert "under 'architectures', got 'NoSuchModel' of model type 'none'; --architecture names one" in refusal(
        {"architectures": ["NoSuchModel"], "model_type": "none"}
    )
    assert "under 'architectures', got None" in refusal({"model_type": "bert"})
    t.BertConfig(**SMALL, architectures=["BertModel"]).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert "net: BertModel cannot be made from it" in refusal()
    t.BertConfig(**{**SMALL, "hidden_size": 32}).save_pretrained(folder)
    t.BertModel(t.BertConfig(**SMALL)).save_pretrained("other")
    Path("other/model.safetensors").replace(folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "architectures": ["BertModel"]}), "utf-8"
    )
    assert "net: BertModel cannot be made from it" in refusal()
    (folder / "model.safetensors").unlink()
    t.Wav2Vec2Config(architectures=["Wav2Vec2Model"], **SMALL).save_pretrained(folder)
    assert "expected a network that reads texts or images, got Wav2Vec2Model, which reads input_values" in refusal()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "transformers" or "converters.transf" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, said = convert(capsys)
    assert code == 2
    assert "convert hf: needs the package 'transformers'; pip install 'pqnet[transformers]'" in said
