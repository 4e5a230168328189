//! A provider that is killed and started over and over, always on the same port and the same data.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use souk_node::failpoint::{BUG_VARIABLE, Failpoint, HITS_VARIABLE, KILL_VARIABLE, PlantedBug};

use super::{
    Kill, logs_in,
    look::{self, Seen},
    soak::Footprint,
};
use crate::{
    instances::Instances,
    network::{Network, node_command_of},
    process::{PATIENCE, Process, succeed},
    programs,
    requester::Requester,
    simulation::Violation,
};

/// Between two looks at whether it is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(super) struct Provider {
    folder: PathBuf,
    config: PathBuf,
    id: String,
    bug: Option<PlantedBug>,
    process: Option<Process>,
    /// How often it was started since its logs were forgotten.
    lives: u32,
    instances: Instances,
    seen: Seen,
}

impl Provider {
    /// Makes its folder, its image and its configuration, and has it drawn a port.
    pub(super) fn set_up(
        network: &Network,
        worker: u64,
        bug: Option<PlantedBug>,
        logged: &str,
    ) -> Self {
        let folder = network.folder().join(format!("provider{worker}"));
        fs::create_dir(&folder).expect("a new folder");
        let config = folder.join("souk.toml");
        let text = network
            .provider_config(&folder)
            .replace(
                "roles = [\"mix\", \"entry\", \"relay\"]",
                "roles = [\"provider\"]",
            )
            .replace("allow_shared_kernel = false", "allow_shared_kernel = true")
            .replace("checkpoint_s = 10", "checkpoint_s = 1")
            .replace("[provider]", "[provider]\nanonymous_per_hour = 100000")
            .replace("filter = \"debug\"", &format!("filter = {logged:?}"));
        fs::write(&config, &text).expect("written");
        succeed(
            Command::new(programs::souk())
                .args(["image", "build", "--config"])
                .arg(&config),
        );
        let mut provider = Self {
            instances: Instances::below(&folder),
            folder,
            config,
            id: String::new(),
            bug,
            process: None,
            lives: 0,
            seen: Seen::default(),
        };
        provider.start(None);
        let ready = provider.until_ready().expect("it starts");
        provider.id = ready["node_id"].as_str().expect("a node id").to_owned();
        let address = ready["addresses"][0].as_str().expect("an address");
        let port = address.split('/').nth(4).expect("/ip4/ADDRESS/tcp/PORT");
        let fixed = text.replace("/tcp/0\"]", &format!("/tcp/{port}\"]"));
        fs::write(&provider.config, fixed).expect("written");
        provider.kill();
        provider
    }

    /// Its folder, with what each of its lives said.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Forgets what its lives have said so far.
    pub(super) fn forget_logs(&mut self) {
        self.lives = 0;
        for path in logs_in(&self.folder) {
            fs::remove_file(path).expect("it is ours");
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Starts it, and waits until it is ready or dead.
    pub(super) fn start(&mut self, kill: Option<Kill>) {
        let ready_file = self.ready_file();
        // The file of an earlier life says nothing of this one.
        let _ = fs::remove_file(&ready_file);
        let program = programs::souk_with_failpoints();
        let mut command = node_command_of(&program, &self.config, &ready_file);
        command.env(HITS_VARIABLE, self.folder.join("hits"));
        if let Some(bug) = self.bug {
            command.env(BUG_VARIABLE, bug.name());
        }
        if let Some(Kill::At(point, nth)) = kill {
            command.env(KILL_VARIABLE, format!("{}:{nth}", point.name()));
        }
        self.lives += 1;
        let name = format!("provider-{}", self.lives);
        self.process = Some(Process::start(&name, command, &self.folder));
        self.until_ready();
    }

    fn until_ready(&mut self) -> Option<Value> {
        let start = Instant::now();
        loop {
            if let Ok(bytes) = fs::read(self.ready_file())
                && let Ok(ready) = serde_json::from_slice(&bytes)
            {
                return Some(ready);
            }
            if self.is_dead() {
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "the provider is never ready");
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn ready_file(&self) -> PathBuf {
        self.folder.join("ready.json")
    }

    pub(super) fn is_dead(&mut self) -> bool {
        self.process
            .as_mut()
            .is_none_or(|process| process.ended().is_some())
    }

    /// Ends it as a power failure does.
    pub(super) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// Its instances, by lease.
    pub(super) fn instances(&self) -> Vec<String> {
        self.instances.leases()
    }

    /// Looks at what it left while it is dead; at the end of a run nothing may be open.
    pub(super) fn look(&mut self, requester: Option<&Requester>, is_over: bool) -> Vec<Violation> {
        let instances = self.instances();
        let data = self.folder.join("data");
        look::look(&data, &instances, requester, &mut self.seen, is_over)
    }

    /// What it uses of the machine, while it lives.
    pub(super) fn footprint(&self) -> Option<Footprint> {
        Footprint::of(self.process.as_ref()?.id())
    }

    /// Times that it passed each failpoint.
    pub(super) fn hits(&self) -> BTreeMap<Failpoint, u64> {
        let mut hits = BTreeMap::new();
        for name in read_lines(&self.folder.join("hits")) {
            if let Some(point) = Failpoint::named(&name) {
                *hits.entry(point).or_default() += 1;
            }
        }
        hits
    }
}

fn read_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
