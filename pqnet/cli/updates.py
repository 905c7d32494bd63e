"""The commands ``diff``, ``patch``, ``sign`` and ``keygen``: new versions of a file, and whose they are."""

import argparse
import os
from typing import Any

import pqnet
from pqnet.cli.data import check_output
from pqnet.cli.parser import add_common, command
from pqnet.io import make_keys

__all__ = ["PARSERS"]


def _diff(args: argparse.Namespace) -> None:
    check_output(args.output, (".pqd",))
    pqnet.diff(args.old, args.new, args.output)
    size, whole = os.path.getsize(args.output), os.path.getsize(args.new)
    print(f"{args.output}: {size} bytes, {size / whole:.2%} of {args.new}")


def _patch(args: argparse.Namespace) -> None:
    check_output(args.output, (".h5",))
    pqnet.patch(args.old, args.update, args.output)
    print(f"{args.output}: {os.path.getsize(args.output)} bytes, the new file of {args.update}")


def _sign(args: argparse.Namespace) -> None:
    print(f"{pqnet.sign(args.model, args.key)}: signature of {args.model}")


def _keygen(args: argparse.Namespace) -> None:
    make_keys(args.private, args.public)
    print(f"{args.private}: private key, to sign with; keep it secret")
    print(f"{args.public}: public key, to verify with; give it to whoever gets your files")


def _diff_parser(sub: Any) -> None:
    p = command(
        sub,
        "diff",
        _diff,
        "write what turns one model file into another: small if only codebooks, scales, biases and norms differ",
        "pqnet diff old.h5 new.h5 -o update.pqd",
    )
    p.add_argument("old", help="pqnet model file that there is")
    p.add_argument("new", help="pqnet model file to turn it into")
    p.add_argument("-o", "--output", required=True, help="update to write (.pqd)")
    add_common(p)


def _patch_parser(sub: Any) -> None:
    p = command(
        sub,
        "patch",
        _patch,
        "make the new model file of the old one and an update, byte for byte",
        "pqnet patch old.h5 update.pqd -o new.h5",
    )
    p.add_argument("old", help="pqnet model file that the update was made for")
    p.add_argument("update", help="file of pqnet diff")
    p.add_argument("-o", "--output", required=True, help="model file to write; may be the old one")
    add_common(p)


def _sign_parser(sub: Any) -> None:
    p = command(
        sub,
        "sign",
        _sign,
        "sign a model file with Ed25519: writes the signature beside it, small.h5.sig",
        "pqnet sign small.h5 --key private.pem",
    )
    p.add_argument("model", help="pqnet model file")
    p.add_argument("--key", required=True, metavar="PEM", help="private key, of pqnet keygen or openssl")
    add_common(p)


def _keygen_parser(sub: Any) -> None:
    p = command(
        sub,
        "keygen",
        _keygen,
        "make a pair of Ed25519 keys for pqnet sign and pqnet verify",
        "pqnet keygen private.pem public.pem",
    )
    p.add_argument("private", help="PEM file to write, readable by you alone; never overwritten")
    p.add_argument("public", help="PEM file to write, for those who verify")
    add_common(p)


PARSERS = (_diff_parser, _patch_parser, _sign_parser, _keygen_parser)
