//! What a driver hands to the agent of an instance, and what the agent says back.
//!
//! The driver starts the agent with [`AGENT_ARG`] as its only argument and three descriptors of interest: the
//! configuration on [`CONFIG_FD`] (one JSON object, read to its end), and the two that [`AgentConfig`] names. Every
//! other descriptor above 2 is closed. The control descriptor is a stream on which the agent writes one
//! [`AgentMessage`] as JSON per line; nothing comes back on it, and its end means that the driver is gone, which must
//! not disturb the instance.
//!
//! Threat: the agent shares its process-id namespace with a tenant, and with one mapped user its uid as well. The
//! configuration holds no secret; the host key is made by the agent and never leaves it. Messages are bounded by
//! [`MAX_MESSAGE_BYTES`] before they are decoded, because an agent that was taken over is a tenant.

use serde::{Deserialize, Serialize};

use crate::{HostKey, LeaseId, SshPublicKey};

/// The descriptor that carries an [`AgentConfig`].
pub const CONFIG_FD: i32 = 3;

/// The argument that makes the agent program be the first process of an instance.
pub const AGENT_ARG: &str = "instance";

/// Longest line on the control descriptor, with its newline.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// How the agent has to serve a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// The lease.
    pub lease: LeaseId,
    /// The only key that may log in.
    pub authorized_key: SshPublicKey,
    /// The only user name that may log in, and whose processes the tenant's are.
    pub user: String,
    /// Home directory of that user; it exists and belongs to it.
    pub home: String,
    /// The ids that the tenant's processes run under, where they differ from the agent's own. The agent then holds
    /// `CAP_SETUID`, `CAP_SETGID` and `CAP_KILL` in the instance's user namespace and gives them up, together with all
    /// supplementary groups, in every process it starts. Absent, the agent has no capability and switches nothing.
    pub switch_to: Option<TenantIds>,
    /// When the instance ends, in Unix seconds.
    pub valid_to_unix_s: u64,
    /// A listening TCP socket of the host; the agent's SSH server accepts on it.
    pub listener_fd: i32,
    /// Where the agent writes its messages.
    pub control_fd: i32,
}

/// User and group id of the tenant, as the instance sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantIds {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One line on the control descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AgentMessage {
    /// The SSH server accepts. Sent once.
    Ready {
        /// The host key that this instance made for itself.
        host_key: HostKey,
    },
    /// What the agent counted itself. Informational: bills rest on what the driver measures from outside.
    Meters {
        /// SSH connections that have authenticated since the start.
        logins: u64,
        /// Processes started for the tenant since the start.
        spawned: u64,
    },
    /// The agent is about to exit, and the instance with it. Sent at most once, last.
    Exiting {
        /// Why.
        reason: ExitReason,
    },
}

/// Why an agent ended its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The lease has run out.
    ValidTo,
    /// The agent could not start or go on.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_fits_its_bound() {
        let longest = AgentMessage::Meters {
            logins: u64::MAX,
            spawned: u64::MAX,
        };
        let ready = AgentMessage::Ready {
            host_key: HostKey([0xff; 32]),
        };
        for message in [longest, ready] {
            let line = serde_json::to_string(&message).expect("serializable");
            assert!(line.len() < MAX_MESSAGE_BYTES, "{line}");
            assert_eq!(
                serde_json::from_str::<AgentMessage>(&line).expect("decodes"),
                message
            );
        }
    }
}
