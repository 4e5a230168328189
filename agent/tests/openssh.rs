//! The agent against the OpenSSH client.

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use common::{Agent, Start, alive, eventually, make_key, noise, resident_kib, text};
use souk_backend::agent::{AgentMessage, ExitReason, TenantIds};

const MIB: usize = 1 << 20;

#[test]
fn exec_returns_output_errors_and_exit_codes() {
    let Some(agent) = Agent::start() else { return };
    let output = agent.exec("echo out; echo err >&2; exit 37");
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(37));
    assert_eq!(agent.exec("true").status.code(), Some(0));
    assert_eq!(agent.exec("/no/such/program").status.code(), Some(127));
}

#[test]
fn a_program_that_a_signal_ended_is_reported_as_such() {
    let Some(agent) = Agent::start() else { return };
    let output = agent
        .ssh()
        .args(["-v", "kill -TERM $$"])
        .output()
        .expect("ssh runs");
    assert_eq!(output.status.code(), Some(255));
    assert!(
        text(&output.stderr).contains("exit-signal"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn ten_mib_of_input_come_back_unchanged() {
    let Some(agent) = Agent::start() else { return };
    let input = noise(10 * MIB, 1);
    let mut client = agent
        .ssh()
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let mut stdin = client.stdin.take().expect("piped");
    let writer = thread::spawn({
        let input = input.clone();
        move || stdin.write_all(&input).expect("taken")
    });
    let output = client.wait_with_output().expect("ssh ends");
    writer.join().expect("written");
    assert!(output.status.success());
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
}

/// A program that answers before it reads, while its client sends before it reads the answer: with one loop for both
/// directions this hangs unless input waits in the agent.
#[test]
fn a_program_that_reads_late_does_not_hold_up_its_own_output() {
    let Some(agent) = Agent::start() else { return };
    let input = noise(24 * MIB, 2);
    let mut client = agent
        .ssh()
        .arg("head -c 16777216 /dev/zero; cat >/dev/null; echo done")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let mut stdin = client.stdin.take().expect("piped");
    let writer = thread::spawn(move || stdin.write_all(&input).expect("taken"));
    let output = client.wait_with_output().expect("ssh ends");
    writer.join().expect("written");
    assert_eq!(output.stdout.len(), 16 * MIB + "done\n".len());
}

#[test]
fn a_program_that_never_reads_leaves_the_agent_small() {
    let Some(agent) = Agent::start() else { return };
    let mut client = agent
        .ssh()
        .arg("echo started; exec sleep 1000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("read"), "started");
    let mut stdin = client.stdin.take().expect("piped");
    let taken = Arc::new(AtomicUsize::new(0));
    // Ends with an error when the client is killed below; until then it is stuck, which is the point.
    let writer = thread::spawn({
        let taken = Arc::clone(&taken);
        move || {
            noise(64 * MIB, 3).chunks(64 << 10).try_for_each(|part| {
                stdin.write_all(part)?;
                taken.fetch_add(part.len(), Ordering::Relaxed);
                Ok::<_, std::io::Error>(())
            })
        }
    });
    eventually("the client has sent what its first window allows", || {
        taken.load(Ordering::Relaxed) >= 2 * MIB
    });
    for _ in 0..16 {
        assert_eq!(agent.exec("echo still here").stdout, b"still here\n");
        let resident = resident_kib(&agent);
        assert!(resident < 64 * 1024, "{resident} KiB");
    }
    client.kill().expect("killed");
    client.wait().expect("ended");
    assert!(writer.join().expect("no panic").is_err());
}

#[test]
fn a_terminal_has_the_size_and_the_name_that_the_client_gave() {
    let Some(agent) = Agent::start() else { return };
    // `script` gives the client a terminal of its own, whose size OpenSSH passes on.
    let inner = format!(
        "stty rows 33 cols 101; {} -tt 'stty size; echo $TERM; tty; test -t 0 && test -t 2; echo $?'",
        shell_line(agent.ssh())
    );
    let output = Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .expect("script runs");
    let said = text(&output.stdout);
    assert!(said.contains("33 101"), "{said}");
    assert!(said.contains("xterm-256color"), "{said}");
    assert!(said.contains("/dev/pts/"), "{said}");
}

fn shell_line(command: Command) -> String {
    let mut words = vec![command.get_program().to_str().expect("UTF-8").to_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| format!("'{}'", arg.to_str().expect("UTF-8"))),
    );
    words.join(" ")
}

#[test]
fn a_shell_takes_commands_over_a_terminal_and_reports_its_exit() {
    let Some(agent) = Agent::start() else { return };
    let mut client = agent
        .ssh()
        .arg("-tt")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("ssh runs");
    let mut stdin = client.stdin.take().expect("piped");
    stdin
        .write_all(b"echo \"$((6*7)) $0 $HOME $USER\"; exit 5\n")
        .expect("taken");
    let output = client.wait_with_output().expect("ssh ends");
    let said = text(&output.stdout);
    let home = agent.home();
    assert!(said.contains("42 -"), "{said}");
    assert!(
        said.contains(&format!("sh {} souk", home.display())),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(5));
    drop(stdin);
}

/// Runs a batch of commands in OpenSSH's `sftp`, which stops at the first that fails.
fn sftp(agent: &Agent, commands: &str) -> Output {
    let batch = agent.dir().join("batch");
    fs::write(&batch, commands).expect("written");
    let output = agent
        .openssh("sftp")
        .arg("-b")
        .arg(&batch)
        .arg("souk@127.0.0.1")
        .output()
        .expect("sftp runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

#[test]
fn sftp_carries_64_mib_both_ways() {
    let Some(agent) = Agent::start() else { return };
    let here = agent.dir().join("here");
    fs::write(&here, noise(64 * MIB, 4)).expect("written");
    let back = agent.dir().join("back");
    let output = sftp(
        &agent,
        &format!(
            "mkdir sub\nput {} sub/there\nchmod 640 sub/there\nrename sub/there sub/moved\nls -l sub\nget sub/moved {}\ndf\n",
            here.display(),
            back.display()
        ),
    );
    assert!(
        text(&output.stdout).contains("-rw-r-----"),
        "{}",
        text(&output.stdout)
    );
    let there = agent.home().join("sub/moved");
    let sent = fs::read(&here).expect("read");
    assert!(fs::read(there).expect("arrived") == sent);
    assert!(fs::read(back).expect("came back") == sent);
}

#[test]
fn scp_works_in_both_of_its_protocols() {
    let Some(agent) = Agent::start() else { return };
    let here = agent.dir().join("here");
    fs::write(&here, noise(3 * MIB, 5)).expect("written");
    for (mode, name) in [("-s", "by-sftp"), ("-O", "by-scp")] {
        let back = agent.dir().join(name);
        let there = format!("souk@127.0.0.1:{name}");
        for (from, to) in [
            (here.to_str().expect("UTF-8"), there.as_str()),
            (there.as_str(), back.to_str().expect("UTF-8")),
        ] {
            let output = agent
                .openssh("scp")
                .args([mode, "-q", from, to])
                .output()
                .expect("scp runs");
            assert!(output.status.success(), "{mode}: {}", text(&output.stderr));
        }
        assert!(
            fs::read(back).expect("came back") == fs::read(&here).expect("read"),
            "{mode}"
        );
    }
}

#[test]
fn file_transfer_runs_as_the_tenant_and_not_in_the_agent() {
    let Some(agent) = Agent::start() else { return };
    let got = agent.dir().join("cmdline");
    sftp(
        &agent,
        &format!("get /proc/self/cmdline {}\n", got.display()),
    );
    let cmdline = text(&fs::read(got).expect("a file"));
    assert!(cmdline.contains("sftp-server"), "{cmdline:?}");
}

#[test]
fn rsync_copies_a_tree_and_only_what_changed() {
    if Command::new("rsync").arg("--version").output().is_err() {
        return common::skipped("needs rsync");
    }
    let Some(agent) = Agent::start() else { return };
    let tree = agent.dir().join("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("made");
    fs::write(tree.join("deep/er/big"), noise(2 * MIB, 7)).expect("written");
    fs::write(tree.join("small"), "one").expect("written");
    let line = shell_line(agent.openssh("ssh"));
    let sync = || {
        let output = Command::new("rsync")
            .args(["-a", "--itemize-changes", "-e", &line])
            .args([tree.to_str().expect("UTF-8"), "souk@127.0.0.1:"])
            .output()
            .expect("rsync runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert!(sync().contains("deep/er/big"));
    let there = fs::read(agent.home().join("tree/deep/er/big")).expect("arrived");
    assert!(there == noise(2 * MIB, 7));
    fs::write(tree.join("small"), "other").expect("written");
    let second = sync();
    assert!(
        second.contains("small") && !second.contains("big"),
        "{second}"
    );
}

#[test]
fn a_machine_without_openssh_or_rsync_skips_what_needs_them_and_says_so() {
    for (test, why) in [
        ("exec_returns_output_errors_and_exit_codes", "needs OpenSSH"),
        ("rsync_copies_a_tree_and_only_what_changed", "needs rsync"),
    ] {
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args([test, "--exact", "--nocapture"])
            .env("PATH", "/nonexistent")
            .output()
            .expect("the tests run again");
        let said = text(&output.stderr);
        let is_told = said.contains(&format!("skipped: {why}"));
        assert!(output.status.success() && is_told, "{test}: {said}");
    }
}

#[test]
fn a_local_port_reaches_a_server_inside_and_a_remote_one_reaches_outside() {
    let Some(agent) = Agent::start() else { return };
    let inside = TcpListener::bind(("127.0.0.1", 0)).expect("a server");
    let inside_port = inside.local_addr().expect("bound").port();
    let echo = thread::spawn(move || {
        let (mut stream, _) = inside.accept().expect("a client");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("read");
        stream.write_all(&said).expect("written");
    });
    let mut client = agent
        .openssh("ssh")
        .args(["-W", &format!("127.0.0.1:{inside_port}"), "souk@127.0.0.1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let sent = noise(MIB, 6);
    client
        .stdin
        .take()
        .expect("piped")
        .write_all(&sent)
        .expect("taken");
    let output = client.wait_with_output().expect("ssh ends");
    echo.join().expect("served");
    assert!(output.stdout == sent, "{} bytes", output.stdout.len());

    let outside = TcpListener::bind(("127.0.0.1", 0)).expect("a server");
    let outside_port = outside.local_addr().expect("bound").port();
    let mut client = agent
        .openssh("ssh")
        .args([
            "-N",
            "-R",
            &format!("127.0.0.1:0:127.0.0.1:{outside_port}"),
            "souk@127.0.0.1",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let mut said = String::new();
    BufReader::new(client.stderr.as_mut().expect("piped"))
        .read_line(&mut said)
        .expect("the allocated port");
    let port: u16 = said
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no port in {said:?}"));
    let mut from_inside = TcpStream::connect(("127.0.0.1", port)).expect("forwarded");
    let (mut at_outside, _) = outside.accept().expect("arrives");
    from_inside.write_all(b"ping").expect("sent");
    let mut got = [0; 4];
    at_outside.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"ping");
    at_outside.write_all(b"pong").expect("sent");
    from_inside.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"pong");
    client.kill().expect("killed");
    client.wait().expect("ended");
    eventually("the port is given up with its connection", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
}

#[test]
fn another_key_another_user_and_a_password_are_refused() {
    let Some(agent) = Agent::start() else { return };
    let other = agent.dir().join("other");
    make_key(&other);
    let refused = |command: &mut Command| {
        let output = command.arg("echo inside").output().expect("ssh runs");
        assert_eq!(output.status.code(), Some(255));
        assert!(output.stdout.is_empty());
        let said = text(&output.stderr);
        assert!(said.contains("Permission denied (publickey)"), "{said}");
    };
    let with = |user: &str, extra: &[&str], identity: &std::path::Path| {
        let mut command = Command::new("ssh");
        command
            .args([
                "-F",
                "/dev/null",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentityAgent=none",
            ])
            .args(["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
            .args(extra)
            .args(["-p", &agent.address().port().to_string(), "-i"])
            .arg(identity)
            .arg(format!("{user}@127.0.0.1"));
        command
    };
    refused(&mut with("souk", &[], &other));
    refused(&mut with("root", &[], &agent.identity()));
    let password = [
        "-o",
        "PreferredAuthentications=password,keyboard-interactive,none",
    ];
    refused(&mut with("souk", &password, &agent.identity()));
    assert!(
        with("souk", &[], &agent.identity())
            .arg("true")
            .status()
            .expect("runs")
            .success()
    );
}

#[test]
fn many_sessions_run_at_once_over_one_connection_and_over_many() {
    let Some(agent) = Agent::start() else { return };
    let socket = agent.dir().join("mux");
    let mut master = agent
        .openssh("ssh")
        .args(["-N", "-M", "-S"])
        .arg(&socket)
        .arg("souk@127.0.0.1")
        .spawn()
        .expect("ssh runs");
    eventually("the shared connection is up", || socket.exists());
    thread::scope(|scope| {
        for n in 0..16 {
            let (agent, socket) = (&agent, &socket);
            scope.spawn(move || {
                let mut ssh = agent.openssh("ssh");
                if n % 2 == 0 {
                    ssh.arg("-S").arg(socket);
                }
                let line = format!("head -c 200000 /dev/zero | wc -c; echo {n}");
                let output = ssh
                    .args(["souk@127.0.0.1", &line])
                    .output()
                    .expect("ssh runs");
                assert_eq!(text(&output.stdout).trim(), format!("200000\n{n}"));
            });
        }
    });
    master.kill().expect("killed");
    master.wait().expect("ended");
}

#[test]
fn what_a_client_started_ends_when_the_client_is_terminated() {
    let Some(agent) = Agent::start() else { return };
    for terminal in [false, true] {
        let mut ssh = agent.openssh("ssh");
        if terminal {
            ssh.arg("-tt");
        }
        let mut client = ssh
            .args([
                "souk@127.0.0.1",
                "sleep 1000 & echo $! $$; trap '' HUP; wait; sleep 1000",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ssh runs");
        let mut line = String::new();
        BufReader::new(client.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("the process ids");
        let pids: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(pids.len(), 2, "{line:?}");
        assert!(pids.iter().all(|pid| alive(pid)));
        // SAFETY: kill takes no pointers; the process is our child and has not been waited for.
        unsafe { libc::kill(i32::try_from(client.id()).expect("a pid"), libc::SIGTERM) };
        assert!(!client.wait().expect("ended").success());
        eventually("the session's processes are gone", || {
            !pids.iter().any(|pid| alive(pid))
        });
    }
}

#[test]
fn what_a_session_left_behind_lives_until_the_lease_ends() {
    let Some(mut agent) = Agent::start_with(&Start {
        lease_s: 12,
        ..Start::default()
    }) else {
        return;
    };
    let output = agent.exec("sleep 1000 >/dev/null 2>&1 </dev/null & echo $!");
    let pid = text(&output.stdout).trim().to_owned();
    assert!(alive(&pid));
    let mut session = agent
        .ssh()
        .arg("echo $$; exec sleep 1000")
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let mut line = String::new();
    BufReader::new(session.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .expect("the process id");
    agent.forget_control();
    assert!(agent.wait().success());
    assert!(!alive(line.trim()));
    assert_eq!(session.wait().expect("ended").code(), Some(255));
    // Outside of a namespace of its own the agent does not look for what left its session; in one it does.
    // SAFETY: kill takes no pointers; the process was started by this test.
    unsafe { libc::kill(pid.parse().expect("a pid"), libc::SIGKILL) };
}

#[test]
fn the_end_of_the_lease_is_told_and_its_exit_is_a_success() {
    let Some(mut agent) = Agent::start_with(&Start {
        lease_s: 1,
        ..Start::default()
    }) else {
        return;
    };
    let reason = loop {
        match agent.message().expect("the agent says why") {
            AgentMessage::Exiting { reason } => break reason,
            _ => continue,
        }
    };
    assert_eq!(reason, ExitReason::ValidTo);
    let status = agent.wait();
    assert!(status.success() && status.signal().is_none());
}

#[test]
fn missing_standard_descriptors_do_not_matter() {
    let Some(agent) = Agent::start_with(&Start {
        standard_streams: false,
        ..Start::default()
    }) else {
        return;
    };
    assert_eq!(agent.exec("echo works").stdout, b"works\n");
}

#[test]
fn a_tenant_inherits_no_descriptor_and_a_clean_environment() {
    let Some(agent) = Agent::start() else { return };
    let fds = agent.exec("ls /proc/self/fd | sort -n | tr '\\n' ' '");
    // The fourth is the directory that `ls` reads.
    assert_eq!(text(&fds.stdout).trim(), "0 1 2 3");
    let output = agent
        .openssh("ssh")
        .args(["-o", "SendEnv=LC_SOUK LD_SOUK", "souk@127.0.0.1", "env"])
        .env("LC_SOUK", "yes")
        .env("LD_SOUK", "no")
        .output()
        .expect("ssh runs");
    let env = text(&output.stdout);
    assert!(
        env.contains("LC_SOUK=yes") && !env.contains("LD_SOUK"),
        "{env}"
    );
    assert!(!env.contains("CARGO"), "{env}");
    let caps = agent.exec("grep NoNewPrivs /proc/self/status");
    assert_eq!(text(&caps.stdout).split_whitespace().last(), Some("1"));
}

#[test]
fn a_tenant_with_ids_of_its_own_keeps_nothing_of_root_needs_root() {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        common::skipped("needs root");
        return;
    }
    let ids = TenantIds {
        uid: 60_123,
        gid: 60_124,
    };
    let Some(agent) = Agent::start_with(&Start {
        switch_to: Some(ids),
        ..Start::default()
    }) else {
        return;
    };
    let output = agent.exec("id -u; id -g; id -G; touch mine; kill -0 $PPID || echo no");
    assert_eq!(text(&output.stdout), "60123\n60124\n60124\nno\n");
    let status = text(&agent.exec("grep ^Cap /proc/self/status").stdout);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000")),
            "{status}"
        );
    }
    let score = agent.exec("cat /proc/self/oom_score_adj");
    assert_eq!(text(&score.stdout).trim(), "1000");
    for path in ["environ", "mem", "fd"] {
        let line = format!("ls -l /proc/{0}/fd/ || cat /proc/{0}/{path}", agent.pid());
        assert!(
            !agent.exec(&line).status.success(),
            "{path} of the agent is open"
        );
    }
    sftp(&agent, "put /etc/hostname there\n");
    let owner = fs::metadata(agent.home().join("there"))
        .expect("arrived")
        .uid();
    assert_eq!(owner, ids.uid);
}
