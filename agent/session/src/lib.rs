//! A stream between a requester and the agent of an instance that outlives whatever carries it: a relay that goes away, a
//! node that is started again, a requester who changes networks.
//!
//! ```text
//!  client ── Hello{id, new} ───────────────► agent      carrier 1: over a relay and the provider's node
//!         ◄─────────────── Welcome{received} ──
//!         ◄══ Data, Passed, End ═════════════►
//!                   ✂ the carrier breaks; both ends keep what the other has not passed on
//!  client ── Hello{id, received} ──────────► agent      carrier 2: perhaps over another relay
//!         ◄─────────────── Welcome{received} ──
//!         ◄══ from where each stands ════════►
//! ```
//!
//! [`Session`] is one end without any I/O; [`carry()`] moves its bytes over one carrier. Both ends are alike but for who
//! greets. SSH runs inside, so this layer protects no secret and proves nobody: what a session is for is proven there.
//!
//! Threats: whoever can reach the instance's port, and whoever carries the bytes. Neither makes an end hold more than
//! [`WINDOW`] bytes in each direction, and frames that fit no state end the session. Who carries a session, or once did, sees
//! its id and could take it up in the client's place: that gives the power to break it, and none over what SSH protects.

mod carry;
mod frame;
mod session;

pub use carry::{Ending, carry, deliver};
pub use frame::{Frame, Hello, Malformed, SessionId, Status, Welcome};
pub use session::{Session, Violation};

use std::time::Duration;

/// Bytes in each direction that an end keeps because the other has not passed them on yet.
pub const WINDOW: usize = 1 << 20;

/// Payload of the largest data frame.
pub const MAX_DATA: usize = 16 * 1024;

/// For so long both ends keep a session that nothing carries.
pub const LINGER: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
