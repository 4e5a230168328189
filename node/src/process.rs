//! What this process uses of the machine.

use std::fs;

use rustix::{
    param::page_size,
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// What the process uses, read now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Processor time of all threads since the start, in seconds.
    pub(crate) cpu_s: f64,
    /// Bytes in memory; absent where /proc does not tell.
    pub(crate) resident_bytes: Option<u64>,
    /// Open file descriptors; absent where /proc does not tell.
    pub(crate) open_files: Option<u64>,
    /// How many may be open; absent where there is no limit.
    pub(crate) max_files: Option<u64>,
}

impl Usage {
    /// Of this process.
    pub(crate) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            #[expect(
                clippy::cast_precision_loss,
                reason = "seconds of processor time are few"
            )]
            cpu_s: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: resident(),
            // The descriptor that reads the folder is among them.
            open_files: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|files| (files.count() as u64).saturating_sub(1)),
            max_files: getrlimit(Resource::Nofile).current,
        }
    }
}

/// The second number of `/proc/self/statm` counts pages, see proc(5).
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_what_it_uses() {
        let before = Usage::now();
        let file = fs::File::open("/proc/self/statm").expect("opens");
        let filled = vec![1u8; 32 << 20];
        let after = Usage::now();
        // Whatever other tests of this process give back meanwhile, this is held.
        assert!(after.resident_bytes.expect("read") >= filled.len() as u64);
        assert!(after.open_files.expect("read") > 2);
        assert!(after.cpu_s >= before.cpu_s);
        drop((file, filled));
    }
}
