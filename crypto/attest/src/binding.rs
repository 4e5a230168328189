//! What evidence binds: the 64 bytes of report data.
//!
//! The first 32 are a hash under a versioned domain, over the network and everything that the evidence is to vouch for; the
//! rest is zero. What is bound to a node cannot be bound to an instance, and the other way round: their domains differ.
//!
//! Threats: a quote of another node or network replayed, an old one kept, and a key that the guest never saw.

use souk_crypto::{NetworkId, NodeId, domain};

use crate::digest::ReportData;

/// Why a quote is not an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// What the verifier drew for this quote.
    Challenge([u8; 32]),
    /// The number of the epoch in which the quote was made.
    Epoch(u64),
}

/// What evidence of a node binds.
#[derive(Clone, Copy, Debug)]
pub struct NodeBinding<'a> {
    /// The network.
    pub network: &'a NetworkId,
    /// The node.
    pub node: &'a NodeId,
    /// The Ed25519 key that lives in the guest, and signs mix epochs and cards.
    pub attested_key: [u8; 32],
    /// Digest of the policy under which the node offers itself.
    pub policy: [u8; 32],
    /// Why it is not old.
    pub freshness: Freshness,
}

/// What evidence of an instance binds beside what its node's binds.
#[derive(Clone, Copy, Debug)]
pub struct InstanceBinding<'a> {
    /// The provider and its attested key.
    pub provider: NodeBinding<'a>,
    /// Digest of the envelope that the instance was rented with.
    pub envelope: [u8; 32],
    /// The raw Ed25519 SSH host key, which was made inside.
    pub host_key: [u8; 32],
    /// The image as the guest measured it.
    pub image: [u8; 32],
}

impl Freshness {
    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Challenge(challenge) => [&b"challenge"[..], &challenge].concat(),
            Self::Epoch(epoch) => [&b"epoch"[..], &epoch.to_be_bytes()].concat(),
        }
    }
}

impl NodeBinding<'_> {
    /// What a node asks its TEE to sign.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        let freshness = self.freshness.to_bytes();
        padded(domain::NODE_EVIDENCE.hash(
            self.network,
            &[
                self.node.as_bytes(),
                &self.attested_key,
                &self.policy,
                &freshness,
            ],
        ))
    }
}

impl InstanceBinding<'_> {
    /// What an instance asks its TEE to sign.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        let provider = &self.provider;
        let freshness = provider.freshness.to_bytes();
        padded(domain::INSTANCE_EVIDENCE.hash(
            provider.network,
            &[
                provider.node.as_bytes(),
                &provider.attested_key,
                &provider.policy,
                &freshness,
                &self.envelope,
                &self.host_key,
                &self.image,
            ],
        ))
    }
}

fn padded(hash: [u8; 32]) -> ReportData {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&hash);
    ReportData(bytes)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use souk_crypto::{NetworkParams, NodeKey};

    use super::*;

    #[test]
    fn every_part_of_a_binding_changes_the_report_data() {
        let network = |mean| {
            let params = NetworkParams::new(mean, 10_000, 3_600, true).expect("in bounds");
            NetworkId::new("souk", &params).expect("a name")
        };
        let (here, there) = (network(50), network(51));
        let [one, two] = [1, 2]
            .map(|seed| NodeKey::generate(&mut rand::rngs::StdRng::seed_from_u64(seed)).public());
        let node = NodeBinding {
            network: &here,
            node: &one,
            attested_key: [3; 32],
            policy: [4; 32],
            freshness: Freshness::Epoch(5),
        };
        let instance = InstanceBinding {
            provider: node,
            envelope: [6; 32],
            host_key: [7; 32],
            image: [8; 32],
        };
        let all = [
            node.report_data(),
            NodeBinding {
                network: &there,
                ..node
            }
            .report_data(),
            NodeBinding { node: &two, ..node }.report_data(),
            NodeBinding {
                attested_key: [0; 32],
                ..node
            }
            .report_data(),
            NodeBinding {
                policy: [0; 32],
                ..node
            }
            .report_data(),
            NodeBinding {
                freshness: Freshness::Epoch(6),
                ..node
            }
            .report_data(),
            NodeBinding {
                freshness: Freshness::Challenge([5; 32]),
                ..node
            }
            .report_data(),
            instance.report_data(),
            InstanceBinding {
                provider: NodeBinding { node: &two, ..node },
                ..instance
            }
            .report_data(),
            InstanceBinding {
                envelope: [0; 32],
                ..instance
            }
            .report_data(),
            InstanceBinding {
                host_key: [0; 32],
                ..instance
            }
            .report_data(),
            InstanceBinding {
                image: [0; 32],
                ..instance
            }
            .report_data(),
        ];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.0[32..], [0; 32]);
            assert!(
                all[..at].iter().all(|other| other != one),
                "binding {at} is not bound"
            );
        }
    }
}
