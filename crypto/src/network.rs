//! The network id: a name and a binding to the parameters that must be the same for everyone.
//!
//! Threat: a node that is handed parameters of its own (a mixing delay, an epoch length) stands out by them. Parameters
//! are therefore part of the id, and the id is part of every protocol name, signature, seal and hash.

use std::{fmt, str::FromStr, sync::Arc};

use minicbor::Encode;

use crate::{cbor, domain::HashDomain};

/// Version of the wire format; part of the parameters, so that versions are networks of their own.
const WIRE_VERSION: u16 = 1;

/// Longest name of a network, in bytes. With nine more for the digits an id stays within one DNS label.
const MAX_NAME_BYTES: usize = 32;
const DIGITS: usize = 8;

/// What must be the same for every node of a network.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
#[cbor(map)]
pub struct NetworkParams {
    #[n(0)]
    wire_version: u16,
    /// Mean delay of a packet at one hop, in milliseconds.
    #[n(1)]
    mean_delay_ms: u32,
    /// Longest delay at one hop that a packet may ask for, in milliseconds.
    #[n(2)]
    max_delay_ms: u32,
    /// Length of a mix key epoch, in seconds.
    #[n(3)]
    epoch_s: u32,
    /// A network for tests: private addresses are allowed in cards and receipts.
    #[n(4)]
    test: bool,
}

impl NetworkParams {
    /// Parameters with their bounds checked.
    ///
    /// `mean_delay_ms` at most 10,000; zero only on a test network. `max_delay_ms` from the mean to 600,000. `epoch_s`
    /// from 10 to 604,800 (a week).
    ///
    /// # Errors
    /// [`NetworkError::Parameter`] names the first one that is out of bounds.
    pub fn new(
        mean_delay_ms: u32,
        max_delay_ms: u32,
        epoch_s: u32,
        test: bool,
    ) -> Result<Self, NetworkError> {
        let check = |parameter, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(NetworkError::Parameter {
                    parameter,
                    value,
                    min,
                    max,
                })
            }
        };
        check("mean_delay_ms", mean_delay_ms, u32::from(!test), 10_000)?;
        check("max_delay_ms", max_delay_ms, mean_delay_ms, 600_000)?;
        check("epoch_s", epoch_s, 10, 604_800)?;
        Ok(Self {
            wire_version: WIRE_VERSION,
            mean_delay_ms,
            max_delay_ms,
            epoch_s,
            test,
        })
    }

    /// Mean delay of a packet at one hop, in milliseconds.
    #[must_use]
    pub const fn mean_delay_ms(&self) -> u32 {
        self.mean_delay_ms
    }

    /// Longest delay at one hop that a packet may ask for, in milliseconds.
    #[must_use]
    pub const fn max_delay_ms(&self) -> u32 {
        self.max_delay_ms
    }

    /// Length of a mix key epoch, in seconds.
    #[must_use]
    pub const fn epoch_s(&self) -> u32 {
        self.epoch_s
    }

    /// Whether private addresses are allowed in cards and receipts.
    #[must_use]
    pub const fn is_test(&self) -> bool {
        self.test
    }

    fn digits(&self) -> String {
        let hash = HashDomain::NETWORK_PARAMETERS.hash_unbound(&[&cbor::encode(self)]);
        hex::encode(&hash[..DIGITS / 2])
    }
}

/// `name.xxxxxxxx`: a name and the first eight hex digits of the hash of the [`NetworkParams`].
///
/// The digits tell honest networks apart. They are no commitment against somebody who searches for other parameters
/// with the same digits and talks you into configuring them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(Arc<str>);

impl NetworkId {
    /// The id of the network of this name and these parameters.
    ///
    /// # Errors
    /// [`NetworkError::Name`] unless the name is 1 to 32 lowercase letters, digits and inner hyphens.
    pub fn new(name: &str, params: &NetworkParams) -> Result<Self, NetworkError> {
        check_name(name)?;
        Ok(Self(format!("{name}.{}", params.digits()).into()))
    }

    /// The id as it stands in protocol names and domains.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this id was made from `params`.
    ///
    /// # Errors
    /// [`NetworkError::Mismatch`] with the digits that `params` give.
    pub fn check(&self, params: &NetworkParams) -> Result<(), NetworkError> {
        let digits = params.digits();
        if self.0.ends_with(&digits) {
            Ok(())
        } else {
            Err(NetworkError::Mismatch {
                id: self.clone(),
                digits,
            })
        }
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkId {
    type Err = NetworkError;

    fn from_str(s: &str) -> Result<Self, NetworkError> {
        let (name, digits) = s.rsplit_once('.').ok_or(NetworkError::Form)?;
        check_name(name)?;
        let is_digit = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != DIGITS || !digits.bytes().all(is_digit) {
            return Err(NetworkError::Form);
        }
        Ok(Self(s.into()))
    }
}

fn check_name(name: &str) -> Result<(), NetworkError> {
    let allowed = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let inner_hyphens = !name.starts_with('-') && !name.ends_with('-');
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) && inner_hyphens {
        Ok(())
    } else {
        Err(NetworkError::Name)
    }
}

/// What is wrong with a network id or its parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// A name with other characters or of another length.
    #[error("a network's name is 1 to 32 lowercase letters, digits and inner hyphens")]
    Name,
    /// Not `name.xxxxxxxx`.
    #[error("a network id is a name, a dot and 8 lowercase hex digits")]
    Form,
    /// A parameter out of bounds.
    #[error("{parameter} is {value}, allowed is {min} to {max}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// Its value.
        value: u32,
        /// Smallest value allowed.
        min: u32,
        /// Largest value allowed.
        max: u32,
    },
    /// The id belongs to other parameters.
    #[error("network {id} has other parameters: these give the digits {digits}")]
    Mismatch {
        /// The id.
        id: NetworkId,
        /// Digits of the parameters at hand.
        digits: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_binds_every_parameter() {
        let base = NetworkParams::new(50, 10_000, 3_600, false).expect("in bounds");
        let id = NetworkId::new("souk", &base).expect("valid name");
        assert!(id.check(&base).is_ok());
        for other in [
            NetworkParams::new(51, 10_000, 3_600, false),
            NetworkParams::new(50, 10_001, 3_600, false),
            NetworkParams::new(50, 10_000, 3_601, false),
            NetworkParams::new(50, 10_000, 3_600, true),
        ] {
            let other = other.expect("in bounds");
            assert!(matches!(
                id.check(&other),
                Err(NetworkError::Mismatch { .. })
            ));
            assert_ne!(NetworkId::new("souk", &other).expect("valid name"), id);
        }
    }

    #[test]
    fn the_digits_of_known_parameters_never_change() {
        let params = NetworkParams::new(50, 10_000, 3_600, false).expect("in bounds");
        let id = NetworkId::new("souk", &params).expect("valid name");
        assert_eq!(id.to_string(), "souk.cdeb7dc2");
    }

    #[test]
    fn text_forms_are_checked() {
        for good in ["souk.01234567", "a-b.deadbeef"] {
            assert_eq!(good.parse::<NetworkId>().expect(good).as_str(), good);
        }
        for bad in [
            "souk",
            "souk.0123456",
            "souk.012345678",
            "souk.0123456G",
            "souk.0123456A",
            "Souk.01234567",
            ".01234567",
            "-a.01234567",
            "a-.01234567",
            "a.b.01234567",
        ] {
            assert!(bad.parse::<NetworkId>().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn parameters_out_of_bounds_are_named() {
        for (params, name) in [
            (NetworkParams::new(0, 10, 60, false), "mean_delay_ms"),
            (
                NetworkParams::new(10_001, 20_000, 60, false),
                "mean_delay_ms",
            ),
            (NetworkParams::new(50, 49, 60, false), "max_delay_ms"),
            (NetworkParams::new(50, 600_001, 60, false), "max_delay_ms"),
            (NetworkParams::new(50, 60, 9, false), "epoch_s"),
        ] {
            let error = params.expect_err(name);
            assert!(
                matches!(error, NetworkError::Parameter { parameter, .. } if parameter == name)
            );
        }
        assert!(NetworkParams::new(0, 10, 60, true).is_ok());
    }
}
