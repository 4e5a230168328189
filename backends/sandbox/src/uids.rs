//! Which users of the host an instance's users are.
//!
//! Root gives each lease two users of its own, one for the agent and one for the tenant, who then cannot signal it or
//! change its scheduling. An ordinary user can map itself alone.

use std::{collections::HashSet, fs};

use crate::wire::Ids;

/// Leases at one time; each takes a pair of ids, a keeper and a port.
pub(crate) const MAX_LEASES: u32 = 1_024;

/// First id for leases where all ids may be used: far above what distributions give to people, services
/// (systemd: up to 0x6fffffff for containers) and subordinate ids.
const FIRST_ID: u32 = 0x7000_0000;

/// The ids of the lease in a slot below [`MAX_LEASES`].
pub(crate) fn plan(slot: u32) -> Ids {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let free = || first_free(&read("/proc/self/uid_map"), &read("/proc/self/gid_map"));
    match uid.is_root().then(free).flatten() {
        Some(first) => Ids::Two {
            base: first + 2 * slot,
        },
        None => Ids::One {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
        },
    }
}

/// Whether the ids of a slot are among those of `users`; never where a slot has none of its own.
pub(crate) fn are_among(slot: u32, users: &HashSet<u32>) -> bool {
    match plan(slot) {
        Ids::Two { base } => users.contains(&base) || users.contains(&(base + 1)),
        Ids::One { .. } => false,
    }
}

/// The first of `2 * MAX_LEASES` ids that both maps hold: [`FIRST_ID`], or the last of a smaller range that somebody
/// gave to a container in which the node runs as root.
fn first_free(uid_map: &str, gid_map: &str) -> Option<u32> {
    const WANTED: u32 = 2 * MAX_LEASES;
    let end = |map: &str| {
        let ranges = map.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u32>);
            let (first, _, count) = (fields.next()?.ok()?, fields.next()?, fields.next()?.ok()?);
            // The lower half of a range is left to whoever else uses it.
            (count >= 2 * WANTED).then(|| first.saturating_add(count))
        });
        ranges.max()
    };
    let end = end(uid_map)?.min(end(gid_map)?);
    Some((end - WANTED).min(FIRST_ID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_from_what_is_mapped() {
        let host = "0 0 4294967295\n";
        let container = "0 1000 1\n1 100000 65536\n";
        assert_eq!(first_free(host, host), Some(FIRST_ID));
        assert_eq!(first_free(container, host), Some(65_537 - 2 * MAX_LEASES));
        assert_eq!(first_free("0 1000 1\n", host), None);
    }
}
