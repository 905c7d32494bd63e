"""Signatures: who made a file, by Ed25519 and the package cryptography.

The signature of ``small.h5`` is the file ``small.h5.sig`` beside it: the 64 bytes of Ed25519 (RFC 8032) over the 32
bytes of the SHA-256 of the whole file. The signed file stays as it is, to the byte, so updates (`pqnet.patch`) give it
back with its signature valid, and other tools can check it::

    openssl dgst -sha256 -binary small.h5 > digest
    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in digest -sigfile small.h5.sig

Keys are PEM files as ``openssl genpkey -algorithm ed25519`` makes them: PKCS #8, and SubjectPublicKeyInfo.
"""

import hashlib
import os
from types import SimpleNamespace
from typing import Any

from pqnet._check import error
from pqnet.errors import FormatError, PQNetError
from pqnet.io.container import checked_file
from pqnet.io.files import Path, check_output, file_name, replaced

__all__ = ["SUFFIX", "check_signature", "make_keys", "sign"]

SUFFIX = ".sig"
SIZE = 64  # bytes of a signature
MAX_KEY = 1 << 16  # bytes of a PEM file


def sign(path: Path, key: Path) -> str:
    """Sign a pqnet file; `pqnet.load` with the public key then loads it and no other.

    Parameters
    ----------
    path : str or path
        Model file. Its digest is checked first.
    key : str or path
        PEM file of an Ed25519 private key without a password.

    Returns
    -------
    str
        The name of the signature's file: ``path`` and ``.sig``. It has to stay beside the file, under this name.

    Raises
    ------
    PQNetError
        If a file is missing or damaged, ``key`` is no such key, or the package cryptography is missing.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import model_path
    >>> from pqnet.io import make_keys
    >>> make_keys("private.pem", "public.pem")
    >>> pqnet.load(model_path()).save("model.h5")
    >>> pqnet.sign("model.h5", "private.pem")
    'model.h5.sig'
    >>> model = pqnet.load("model.h5", key="public.pem")
    """
    crypto = _cryptography()
    data = checked_file(path)
    private = _key(key, "private", crypto)
    name = file_name(path) + SUFFIX
    with replaced(name) as temporary, open(temporary, "wb") as stream:
        stream.write(private.sign(hashlib.sha256(data).digest()))
    return name


def check_signature(path: Path, data: bytes, key: Path) -> None:
    """Raise unless the bytes of a file have the signature that lies beside it, by the private part of a key.

    Parameters
    ----------
    path : str or path
    data : bytes
        What was read from ``path``: what is loaded has to be what was checked.
    key : str or path
        PEM file of an Ed25519 public key.

    Raises
    ------
    FormatError
        If the signature is no signature, or does not fit.
    PQNetError
        If there is no signature, ``key`` is no such key, or the package cryptography is missing.
    """
    crypto = _cryptography()
    public = _key(key, "public", crypto)
    name, signature = file_name(path), file_name(path) + SUFFIX
    try:
        with open(signature, "rb") as stream:
            made = stream.read(SIZE + 1)
    except FileNotFoundError:
        raise PQNetError(
            f"{name}: expected its signature beside it, {signature}, which is missing; "
            "get it from where the file is from, or sign your own by `pqnet sign`"
        ) from None
    except OSError as reason:
        raise PQNetError(f"{name}: cannot read its signature {signature}: {reason.strerror}") from None
    if len(made) != SIZE:
        raise FormatError(f"{signature}: expected an Ed25519 signature of {SIZE} bytes, got another file")
    try:
        public.verify(made, hashlib.sha256(data).digest())
    except crypto.InvalidSignature:
        raise FormatError(
            f"{name}: expected a file that was signed with the private key of {file_name(key)}; it was changed after "
            "it was signed, or signed with another key"
        ) from None


def make_keys(private: Path, public: Path) -> None:
    """Write the two PEM files of a new Ed25519 key; the private one for its owner's eyes only, and never over another.

    Raises
    ------
    PQNetError
        If ``private`` exists, a file cannot be written, or the package cryptography is missing.
    """
    crypto = _cryptography()
    for path, name in ((private, "private"), (public, "public")):
        check_output(path, name)
    if os.path.exists(file_name(private)):
        raise error("private", "a new file", f"{file_name(private)}, which exists", "keys are never overwritten")
    key = crypto.Ed25519PrivateKey.generate()
    coding, form = crypto.serialization, crypto.serialization.Encoding.PEM
    secret = key.private_bytes(form, coding.PrivateFormat.PKCS8, coding.NoEncryption())
    known = key.public_key().public_bytes(form, coding.PublicFormat.SubjectPublicKeyInfo)
    for path, text in ((private, secret), (public, known)):
        with replaced(path) as temporary, open(temporary, "wb") as stream:
            if text is secret:
                os.chmod(temporary, 0o600)
            stream.write(text)


def _cryptography() -> Any:
    """Return what is needed of the package cryptography, or raise PQNetError."""
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ModuleNotFoundError:
        raise PQNetError("key: signatures need the package cryptography; pip install 'pqnet[sign]'") from None
    return SimpleNamespace(
        InvalidSignature=InvalidSignature,
        UnsupportedAlgorithm=UnsupportedAlgorithm,
        serialization=serialization,
        Ed25519PrivateKey=Ed25519PrivateKey,
        Ed25519PublicKey=Ed25519PublicKey,
    )


def _key(path: Path, part: str, crypto: Any) -> Any:
    """Return the private or the public part of a key from its PEM file."""
    name, expected = file_name(path), f"a PEM file of an Ed25519 {part} key"
    try:
        with open(name, "rb") as stream:
            text = stream.read(MAX_KEY)
    except OSError as reason:
        raise error("key", expected, f"{name}: {reason.strerror}") from None
    if part == "public" and b"PRIVATE KEY-----" in text:
        raise error("key", expected, f"a private key in {name}", "openssl pkey -in KEY -pubout gives its public one")
    if part == "private" and b"PUBLIC KEY-----" in text:
        raise error("key", expected, f"a public key in {name}", "files are signed with the private one")
    try:
        if part == "private":
            key = crypto.serialization.load_pem_private_key(text, None)
        else:
            key = crypto.serialization.load_pem_public_key(text)
    except TypeError:
        raise error("key", expected, f"{name}, which has a password", "--key <(openssl pkey -in KEY)") from None
    except (ValueError, crypto.UnsupportedAlgorithm):
        raise error("key", expected, f"{name}, which is none", "pqnet keygen makes a pair") from None
    if not isinstance(key, crypto.Ed25519PrivateKey if part == "private" else crypto.Ed25519PublicKey):
        raise error("key", expected, f"{name}, a key of another kind", "pqnet keygen makes a pair")
    return key
