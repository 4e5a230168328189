//! `souk top` in a real terminal, on real nodes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use souk_tests::{Network, NodeUnderTest, Plan, eventually, needs, skipped, souk, succeed};
use tempfile::TempDir;

/// A terminal of tmux in which a shell runs; it ends with the fixture.
struct Terminal {
    socket: PathBuf,
    _folder: TempDir,
}

impl Terminal {
    /// None where there is no tmux.
    fn open(width: u16, height: u16) -> Option<Self> {
        Command::new("tmux").arg("-V").output().ok()?;
        let folder = TempDir::new().expect("a temporary folder");
        let terminal = Self {
            socket: folder.path().join("tmux.sock"),
            _folder: folder,
        };
        let (width, height) = (width.to_string(), height.to_string());
        let size = ["new-session", "-d", "-x", &width, "-y", &height];
        succeed(terminal.tmux(&size).args(["env", "PS1=ready> ", "sh"]));
        terminal.until("the shell", "ready>");
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command
            .args(["-f", "/dev/null", "-S"])
            .arg(&self.socket)
            .args(args)
            .env_remove("TMUX");
        command
    }

    /// What is on the screen.
    fn screen(&self) -> String {
        let Output { stdout, .. } = succeed(&mut self.tmux(&["capture-pane", "-p"]));
        String::from_utf8(stdout).expect("UTF-8")
    }

    fn until(&self, what: &str, text: &str) -> String {
        eventually(what, || {
            let screen = self.screen();
            screen.contains(text).then_some(screen)
        })
    }

    /// Types what tmux calls by name, or a text as it is.
    fn keys(&self, keys: &[&str]) {
        succeed(self.tmux(&["send-keys"]).args(keys));
    }

    fn types(&self, text: &str) {
        succeed(&mut self.tmux(&["send-keys", "-l", text]));
    }

    /// Runs `souk top` with these arguments, and says how it ended once it has.
    fn top(&self, args: &str) {
        let program = souk();
        self.types(&format!(
            "{} top {args}; echo it ended with $?",
            program.display()
        ));
        self.keys(&["Enter"]);
    }

    /// The program has ended well, and the terminal is as it was: it echoes, takes lines, and shows what was there before.
    fn is_as_before(&self) {
        self.until("the program ends", "it ended with 0");
        self.types("stty -a");
        self.keys(&["Enter"]);
        let screen = self.until("the terminal", "icanon");
        assert!(
            !screen.contains("-icanon") && !screen.contains("-echo "),
            "{screen}"
        );
        let shown = succeed(&mut self.tmux(&[
            "display-message",
            "-p",
            "#{alternate_on} #{mouse_any_flag} #{cursor_flag}",
        ]));
        assert_eq!(shown.stdout, b"0 0 1\n");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may not have been started.
        let _ = self.tmux(&["kill-server"]).output();
    }
}

fn config(node: &NodeUnderTest) -> String {
    format!("--config {}", node.folder().join("souk.toml").display())
}

fn small() -> Plan {
    Plan {
        mixes: 1,
        policy: "[control]\nmonitor_socket = \"monitor.sock\"".to_owned(),
        ..Plan::default()
    }
}

fn standing(node: &NodeUnderTest) -> Option<String> {
    Some(node.status()?["standing"].as_str()?.to_owned())
}

#[test]
fn a_provider_is_watched_acted_on_lost_and_found_again_needs_tmux() {
    needs!(Leases);
    let Some(terminal) = Terminal::open(100, 30) else {
        return skipped("needs tmux");
    };
    let mut network = Network::start(&small());
    terminal.top(&config(network.provider()));
    let screen = terminal.until("the first snapshot", "● open");
    assert!(screen.contains(network.provider().id()), "{screen}");

    // A question first, and no without a yes.
    terminal.keys(&["d"]);
    terminal.until("a question", "Take no new leases?");
    terminal.keys(&["n"]);
    terminal.keys(&["d"]);
    terminal.until("a question", "Take no new leases?");
    assert_eq!(standing(network.provider()).as_deref(), Some("open"));
    terminal.keys(&["y"]);
    terminal.until("what became of it", "✓ the node takes no new leases");
    terminal.until("it is shown", "! draining");
    assert_eq!(standing(network.provider()).as_deref(), Some("draining"));
    terminal.keys(&["u", "y"]);
    terminal.until("it is taken back", "● open");

    terminal.keys(&["2"]);
    terminal.until("the backends", "● works");
    terminal.keys(&["p", "y"]);
    terminal.until("it is paused", "! paused");

    // The mouse, in the form of xterm's SGR: a click on the tab of the leases.
    terminal.types("\u{1b}[<0;26;2M");
    terminal.until("the leases", "no lease is open");
    terminal.keys(&["8", "/"]);
    terminal.types("PAUSED");
    terminal.until("the filter", "/PAUSED");
    let screen = terminal.until("what happened, filtered", "sandbox is paused");
    assert!(!screen.contains("the node began to work"), "{screen}");
    terminal.keys(&["Escape"]);
    terminal.until("all that happened", "the node began to work");

    succeed(&mut terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]));
    terminal.until("80 columns", "8 Events");
    succeed(&mut terminal.tmux(&["resize-window", "-x", "200", "-y", "50"]));
    terminal.keys(&["1"]);
    terminal.until("two columns", "Node                        ");

    network.provider_mut().process().kill();
    terminal.until("it says so", "✖ the node is gone");
    terminal.until("and why", "no node is running at");
    network.start_provider_again("provider-again");
    let screen = terminal.until("it is found again", "● open");
    assert!(!screen.contains("is gone"), "{screen}");
    terminal.keys(&["q"]);
    terminal.is_as_before();
}

#[test]
fn one_who_monitors_sees_the_same_and_can_do_nothing_needs_tmux() {
    needs!(Leases);
    let Some(terminal) = Terminal::open(160, 40) else {
        return skipped("needs tmux");
    };
    let network = Network::start(&small());
    let folder = network.provider().folder();
    let recording = folder.join("session");
    let socket = folder.join("monitor.sock");
    terminal.top(&format!(
        "--socket {} --record {}",
        socket.display(),
        recording.display()
    ));
    terminal.until("the first snapshot", "● open");
    terminal.keys(&["d", "y"]);
    terminal.until(
        "why not",
        "✖ this socket is for monitoring and refuses Drain",
    );
    assert_eq!(standing(network.provider()).as_deref(), Some("open"));

    // It is told to end, as by a system that goes down.
    end_who_writes(&recording);
    terminal.is_as_before();

    terminal.keys(&["C-l"]);
    terminal.types("clear");
    terminal.keys(&["Enter"]);
    terminal.top(&format!("--replay {}", recording.display()));
    let screen = terminal.until("the end of the recording", "the recording is over");
    assert!(screen.contains(network.provider().id()), "{screen}");
    terminal.keys(&["q"]);
    terminal.is_as_before();
}

/// Ends the one program that has this recording open.
fn end_who_writes(recording: &Path) {
    let holds = |pid: &str| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut open = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        open.any(|file| file == recording).then_some(())
    };
    let processes = std::fs::read_dir("/proc").expect("Linux has it");
    let pid = processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.parse::<u32>().is_ok() && holds(name).is_some())
        .expect("somebody writes the recording");
    succeed(Command::new("kill").args(["-TERM", &pid]));
}
