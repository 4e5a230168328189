//! Logging on stderr: our own crates only.
//!
//! Threat: the logs of a node are read by its operator and by whoever takes them. The network libraries name peers in
//! theirs, among them requesters; whatever the filter of the user says, nothing of theirs is written.

use std::io::IsTerminal as _;

use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::failure::{CONFIG, Failure};

/// Starts logging with a filter as of tracing's `EnvFilter`; `SOUK_LOG` in the environment wins.
pub(crate) fn start(filter: &str, json: bool) -> Result<(), Failure> {
    let from_environment = std::env::var("SOUK_LOG").ok();
    let text = from_environment.as_deref().unwrap_or(filter);
    let filter = EnvFilter::try_new(text).map_err(|error| {
        Failure::because(format!("the log filter {text:?} makes no sense"), &error)
            .hint("write a level (error, warn, info, debug, trace) or target=level, separated by commas")
            .code(CONFIG)
    })?;
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let layer = if json {
        layer.json().boxed()
    } else {
        layer.compact().boxed()
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter).with_filter(filter_fn(is_ours)))
        .try_init()
        .expect("logging starts once");
    Ok(())
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("souk")
}
