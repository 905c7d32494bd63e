"""Signatures beside files: who made them; files, keys and signatures that do not fit are refused in one line."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from forge import document_of, forge

import pqnet
from pqnet import FormatError, PQNetError
from pqnet.cli.main import main
from pqnet.demo import model_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed network and two pairs of keys."""
    folder = tmp_path_factory.mktemp("signed")
    shutil.copy(model_path(), folder / "small.h5")
    for name in ("", "other-"):
        assert main(["keygen", str(folder / f"{name}private.pem"), str(folder / f"{name}public.pem")]) == 0
    assert main(["sign", str(folder / "small.h5"), "--key", str(folder / "private.pem")]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path) -> None:
    """Copies of all that in the working directory."""
    for path in made.iterdir():
        shutil.copy(path, tmp_path)


def run(line: str) -> int:
    return main(line.split())


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_what_was_signed_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify small.h5 --key public.pem") == 0
    signed, checked, recorded = capsys.readouterr().out.splitlines()
    assert signed == "small.h5: signed with the private key of public.pem"
    assert "digest, structure" in checked and "recorded outputs" in recorded
    loaded = pqnet.load("small.h5", key="public.pem")
    assert loaded.inputs == pqnet.load("small.h5").inputs
    assert os.path.getsize("small.h5.sig") == 64


def test_a_forged_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own checksum is right, as a forger would make it."""
    document, vectors = document_of(Path("small.h5"))
    vectors["float32"] = vectors["float32"][:-4] + b"\0\0\0\1"
    forge(Path("small.h5"), document, vectors)
    pqnet.load("small.h5")
    assert run("verify small.h5 --key public.pem") == 2
    assert "small.h5: expected a file that was signed with the private key of public.pem" in capsys.readouterr().err


def test_a_damaged_file_is_said_to_be_damaged() -> None:
    data = bytearray(Path("small.h5").read_bytes())
    data[-100] ^= 1
    Path("small.h5").write_bytes(data)
    with pytest.raises(FormatError, match="small.h5: the file is damaged: its content does not match its checksum"):
        pqnet.load("small.h5", key="public.pem")
    with pytest.raises(FormatError, match="small.h5: the file is damaged"):
        pqnet.sign("small.h5", "private.pem")


def test_another_key_is_refused() -> None:
    with pytest.raises(FormatError, match="private key of other-public.pem; it was changed after it was signed, or"):
        pqnet.load("small.h5", key="other-public.pem")


def test_signatures_that_are_none() -> None:
    Path("small.h5.sig").unlink()
    with pytest.raises(PQNetError, match="small.h5: expected its signature beside it, small.h5.sig, which is missing"):
        pqnet.load("small.h5", key="public.pem")
    for content in (b"", bytes(63), bytes(65), bytes(1 << 20)):
        Path("small.h5.sig").write_bytes(content)
        with pytest.raises(FormatError, match="small.h5.sig: expected an Ed25519 signature of 64 bytes, got another"):
            pqnet.load("small.h5", key="public.pem")
    Path("small.h5.sig").write_bytes(bytes(64))
    with pytest.raises(FormatError, match="signed with another key"):
        pqnet.load("small.h5", key="public.pem")
    Path("small.h5.sig").unlink()
    Path("small.h5.sig").mkdir()
    with pytest.raises(PQNetError, match="small.h5: cannot read its signature small.h5.sig: Is a directory"):
        pqnet.load("small.h5", key="public.pem")


PUBLIC, PRIVATE = (
    "key: expected a PEM file of an Ed25519 public key",
    "key: expected a PEM file of an Ed25519 private key",
)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("none.pem", f"{PUBLIC}, got none.pem: No such file"),
        ("private.pem", f"{PUBLIC}, got a private key in private.pem; openssl pkey -in KEY -pubout gives"),
        ("small.h5", f"{PUBLIC}, got small.h5, which is none; pqnet keygen makes a pair"),
        ("curve-public.pem", f"{PUBLIC}, got curve-public.pem, a key of another kind"),
        ("cut.pem", f"{PUBLIC}, got cut.pem, which is none"),
    ],
)
def test_other_files_than_public_keys(key: str, match: str) -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    Path("curve-public.pem").write_bytes(curve.public_bytes(serialization.Encoding.PEM, form))
    Path("cut.pem").write_bytes(Path("public.pem").read_bytes()[:60])
    with pytest.raises(PQNetError, match=match):
        pqnet.load("small.h5", key=key)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("none.pem", f"{PRIVATE}, got none.pem: No such file"),
        ("public.pem", f"{PRIVATE}, got a public key in public.pem; files are signed with the private one"),
        ("small.h5", f"{PRIVATE}, got small.h5, which is none; pqnet keygen makes a pair"),
        ("curve.pem", f"{PRIVATE}, got curve.pem, a key of another kind"),
        ("locked.pem", rf"{PRIVATE}, got locked.pem, which has a password; --key <\(openssl pkey -in KEY\)"),
    ],
)
def test_other_files_than_private_keys(key: str, match: str) -> None:
    Path("curve.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    Path("locked.pem").write_bytes(pem(ed25519.Ed25519PrivateKey.generate(), b"password"))
    before = Path("small.h5.sig").read_bytes()
    with pytest.raises(PQNetError, match=match):
        pqnet.sign("small.h5", key)
    assert Path("small.h5.sig").read_bytes() == before


def test_only_pqnet_files_are_signed() -> None:
    Path("text.h5").write_text("text")
    with pytest.raises(FormatError, match="text.h5: expected a pqnet file"):
        pqnet.sign("text.h5", "private.pem")


def test_private_keys_are_private_and_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert stat.S_IMODE(os.stat("private.pem").st_mode) == 0o600
    before = Path("private.pem").read_bytes(), Path("public.pem").read_bytes()
    assert run("keygen private.pem new-public.pem") == 2
    assert "private: expected a new file, got private.pem, which exists" in capsys.readouterr().err
    assert run("keygen new-private.pem none/public.pem") == 2
    assert "public: expected a file in an existing folder, got none/public.pem" in capsys.readouterr().err
    assert before == (Path("private.pem").read_bytes(), Path("public.pem").read_bytes())
    assert not Path("new-private.pem").exists() and not Path("new-public.pem").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_openssl_makes_keys_and_checks_signatures() -> None:
    """As the documentation says it does."""

    def openssl(line: str) -> None:
        subprocess.run(["openssl", *line.split()], check=True, capture_output=True)

    openssl("genpkey -algorithm ed25519 -out key.pem")
    openssl("pkey -in key.pem -pubout -out key-public.pem")
    pqnet.sign("small.h5", "key.pem")
    pqnet.load("small.h5", key="key-public.pem")
    openssl("dgst -sha256 -binary -out digest small.h5")
    openssl("pkeyutl -verify -pubin -inkey key-public.pem -rawin -in digest -sigfile small.h5.sig")


def test_a_signature_outlives_an_update() -> None:
    pqnet.quantize(pqnet.load("small.h5"), "small-blocks", metric="none").save("old.h5")
    pqnet.diff("old.h5", "small.h5", "update.pqd")
    shutil.move("small.h5", "elsewhere.h5")
    pqnet.patch("old.h5", "update.pqd", "small.h5")
    pqnet.load("small.h5", key="public.pem")


def test_without_the_package_cryptography() -> None:
    code = "import sys\nsys.modules['cryptography'] = None\nimport pqnet\npqnet.load('small.h5')\n"
    code += "pqnet.load('small.h5', key='public.pem')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "pqnet.errors.PQNetError: key: signatures need the package cryptography; pip install 'pqnet[sign]'"
    )
