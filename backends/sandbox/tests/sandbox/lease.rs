//! The life of a lease, as root and as an ordinary user.

use std::{fs, path::PathBuf, time::Duration};

use souk_backend::{
    Backend, BackendError, EvidenceOrder, InstanceState, LeaseId, Limit, Meter, Tee, Usage,
};

use crate::common::{Fixture, for_both_users, run, unix_s};

for_both_users!(
    a_lease_runs_programs_as_its_own_user_and_leaves_nothing,
    provision_is_idempotent_until_terminated,
    a_lease_outlives_its_driver_and_is_found_by_the_next,
    a_lease_ends_itself_when_its_time_is_over,
    usage_is_measured_from_outside,
    a_keeper_that_is_killed_takes_its_instance_along,
    a_lease_whose_intent_is_lost_harms_no_other_and_can_be_ended,
    what_a_killed_keeper_leaves_is_told_and_removed_though_its_files_are_damaged,
    a_lease_that_cannot_be_looked_at_is_listed_beside_the_others,
    demands_beyond_what_is_enforced_are_refused,
    without_an_overlay_only_writable_folders_are_writable,
);

fn a_lease_runs_programs_as_its_own_user_and_leaves_nothing(fixture: &Fixture) {
    let guest = fixture.instance();
    guest.assert_well();
    assert_eq!(
        guest.output("id -u; id -g; id -G; uname -n"),
        "1000\n1000\n1000\nsouk"
    );
    assert_eq!(guest.output("cd; touch f; echo $PWD; ls"), "/home/souk\nf");
    assert_eq!(guest.run("exit 7").1, 7);
    let lease = guest.instance.lease;
    assert!(folder_of(fixture, lease).exists());
    drop(guest);
    assert_nothing_left(fixture, lease);
    let list = fixture.runtime.block_on(fixture.sandbox.list()).unwrap();
    assert_eq!(list, []);
}

fn folder_of(fixture: &Fixture, lease: LeaseId) -> PathBuf {
    let state = fixture.folder.path().join("sandbox");
    state.join(lease.to_string())
}

fn assert_nothing_left(fixture: &Fixture, lease: LeaseId) {
    assert!(!folder_of(fixture, lease).exists());
    let groups = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for mount in groups.lines().filter(|l| l.contains(" - cgroup")) {
        let point = mount.split(' ').nth(4).unwrap();
        let found = std::process::Command::new("find")
            .args([point, "-name", &lease.to_string()])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

fn provision_is_idempotent_until_terminated(fixture: &Fixture) {
    let spec = fixture.spec();
    let first = fixture.provision(&spec).unwrap();
    assert_eq!(fixture.provision(&spec).unwrap(), first);
    let rt = &fixture.runtime;
    let last = rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap();
    assert_eq!(
        rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap(),
        last
    );
    let again = fixture.provision(&spec);
    assert!(
        matches!(again, Err(BackendError::NotUp { .. })),
        "{again:?}"
    );
    assert_eq!(
        rt.block_on(fixture.sandbox.inspect(spec.lease)).unwrap(),
        None
    );
}

fn a_lease_outlives_its_driver_and_is_found_by_the_next(fixture: &Fixture) {
    let spec = fixture.spec();
    let instance = fixture.provision(&spec).unwrap();
    let next = fixture.reopened();
    let rt = &fixture.runtime;
    assert_eq!(
        rt.block_on(next.list()).unwrap(),
        std::slice::from_ref(&instance)
    );
    assert_eq!(rt.block_on(next.provision(&spec)).unwrap(), instance);
    assert_eq!(run(&instance, "echo here").unwrap(), ("here".to_owned(), 0));
    rt.block_on(next.terminate(spec.lease)).unwrap();
    assert!(run(&instance, "true").is_err());
    assert_eq!(rt.block_on(fixture.sandbox.list()).unwrap(), []);
}

fn a_lease_ends_itself_when_its_time_is_over(fixture: &Fixture) {
    let mut spec = fixture.spec();
    spec.valid_to_unix_s = unix_s() + 6;
    let instance = fixture.provision(&spec).unwrap();
    let rt = &fixture.runtime;
    let watch = fixture.sandbox.watch(spec.lease, Duration::from_secs(30));
    assert_eq!(rt.block_on(watch).unwrap(), InstanceState::Exited);
    assert!(unix_s() >= spec.valid_to_unix_s);
    assert!(run(&instance, "true").is_err());
    let last = rt.block_on(fixture.sandbox.sample(spec.lease)).unwrap();
    assert!(last.usage.cpu_core_ms.known().is_some());
    assert_eq!(
        rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap(),
        last
    );
    let gone = fixture.sandbox.watch(spec.lease, Duration::ZERO);
    assert_eq!(rt.block_on(gone).unwrap(), InstanceState::Gone);
}

fn usage_is_measured_from_outside(fixture: &Fixture) {
    let guest = fixture.instance();
    guest.output("for ((i = 0; i < 200000; i++)); do :; done");
    let sent = guest.output("head -c 300000 /dev/zero").len();
    assert_eq!(sent, 300_000);
    guest.output("dd if=/dev/zero of=/tmp/full bs=1M count=8; sleep 2");
    let rt = &fixture.runtime;
    let sample = rt
        .block_on(fixture.sandbox.sample(guest.instance.lease))
        .unwrap();
    let usage = sample.usage;
    assert!(usage.cpu_core_ms.known().unwrap() >= 50, "{usage:?}");
    assert!(usage.net_tx_bytes.known().unwrap() >= 300_000, "{usage:?}");
    assert!(usage.net_rx_bytes.known().unwrap() >= 100, "{usage:?}");
    assert!(usage.memory_mib_s.known().unwrap() >= 8, "{usage:?}");
    let last = rt
        .block_on(fixture.sandbox.terminate(guest.instance.lease))
        .unwrap();
    let rises = |a: Meter, b: Meter| a.known().unwrap() <= b.known().unwrap();
    assert!(rises(usage.cpu_core_ms, last.usage.cpu_core_ms));
    assert!(rises(usage.memory_mib_s, last.usage.memory_mib_s));
    assert!(rises(usage.net_tx_bytes, last.usage.net_tx_bytes));
}

fn a_keeper_that_is_killed_takes_its_instance_along(fixture: &Fixture) {
    let spec = fixture.spec();
    let instance = fixture.provision(&spec).unwrap();
    kill_keeper(fixture, spec.lease);
    let rt = &fixture.runtime;
    let watch = fixture.sandbox.watch(spec.lease, Duration::from_secs(30));
    assert_eq!(rt.block_on(watch).unwrap(), InstanceState::Exited);
    let last = rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap();
    assert_eq!(last.usage.memory_mib_s, Meter::Unknown);
    assert_eq!(last.usage.net_tx_bytes, Meter::Unknown);
    assert!(run(&instance, "true").is_err());
}

fn kill_keeper(fixture: &Fixture, lease: LeaseId) {
    let record = fs::read_to_string(folder_of(fixture, lease).join("keeper")).unwrap();
    let (_, pid) = record.split_once("\"pid\":").unwrap();
    let pid: i32 = pid
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn a_lease_whose_intent_is_lost_harms_no_other_and_can_be_ended(fixture: &Fixture) {
    let rt = &fixture.runtime;
    let intent_of = |lease| folder_of(fixture, lease).join("intent");
    let ids_of = |lease| {
        let intent = fs::read(intent_of(lease)).unwrap();
        serde_json::from_slice::<serde_json::Value>(&intent).unwrap()["ids"].take()
    };
    // Damaged, and of a later program.
    for lost in ["{", r#"{"version":4294967295}"#] {
        let (early, spec) = (fixture.instance(), fixture.spec());
        let instance = fixture.provision(&spec).unwrap();
        let well = fixture.instance();
        let ids = ids_of(spec.lease);
        fs::write(intent_of(spec.lease), lost).unwrap();
        // Its slot is free, and only one slot is left out for the lease whose own is unknown.
        drop(early);

        let listed = rt.block_on(fixture.sandbox.list()).unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(listed.contains(&well.instance), "{listed:?}");
        let shown = listed.iter().find(|shown| shown.lease == spec.lease);
        assert_eq!(shown.unwrap().state, InstanceState::Running);
        let again = fixture.provision(&spec);
        assert!(
            matches!(again, Err(BackendError::Unknown { .. })),
            "{again:?}"
        );
        assert_eq!(run(&instance, "echo here").unwrap(), ("here".to_owned(), 0));

        let next = fixture.instance();
        next.assert_well();
        // As root each lease has users of its own.
        if ids.get("Two").is_some() {
            assert_ne!(ids_of(next.instance.lease), ids);
        }

        let last = rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap();
        assert!(last.usage.cpu_core_ms.known().is_some(), "{last:?}");
        assert!(run(&instance, "true").is_err());
        assert_nothing_left(fixture, spec.lease);
        well.assert_well();
    }
}

fn what_a_killed_keeper_leaves_is_told_and_removed_though_its_files_are_damaged(fixture: &Fixture) {
    let spec = fixture.spec();
    let instance = fixture.provision(&spec).unwrap();
    for file in ["intent", "instance", "final"] {
        fs::write(folder_of(fixture, spec.lease).join(file), "{").unwrap();
    }
    kill_keeper(fixture, spec.lease);
    let rt = &fixture.runtime;
    let watch = fixture.sandbox.watch(spec.lease, Duration::from_secs(30));
    assert_eq!(rt.block_on(watch).unwrap(), InstanceState::Exited);
    let listed = rt.block_on(fixture.sandbox.list()).unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].state, InstanceState::Exited);
    let last = rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap();
    assert_eq!(last.usage.memory_mib_s, Meter::Unknown);
    assert!(run(&instance, "true").is_err());
    assert_nothing_left(fixture, spec.lease);
    let closed = fixture.folder.path().join("sandbox/closed");
    fs::write(closed.join(spec.lease.to_string()), "{").unwrap();
    let last = rt.block_on(fixture.sandbox.terminate(spec.lease)).unwrap();
    assert_eq!(last.usage, Usage::UNKNOWN);
}

fn a_lease_that_cannot_be_looked_at_is_listed_beside_the_others(fixture: &Fixture) {
    let rt = &fixture.runtime;
    let guest = fixture.instance();
    let odd = fixture.spec().lease;
    // There is no lock in what is no folder.
    fs::write(folder_of(fixture, odd), "").unwrap();
    let listed = rt.block_on(fixture.sandbox.list()).unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.contains(&guest.instance), "{listed:?}");
    assert!(listed.iter().any(|shown| shown.lease == odd), "{listed:?}");
    fixture.instance().assert_well();
    let ended = rt.block_on(fixture.sandbox.terminate(odd));
    assert!(
        matches!(ended, Err(BackendError::Unknown { .. })),
        "{ended:?}"
    );
}

fn demands_beyond_what_is_enforced_are_refused(fixture: &Fixture) {
    let enforced = fixture
        .runtime
        .block_on(fixture.sandbox.capabilities())
        .unwrap()
        .enforced;
    assert!(enforced.contains(&Limit::Disk) && enforced.contains(&Limit::Processes));
    for limit in [Limit::Cpu, Limit::Memory, Limit::Processes, Limit::Disk] {
        let mut spec = fixture.spec();
        spec.required_limits = vec![limit];
        if enforced.contains(&limit) {
            drop(fixture.guest(&spec));
        } else {
            eprintln!("note: unenforced here: {limit:?}");
            let refused = fixture.provision(&spec);
            assert!(
                matches!(refused, Err(BackendError::Unsupported { .. })),
                "{refused:?}"
            );
        }
    }
    let mut spec = fixture.spec();
    spec.evidence = Some(EvidenceOrder {
        tee: Tee::NoneTest,
        network: "test".to_owned(),
        provider: [1; 32],
        attested_key: [2; 32],
        policy: [0; 32],
        epoch: 1,
        envelope: [3; 32],
    });
    let refused = fixture.provision(&spec);
    assert!(
        matches!(refused, Err(BackendError::NoTee { .. })),
        "{refused:?}"
    );
    let mut spec = fixture.spec();
    spec.resources.memory_mib = 1 << 20;
    let refused = fixture.provision(&spec);
    assert!(
        matches!(refused, Err(BackendError::Full { .. })),
        "{refused:?}"
    );
}

fn without_an_overlay_only_writable_folders_are_writable(_: &Fixture) {
    let fixture = Fixture::without_overlay();
    let guest = fixture.instance();
    guest.output("for d in /home/souk /tmp /run /var/tmp /dev/shm; do touch $d/f || exit 1; done");
    for folder in ["/usr/bin", "/etc", "/dev", "/proc/sys", "/var/lib"] {
        let (output, status) = guest.run(&format!("touch {folder}/f"));
        assert_ne!(status, 0, "{folder}: {output}");
    }
}
