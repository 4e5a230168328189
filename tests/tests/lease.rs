//! A whole lease over separate processes: a network of real nodes, the command line, and SSH clients that know nothing of
//! souk but the files it wrote.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use souk_tests::{Network, Plan, Rented, Requester, needs, skipped, succeed};

const MIB: usize = 1 << 20;

/// Bytes without a pattern that a transfer could hide a mistake behind.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_lease_is_rented_used_over_a_relay_ended_and_proven() {
    needs!(Leases, OpenSsh);
    let network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    assert_eq!(lease.text("provider"), network.provider().id());
    assert_ne!(lease.text("entry"), network.provider().id());

    let output = requester.exec(&lease, "uname -s; id -un; nproc; echo err >&2; exit 7");
    let said = text(&output.stdout);
    assert!(
        said.starts_with("Linux\nsouk\n"),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(
        text(&output.stderr).contains("err"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(7));
    // No network of its own but loopback.
    let interfaces = requester.exec(
        &lease,
        "ls /sys/class/net 2>/dev/null || cut -d: -f1 /proc/net/dev | tail -n +3",
    );
    assert_eq!(
        text(&interfaces.stdout)
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["lo"]
    );

    files_travel(&requester, &lease);

    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
    let usage = &ended["usage"];
    assert!(usage.is_object(), "{ended}");
    let verified = requester.json(&["log", "verify", "--json", lease.text("provider")]);
    assert_eq!(verified["verified"], true, "{verified}");
    assert!(verified["size"].as_u64() >= Some(1), "{verified}");

    let gone = requester
        .openssh("ssh", &lease.ssh_config())
        .args([lease.alias(), "true"])
        .output()
        .expect("ssh runs");
    assert_eq!(
        gone.status.code(),
        Some(255),
        "a lease that has ended lets people in"
    );
    assert_eq!(
        network.provider().status().expect("it answers")["leases"],
        0
    );
}

fn files_travel(requester: &Requester, lease: &Rented) {
    let folder = requester.folder().join("files");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("one"), noise(4 * MIB)).expect("written");
    let (config, alias) = (lease.ssh_config(), lease.alias());
    let (there, back) = (format!("{alias}:one"), folder.join("back"));
    succeed(
        requester
            .openssh("scp", &config)
            .arg("-q")
            .arg(folder.join("one"))
            .arg(&there),
    );
    succeed(
        requester
            .openssh("scp", &config)
            .arg("-q")
            .arg(&there)
            .arg(&back),
    );
    assert!(fs::read(&back).expect("came back") == noise(4 * MIB));

    needs!(Rsync);
    let ssh = format!("ssh -F {}", config.display());
    let rsync = || {
        let mut command = requester.program(Path::new("rsync"));
        command.args(["-a", "-e", &ssh]);
        command
    };
    succeed(rsync().arg(&folder).arg(format!("{alias}:")));
    fs::remove_file(folder.join("one")).expect("removed");
    succeed(rsync().arg(format!("{alias}:files/")).arg(&folder));
    assert!(fs::read(folder.join("one")).expect("came back") == noise(4 * MIB));
}

#[test]
fn asyncssh_and_paramiko_work_over_a_relay_needs_python_clients() {
    needs!(Leases, OpenSsh);
    let Some(python) = env::var_os("SOUK_TEST_PYTHON") else {
        return skipped(
            "needs python clients; SOUK_TEST_PYTHON names no Python with asyncssh and paramiko",
        );
    };
    let network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    // Room for the file of each client.
    let lease = requester.rent_with_disk(160, &[]);
    let sent = requester.folder().join("sent");
    fs::write(&sent, noise(64 * MIB)).expect("written");
    for (name, script) in [("asyncssh", ASYNCSSH), ("paramiko", PARAMIKO)] {
        succeed(
            Command::new(&python)
                .args(["-c", script])
                .arg(lease.ssh_config())
                .arg(lease.alias())
                .arg(&sent)
                .arg(requester.folder().join(name))
                .stdin(Stdio::null()),
        );
        let came_back = fs::read(requester.folder().join(name)).expect("came back");
        assert!(came_back == noise(64 * MIB), "{name}");
    }
    let hash = requester.exec(
        &lease,
        "cksum asyncssh paramiko | cut -d' ' -f1,2 | uniq | wc -l",
    );
    assert_eq!(text(&hash.stdout).trim(), "1");
    // Otherwise it would outlive the network by ten minutes.
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
}

const ASYNCSSH: &str = r"
import asyncio, asyncssh, sys
config, alias, sent, back = sys.argv[1:]
async def main():
    async with asyncssh.connect(alias, config=[config]) as conn:
        done = await conn.run('cat; exit 9', input='through')
        assert (done.stdout, done.exit_status) == ('through', 9), done
        tty = await conn.run('stty size', term_type='xterm', term_size=(111, 37))
        assert '37 111' in tty.stdout, tty.stdout
        async with conn.start_sftp_client() as sftp:
            await sftp.put(sent, 'asyncssh')
            await sftp.get('asyncssh', back)
asyncio.run(main())
";

const PARAMIKO: &str = r"
import paramiko, sys
config, alias, sent, back = sys.argv[1:]
host = paramiko.SSHConfig.from_path(config).lookup(alias)
client = paramiko.SSHClient()
client.load_host_keys(host['userknownhostsfile'])
client.connect(host.get('hostkeyalias', host['hostname']), username=host['user'], key_filename=host['identityfile'],
    sock=paramiko.ProxyCommand(host['proxycommand']), allow_agent=False, look_for_keys=False)
_, stdout, _ = client.exec_command('exit 9')
assert stdout.channel.recv_exit_status() == 9
_, stdout, _ = client.exec_command('stty size', get_pty=True)
assert '24 80' in stdout.read().decode()
sftp = client.open_sftp()
sftp.put(sent, 'paramiko')
sftp.get('paramiko', back)
client.close()
";
