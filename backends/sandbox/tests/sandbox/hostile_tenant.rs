//! What a hostile tenant cannot do, as root and as an ordinary user. Another lease beside it must not notice.

use std::{
    fs,
    net::TcpListener,
    os::{linux::net::SocketAddrExt, unix::net as unix},
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit};
use souk_backend::{Backend, Limit};

use crate::common::{Fixture, Guest, for_both_users};

for_both_users!(
    a_fork_bomb_stops_at_its_limit_and_nobody_else_notices,
    a_memory_bomb_is_stopped_and_nobody_else_notices,
    a_disk_bomb_stops_at_its_size_and_nobody_else_notices,
    descriptors_on_their_way_leave_room_for_those_of_the_node,
    descriptors_parked_in_sockets_stop_no_further_lease,
    a_cpu_hog_gets_its_share,
    what_the_kernel_lends_to_a_user_is_not_used_up,
    the_agent_survives_signals_and_shows_nothing,
    kernel_subsystems_are_closed,
    arguments_that_reach_others_are_refused,
    no_capability_and_no_way_to_one_is_left,
    host_files_are_out_of_reach,
    host_sockets_are_out_of_reach,
    nothing_is_inherited,
    other_leases_are_out_of_reach,
);

const ENOSYS: &str = "38";
const EPERM: &str = "1";
const EAFNOSUPPORT: &str = "97";

/// As `souk-sandbox` allows for the agent on top of a lease's processes.
const AGENT_TASKS: usize = 24;

fn enforces(fixture: &Fixture, limit: Limit) -> bool {
    let capabilities = fixture.runtime.block_on(fixture.sandbox.capabilities());
    let enforced = capabilities.unwrap().enforced.contains(&limit);
    if !enforced {
        eprintln!("note: unenforced here, and the card says so: {limit:?}");
    }
    enforced
}

/// Runs an attack while another lease works, and then sees that both are well.
fn attack(fixture: &Fixture, script: &str) -> (String, i32) {
    let victim = fixture.instance();
    let attacker = fixture.instance();
    let result = std::thread::scope(|scope| {
        let attack = scope.spawn(|| attacker.run(script));
        while !attack.is_finished() {
            victim.assert_well();
            victim.output("echo x > /tmp/f && cat /tmp/f");
        }
        attack.join().unwrap()
    });
    attacker.assert_well();
    victim.assert_well();
    result
}

fn a_fork_bomb_stops_at_its_limit_and_nobody_else_notices(fixture: &Fixture) {
    assert!(enforces(fixture, Limit::Processes));
    let limit = usize::try_from(fixture.spec().resources.max_processes).unwrap();
    let (made, status) = attack(fixture, "attack forks 300");
    assert_eq!(status, 0, "{made}");
    let made: usize = made.parse().unwrap();
    assert!((limit - 4..limit + AGENT_TASKS).contains(&made), "{made}");
}

fn a_memory_bomb_is_stopped_and_nobody_else_notices(fixture: &Fixture) {
    let enforced = enforces(fixture, Limit::Memory);
    let (output, status) = attack(fixture, "attack memory 200");
    if enforced {
        assert_eq!((output.as_str(), status), ("", 137));
        // A single process is not what counts.
        let (output, _) = attack(
            fixture,
            "for i in 1 2 3 4; do attack memory 40 & done; wait",
        );
        assert!(output.matches("took 40").count() < 4, "{output}");
    } else {
        let taken = output.strip_prefix("refused at ").expect(&output);
        assert!(taken.parse::<u32>().unwrap() <= 64, "{taken}");
    }
}

fn a_disk_bomb_stops_at_its_size_and_nobody_else_notices(fixture: &Fixture) {
    assert!(enforces(fixture, Limit::Disk));
    let fill = "for d in /tmp /home/souk /run /var/tmp /dev/shm; do
            dd if=/dev/zero of=$d/full bs=64k count=400 2>/dev/null
        done
        stat -c %s /tmp/full /home/souk/full /run/full /var/tmp/full /dev/shm/full
        rm -f /tmp/full /home/souk/full /run/full /var/tmp/full /dev/shm/full";
    let (sizes, status) = attack(fixture, fill);
    assert_eq!(status, 0, "{sizes}");
    let written: u64 = sizes.lines().map(|size| size.parse::<u64>().unwrap()).sum();
    assert!((8 << 20..=16 << 20).contains(&written), "{sizes}");
    let (files, status) = attack(fixture, "attack files 20000; rm -rf /tmp/file-*");
    assert_eq!(status, 0, "{files}");
    assert!(
        (1_000..=16 * 256).contains(&files.parse::<u32>().unwrap()),
        "{files}"
    );
}

fn what_the_kernel_lends_to_a_user_is_not_used_up(fixture: &Fixture) {
    let (made, status) = attack(fixture, "attack inotify 1000");
    assert_eq!(status, 0, "{made}");
    assert_eq!(made, "8");
}

/// The kernel lets each process have about as many under way, of all of one user, as its own limit of descriptors is.
fn descriptors_on_their_way_leave_room_for_those_of_the_node(fixture: &Fixture) {
    let guest = fixture.instance();
    let tenant: u64 = guest.output("ulimit -Hn").parse().unwrap();
    let node = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(tenant <= 16_384 && tenant <= node / 2, "{tenant} of {node}");
}

fn descriptors_parked_in_sockets_stop_no_further_lease(fixture: &Fixture) {
    const PARKED: u64 = 2_000;
    let attacker = fixture.instance();
    let allowed: u64 = attacker.output("ulimit -Hn").parse().unwrap();
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| attacker.output("attack park /tmp/parked /tmp/enough"));
        let parked: u64 = loop {
            assert!(!attack.is_finished(), "it holds them");
            if let Ok(parked) = attacker.run("cat /tmp/parked 2>/dev/null").0.parse() {
                break parked;
            }
        };
        assert!(parked >= PARKED.min(allowed), "{parked} of {allowed}");
        // A keeper gets four descriptors; both of these are made while the others are under way.
        for _ in 0..2 {
            fixture.instance().assert_well();
        }
        attacker.output("touch /tmp/enough");
        attack.join().unwrap();
    });
    attacker.assert_well();
    let began = Instant::now();
    // Other tests of this process end their own keepers all the time.
    while let Some(dead) = dead_child() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "a zombie: {dead}"
        );
        std::thread::yield_now();
    }
}

/// A child of this process that has ended and that nobody waited for.
fn dead_child() -> Option<String> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .find(|stat| {
            // The name, which may hold anything, stands in brackets before the state and the parent.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            let mut fields = fields.split_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(&own)
        })
}

fn a_cpu_hog_gets_its_share(fixture: &Fixture) {
    let enforced = enforces(fixture, Limit::Cpu);
    let guest = fixture.instance();
    let began = Instant::now();
    guest.output("attack spin 1500 & attack spin 1500 & wait");
    let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap();
    let sample = fixture.sandbox.sample(guest.instance.lease);
    let used_ms = fixture
        .runtime
        .block_on(sample)
        .unwrap()
        .usage
        .cpu_core_ms
        .known()
        .unwrap();
    if enforced {
        // Half a core, and one more period of the quota at either end.
        assert!(used_ms <= wall_ms / 2 + 200, "{used_ms} of {wall_ms}");
    } else {
        assert!(used_ms > 0, "what is not limited is measured");
    }
}

fn the_agent_survives_signals_and_shows_nothing(fixture: &Fixture) {
    let guest = fixture.instance();
    // Over and over, so that signals meet in all orders, and meet an agent that starts threads and programs.
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| guest.output("attack signals 10000"));
        while !attack.is_finished() {
            guest.assert_well();
        }
        assert_eq!(attack.join().unwrap(), "sent");
    });
    guest.run("kill -KILL 1; kill -STOP 1; kill -KILL -1");
    guest.assert_well();
    let files = guest.output("attack agent-files");
    assert!(
        files.lines().all(|line| line.ends_with(" closed")),
        "{files}"
    );
    assert_eq!(guest.run("ls -d /proc/1").1, 2);
}

fn kernel_subsystems_are_closed(fixture: &Fixture) {
    let guest = fixture.instance();
    for line in guest.output("attack closed-calls").lines() {
        let (call, outcome) = line.split_once(' ').unwrap();
        assert_eq!(outcome, ENOSYS, "{call}");
    }
    for line in guest.output("attack refused-families").lines() {
        let (family, outcome) = line.split_once(' ').unwrap();
        assert_eq!(outcome, EAFNOSUPPORT, "{family}");
    }
    if cfg!(target_arch = "x86_64") {
        assert_eq!(guest.output("attack foreign-call"), "killed");
    }
}

fn arguments_that_reach_others_are_refused(fixture: &Fixture) {
    let guest = fixture.instance();
    let output = guest.output("attack refused-arguments");
    assert!(output.contains("terminal open"), "{output}");
    for line in output.lines().filter(|line| !line.starts_with("terminal")) {
        let (what, outcome) = line.split_once(' ').unwrap();
        assert_eq!(outcome, EPERM, "{what}");
    }
}

fn no_capability_and_no_way_to_one_is_left(fixture: &Fixture) {
    let guest = fixture.instance();
    let status = guest.output("cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect(name).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0".repeat(16), "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for folder in ["/", "/tmp", "/proc", "/dev"] {
        let mounts = guest.output("cat /proc/self/mountinfo");
        let mount = mounts
            .lines()
            .find(|l| l.split(' ').nth(4) == Some(folder))
            .expect(folder);
        assert!(
            mount.split(' ').nth(5).unwrap().contains("nosuid"),
            "{mount}"
        );
    }
    for script in [
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo b > /proc/sysrq-trigger",
        "ls /sys/kernel",
    ] {
        assert_ne!(guest.run(script).1, 0, "{script}");
    }
    for masked in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/kallsyms",
    ] {
        assert_eq!(
            guest.run(&format!("cat {masked} 2> /dev/null | wc -c")).0,
            "0",
            "{masked}"
        );
    }
}

fn host_files_are_out_of_reach(fixture: &Fixture) {
    let folder = fixture.folder.path();
    fs::write(folder.join("secret"), "of the host").unwrap();
    let guest = fixture.instance();
    let path = folder.to_str().unwrap();
    assert_ne!(guest.run(&format!("cat {path}/secret")).1, 0);
    assert_ne!(
        guest
            .run(&format!("cat /proc/self/root/../..{path}/secret"))
            .1,
        0
    );
    for file in ["mounts", "mountinfo", "cgroup", "environ", "maps"] {
        let text = guest.output(&format!("cat /proc/self/{file}"));
        assert!(
            !text.contains(path),
            "{file} names a folder of the host: {text}"
        );
        assert!(
            !text.contains(&guest.instance.lease.to_string()),
            "{file}: {text}"
        );
    }
    assert_eq!(guest.output("uname -n"), "souk");
    assert_ne!(
        guest
            .run("touch /proc/sys/kernel/hostname && echo x > /proc/sys/kernel/hostname")
            .1,
        0
    );
}

fn host_sockets_are_out_of_reach(fixture: &Fixture) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("souk-test-{port}");
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let _listening = unix::UnixListener::bind_addr(&address).unwrap();
    let guest = fixture.instance();
    assert_ne!(
        guest.run(&format!("exec 3<> /dev/tcp/127.0.0.1/{port}")).1,
        0
    );
    assert_ne!(guest.run("exec 3<> /dev/tcp/1.1.1.1/53").1, 0);
    let own = guest.instance.ssh.port();
    assert_ne!(
        guest.run(&format!("exec 3<> /dev/tcp/127.0.0.1/{own}")).1,
        0
    );
    assert_ne!(guest.output(&format!("attack abstract {name}")), "allowed");
    unix::UnixStream::connect_addr(&address).expect("it is there, outside");
    let interfaces = guest.output("cat /proc/net/dev");
    assert_eq!(
        interfaces.lines().filter(|line| line.contains(':')).count(),
        1,
        "{interfaces}"
    );
}

fn nothing_is_inherited(fixture: &Fixture) {
    let guest = fixture.instance();
    let open = guest.output("exec ls /proc/self/fd");
    // Standard streams, and the folder that is being listed.
    assert_eq!(
        open.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    let environment = guest.output("env");
    for variable in environment.lines() {
        let (name, _) = variable.split_once('=').expect(variable);
        assert!(
            ["PATH", "HOME", "USER", "LANG", "PWD", "SHLVL", "_"].contains(&name),
            "{variable}"
        );
    }
}

fn other_leases_are_out_of_reach(fixture: &Fixture) {
    let (one, other) = (fixture.instance(), fixture.instance());
    let start = |guest: &Guest<'_>| {
        guest.output("echo mine > /tmp/mine; (sleep 1000 > /dev/null 2>&1 &)");
    };
    let sleeps = |guest: &Guest<'_>, expected: bool| {
        let list = "for p in /proc/[0-9]*; do read -r c < $p/comm && echo $c; done";
        let until = Instant::now() + Duration::from_secs(60);
        while guest.output(list).contains("sleep") != expected {
            assert!(Instant::now() < until, "a sleeping program: not {expected}");
        }
    };
    start(&one);
    start(&other);
    sleeps(&one, true);
    sleeps(&other, true);
    one.output("echo changed > /tmp/mine; echo changed >> /etc/passwd || true");
    one.run("kill -KILL -1");
    assert_eq!(other.output("cat /tmp/mine"), "mine");
    assert!(!other.output("cat /etc/passwd").contains("changed"));
    sleeps(&other, true);
    // Its own are gone, as soon as its agent has waited for them.
    sleeps(&one, false);
}
