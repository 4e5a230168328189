//! Names of protocols and topics. The network id stands in every one of them, so two networks never speak to each other.

use libp2p::{StreamProtocol, gossipsub::IdentTopic};

/// Makes the protocols, their names, and the list of all: none can be missing from it.
macro_rules! protocols {
    ($($what:ident = $name:literal,)*) => {
        /// The stream protocols that a node may accept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum What {
            $($what,)*
        }

        /// Names of all stream protocols that a node may accept, as they stand behind the network id.
        pub const PROTOCOLS: &[&str] = &[$($name,)*];

        impl What {
            const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$what => $name,)*
                }
            }
        }
    };
}

protocols! {
    Mix = "mix",
    Cards = "cards",
    Mailbox = "mailbox",
    RelayRegister = "relay-register",
    RelaySplice = "relay-splice",
    RelayConnect = "relay-connect",
    Log = "log",
    Evidence = "evidence",
}

/// The names of one network.
#[derive(Clone, Debug)]
pub(super) struct Names {
    network: String,
}

impl Names {
    pub(super) fn new(network: &impl ToString) -> Self {
        Self {
            network: network.to_string(),
        }
    }

    /// Name of a stream protocol.
    pub(super) fn stream(&self, what: What) -> StreamProtocol {
        self.protocol(what.as_str())
    }

    /// Name of the Kademlia protocol.
    pub(super) fn kademlia(&self) -> StreamProtocol {
        self.protocol("kad")
    }

    /// Name of the gossipsub protocol, without its version.
    pub(super) fn gossip(&self) -> String {
        format!("/souk/{}/gossip/1", self.network)
    }

    /// What identify calls the family of protocols.
    pub(super) fn family(&self) -> String {
        format!("/souk/{}/1", self.network)
    }

    /// Topic of cards and retirements.
    pub(super) fn cards(&self) -> IdentTopic {
        IdentTopic::new(format!("souk/{}/cards", self.network))
    }

    /// Topic of capacity.
    pub(super) fn capacity(&self) -> IdentTopic {
        IdentTopic::new(format!("souk/{}/capacity", self.network))
    }

    fn protocol(&self, what: &str) -> StreamProtocol {
        StreamProtocol::try_from_owned(format!("/souk/{}/{what}/1", self.network))
            .expect("the name begins with a slash")
    }
}
