//! What a frame costs at 200×60 with many leases, on the page where it costs most: p99, and p50 as a multiple of that with 50 leases.

use std::time::{Duration, Instant};

use ratatui::{buffer::Buffer, layout::Rect};
use souk_tui::{Event, Key, Page, State, Theme, render};

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;
#[path = "../tests/support/mod.rs"]
mod support;

use measured::measured;

const FRAMES: usize = 2_000;

/// p50 and p99 of a frame of a page.
fn frames(leases: u32, page: Page) -> (Duration, Duration) {
    let mut state = support::session(200, 60, support::busy(leases));
    let key = char::from(b'1' + u8::try_from(page.number()).expect("one digit"));
    state.handle(Event::Key(Key::Char(key)));
    let mut took: Vec<_> = (0..FRAMES).map(|_| frame(&mut state)).collect();
    took.sort_unstable();
    (took[FRAMES / 2], took[FRAMES * 99 / 100])
}

fn frame(state: &mut State) -> Duration {
    state.handle(Event::Key(Key::Down));
    let mut buffer = Buffer::empty(Rect::new(0, 0, 200, 60));
    let began = Instant::now();
    render(state, Theme::colourful(), &mut buffer);
    began.elapsed()
}

#[expect(clippy::print_stdout, reason = "it prints what it measures")]
fn main() {
    let (mut longest, mut worst) = (Duration::ZERO, 0.0_f64);
    for page in Page::ALL {
        let (few, _) = frames(50, page);
        let (p50, p99) = frames(5_000, page);
        let ratio = p50.as_secs_f64() / few.as_secs_f64();
        longest = longest.max(p99);
        worst = worst.max(ratio);
        println!(
            "{:<9} 50 leases: p50 {few:>9.1?}; 5,000 leases: p50 {p50:>9.1?} ({ratio:.2}), p99 {p99:>9.1?}",
            page.title(),
        );
    }
    measured("frame-p99", longest.as_secs_f64() * 1e3, "ms");
    measured("frame-many-leases", worst, "times");
}
