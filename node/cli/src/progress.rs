//! A spinner on stderr for what takes longer than a second; nothing where stderr is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clean::Line;

/// What is finished sooner shows nothing.
const QUIET: Duration = Duration::from_secs(1);

/// Shows `what` from the second second until it is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    shown: tokio::task::JoinHandle<()>,
}

impl Progress {
    pub(crate) fn start(what: &str) -> Self {
        let bar = ProgressBar::hidden();
        let style =
            ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a valid template");
        bar.set_style(style);
        bar.set_message(Line(what).to_string());
        let late = bar.clone();
        let shown = tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            late.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            late.enable_steady_tick(Duration::from_millis(100));
        });
        Self { bar, shown }
    }

    /// Goes on to the next step.
    pub(crate) fn step(&self, what: &str) {
        self.bar.set_message(Line(what).to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shown.abort();
        self.bar.finish_and_clear();
    }
}
