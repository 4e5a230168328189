//! What a configuration may say and yet hardly means: for `souk config check`, and for whoever starts a node with it.

use libp2p::{Multiaddr, multiaddr::Protocol};
use souk_market::card::{self, Role};

use crate::net::is_public;

use super::Config;

impl Config {
    /// What is allowed and will probably not do what was meant, each in a sentence; empty where there is nothing to say.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.network.params.is_test() {
            return warnings;
        }
        let named = match self.node.external.is_empty() {
            true => &self.node.listen,
            false => &self.node.external,
        };
        if !self.node.roles.is_empty() && !named.iter().any(may_be_reached) {
            let so = match self.has(Role::Provider) {
                true => "it sells over the links that it dials itself, and does nothing else",
                false => "other nodes cannot connect to this one",
            };
            warnings.push(format!(
                "none of its addresses can be reached from the Internet, so {so}; name a public address under node.external, or set network.test = true where all are on one network"
            ));
        }
        if self.node.mdns {
            warnings.push(
                "node.mdns tells everybody on the local network that this machine runs a node, and a node of a public network needs it only to find others there"
                    .to_owned(),
            );
        }
        if let Some(ip) = self
            .provider
            .direct_address
            .filter(|ip| !card::is_public(*ip))
        {
            warnings.push(format!(
                "provider.direct_address is {ip}, which no requester accepts on a public network"
            ));
        }
        warnings
    }
}

/// Whether strangers reach it, as far as is known here: what an unspecified address stands for, a node tells when it runs.
fn may_be_reached(address: &Multiaddr) -> bool {
    let is_open = address.iter().any(|protocol| match protocol {
        Protocol::Ip4(ip) => ip.is_unspecified(),
        Protocol::Ip6(ip) => ip.is_unspecified(),
        _ => false,
    });
    is_open || is_public(address)
}
