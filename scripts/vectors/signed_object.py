"""Makes fixtures/crypto/signed-object.json without any code of souk.

Needs cbor2, blake3 and cryptography. Run: python3 scripts/vectors/signed_object.py > fixtures/crypto/signed-object.json
"""

import json

import blake3
import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RAW = (Encoding.Raw, PublicFormat.Raw)
ED25519, TYP, DOMAIN, NETWORK = -19, 16, -65537, -65538


def canonical(value):
    return cbor2.dumps(value, canonical=True)


def prefixed(*parts):
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def public(secret):
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(*RAW)


params = {0: 1, 1: 50, 2: 10_000, 3: 3_600, 4: False}
digits = blake3.blake3(prefixed(b"souk/1/hash/network-parameters", b"", canonical(params))).hexdigest()[:8]
network = f"souk.{digits}"

node, card, log, seal = (bytes([i]) * 32 for i in (7, 1, 2, 3))
window = {0: 1_000_000, 1: 2_000_000}
sub_keys = {
    0: 5,
    1: window,
    2: public(card),
    3: public(log),
    4: [1, X25519PrivateKey.from_private_bytes(seal).public_key().public_bytes(*RAW)],
    5: [{0: epoch, 1: 1, 2: bytes([9]) * 32, 3: window} for epoch in range(3)],
}
protected = canonical({
    1: ED25519,
    4: public(node),
    TYP: "application/vnd.souk.sub-keys+cose",
    DOMAIN: "souk/1/sub-keys",
    NETWORK: network,
})
payload = canonical(sub_keys)
to_be_signed = canonical(["Signature1", protected, b"", payload])
signature = Ed25519PrivateKey.from_private_bytes(node).sign(to_be_signed)
signed = canonical(cbor2.CBORTag(18, [protected, {}, payload, signature]))
digest = blake3.blake3(prefixed(b"souk/1/hash/object", b"", signed)).hexdigest()

print(json.dumps({
    "source": "scripts/vectors/signed_object.py (cbor2, cryptography, blake3)",
    "network": network,
    "node_secret": node.hex(),
    "signed": signed.hex(),
    "digest": digest,
}, indent=2))
