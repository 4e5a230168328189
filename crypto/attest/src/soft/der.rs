//! Writes the little ASN.1 that test certificates need (X.690, distinguished encoding).

use souk_crypto::UnixTime;
use x509_cert::der::asn1::ObjectIdentifier;

const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const EC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA_KEY: &str = "1.2.840.113549.1.1.1";
const RSA_PSS: &str = "1.2.840.113549.1.1.10";
const MGF1: &str = "1.2.840.113549.1.1.8";
const SHA384: &str = "2.16.840.1.101.3.4.2.2";
const COMMON_NAME: &str = "2.5.4.3";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";
const CRL_NUMBER: &str = "2.5.29.20";
const CERTIFICATE_ISSUER: &str = "2.5.29.29";

/// What a certificate or list is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    EcdsaSha256,
    RsaPssSha384,
}

/// A public key to put into a certificate.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    /// An uncompressed point.
    P256(&'a [u8]),
    /// An uncompressed point.
    P384(&'a [u8]),
    /// An `RSAPublicKey` as DER.
    Rsa(&'a [u8]),
}

/// A certificate before it is signed.
pub(super) struct ToSign<'a> {
    pub(super) serial: u64,
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    pub(super) from: UnixTime,
    pub(super) to: UnixTime,
    pub(super) key: Key<'a>,
    pub(super) is_ca: bool,
    /// Object id and contents, none of them critical.
    pub(super) extensions: Vec<(ObjectIdentifier, Vec<u8>)>,
}

/// The part of a certificate that is signed (RFC 5280 section 4.1).
pub(super) fn certificate(cert: &ToSign<'_>, algorithm: Algorithm) -> Vec<u8> {
    let mut extensions = vec![
        extension(BASIC_CONSTRAINTS, true, &sequence(&[&ca_flag(cert.is_ca)])),
        // keyCertSign and cRLSign, or digitalSignature.
        extension(
            KEY_USAGE,
            true,
            &if cert.is_ca {
                [3, 2, 1, 0b0000_0110]
            } else {
                [3, 2, 7, 0b1000_0000]
            },
        ),
    ];
    for (oid, contents) in &cert.extensions {
        extensions.push(extension(&oid.to_string(), false, contents));
    }
    sequence(&[
        &tagged(0xa0, &integer(&[2])),
        &integer(&cert.serial.to_be_bytes()),
        &algorithm_id(algorithm),
        &name(cert.issuer),
        &sequence(&[&time(cert.from), &time(cert.to)]),
        &name(cert.subject),
        &key_info(cert.key),
        &tagged(0xa3, &sequence_of(&extensions)),
    ])
}

/// The part of a revocation list that is signed (RFC 5280 section 5.1). Each entry is a serial and, where `issuer` did not issue
/// it, who did.
pub(super) fn revocation_list(
    issuer: &str,
    from: UnixTime,
    to: UnixTime,
    revoked: &[(Option<&str>, u64)],
    algorithm: Algorithm,
) -> Vec<u8> {
    let revoked: Vec<_> = revoked
        .iter()
        .map(|(other_issuer, serial)| {
            let extensions = other_issuer.map_or_else(Vec::new, |issuer| {
                let names = sequence(&[&tagged(0xa4, &name(issuer))]);
                sequence(&[&extension(CERTIFICATE_ISSUER, true, &names)])
            });
            sequence(&[&integer(&serial.to_be_bytes()), &time(from), &extensions])
        })
        .collect();
    let revoked = if revoked.is_empty() {
        Vec::new()
    } else {
        sequence_of(&revoked)
    };
    let number = extension(CRL_NUMBER, false, &integer(&[1]));
    sequence(&[
        &integer(&[1]),
        &algorithm_id(algorithm),
        &name(issuer),
        &time(from),
        &time(to),
        &revoked,
        &tagged(0xa0, &sequence(&[&number])),
    ])
}

/// What was signed, with its signature.
pub(super) fn signed(to_sign: &[u8], algorithm: Algorithm, signature: &[u8]) -> Vec<u8> {
    sequence(&[to_sign, &algorithm_id(algorithm), &bits(signature)])
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

pub(super) fn sequence_of(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

pub(super) fn octets(contents: &[u8]) -> Vec<u8> {
    tagged(4, contents)
}

/// An unsigned number, big endian.
pub(super) fn integer(number: &[u8]) -> Vec<u8> {
    let leading = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[leading.min(number.len().saturating_sub(1))..];
    let sign = if number.first().is_some_and(|byte| byte & 0x80 != 0) {
        &[0][..]
    } else {
        &[]
    };
    tagged(2, &[sign, number].concat())
}

pub(super) fn enumerated(number: u8) -> Vec<u8> {
    tagged(10, &[number])
}

pub(super) fn ia5(text: &str) -> Vec<u8> {
    tagged(22, text.as_bytes())
}

pub(super) fn oid(dotted: &str) -> Vec<u8> {
    let oid = ObjectIdentifier::new(dotted).expect("a constant of ours");
    tagged(6, oid.as_bytes())
}

fn ca_flag(is_ca: bool) -> Vec<u8> {
    // False is the default, which is left out.
    if is_ca {
        tagged(1, &[0xff])
    } else {
        Vec::new()
    }
}

fn extension(oid_text: &str, critical: bool, contents: &[u8]) -> Vec<u8> {
    let critical = ca_flag(critical);
    sequence(&[&oid(oid_text), &critical, &octets(contents)])
}

fn algorithm_id(algorithm: Algorithm) -> Vec<u8> {
    let null = [5, 0];
    match algorithm {
        Algorithm::EcdsaSha256 => sequence(&[&oid(ECDSA_SHA256)]),
        Algorithm::RsaPssSha384 => {
            let sha384 = sequence(&[&oid(SHA384), &null]);
            let parameters = sequence(&[
                &tagged(0xa0, &sha384),
                &tagged(0xa1, &sequence(&[&oid(MGF1), &sha384])),
                &tagged(0xa2, &integer(&[48])),
            ]);
            sequence(&[&oid(RSA_PSS), &parameters])
        }
    }
}

fn key_info(key: Key<'_>) -> Vec<u8> {
    let (algorithm, key) = match key {
        Key::P256(point) => (sequence(&[&oid(EC_KEY), &oid(P256)]), point),
        Key::P384(point) => (sequence(&[&oid(EC_KEY), &oid(P384)]), point),
        Key::Rsa(key) => (sequence(&[&oid(RSA_KEY), &[5, 0]]), key),
    };
    sequence(&[&algorithm, &bits(key)])
}

fn name(common: &str) -> Vec<u8> {
    let attribute = sequence(&[&oid(COMMON_NAME), &tagged(12, common.as_bytes())]);
    sequence(&[&tagged(0x31, &attribute)])
}

/// `UTCTime` up to 2049, `GeneralizedTime` after (RFC 5280 section 4.1.2.5).
fn time(instant: UnixTime) -> Vec<u8> {
    let text: String = crate::date::format(instant)
        .chars()
        .filter(|c| c.is_ascii_digit())
        .collect::<String>()
        + "Z";
    if text.as_str() < "2050" {
        tagged(23, &text.as_bytes()[2..])
    } else {
        tagged(24, text.as_bytes())
    }
}

fn bits(contents: &[u8]) -> Vec<u8> {
    tagged(3, &[&[0], contents].concat())
}

fn tagged(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let mut out = vec![tag];
    match len {
        0..=0x7f => out.push(u8::try_from(len).expect("below 128")),
        _ => {
            let bytes = len.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            out.push(0x80 | u8::try_from(bytes.len()).expect("at most 8"));
            out.extend_from_slice(bytes);
        }
    }
    out.extend_from_slice(contents);
    out
}
