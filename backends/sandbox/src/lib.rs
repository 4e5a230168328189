//! Leases as namespaces of this machine.
//!
//! ```text
//!  node                    keeper (outside)                       instance (inside)
//!  Sandbox::provision ───► order ──clone, maps, cgroup──────────► mounts, limits, Landlock, seccomp
//!                          PortWatch, meters        ◄──Ready───── agent, process 1
//!                  ◄────── Up(host key)
//!  sample, terminate ────► socket in the lease's folder
//! ```
//!
//! A lease shares the kernel of the host with everything else on it; what stands between is listed, with what does not,
//! in `docs/sandbox.md`. The same code carries leases for root and for an ordinary user; what a limit is worth is found
//! by trying and told by [`souk_backend::Capabilities`].
//!
//! Threats: a tenant who runs any code as its user; an image that a stranger packed; a node that is killed at any
//! instant. The modules say which they hold off: `syscalls` and `confine` the first, `rootfs` the first and second,
//! `state` and `keeper` the third.

mod cgroup;
mod clock;
mod confine;
mod driver;
mod enter;
mod keeper;
mod meter;
mod order;
mod probe;
mod process;
mod rootfs;
mod sock_diag;
mod stage;
mod state;
mod syscalls;
mod uids;
mod wire;

pub use driver::{Sandbox, SandboxConfig};
pub use keeper::keeper_main;
pub use order::{KeeperProgram, check, raise_descriptor_limit};
pub use probe::APPARMOR_PROFILE;

/// Argument with which the `souk` program is a keeper; see [`keeper_main`].
pub const KEEPER_ARG: &str = "sandbox-keeper";

/// The tenant's user name.
const USER: &str = "souk";

/// The tenant's user and group id, as it sees them.
const TENANT_ID: u32 = 1000;

/// The tenant's home.
const HOME: &str = "/home/souk";

/// Processes and threads that the agent itself may need, on top of those of the lease.
const AGENT_TASKS: u32 = 24;
