//! Who the node is, what it carries and earns, and why there is no work where there is none.

use ratatui::layout::Rect;
use souk_control::v1;

use super::pen::{Pen, row, wrapped};
use crate::{
    facts::{Fact, money, who, why, work},
    layout,
    state::State,
    text::{count, many, spark},
};

/// From this width on there are two columns.
const WIDE: u16 = 120;
/// Cells of a name before its value.
const NAME: u16 = 12;
/// Reasons that are shown, so that the rest of the page is not far below them.
const MAX_REASONS: usize = 5;

/// A line of the page.
#[derive(Clone)]
enum Line {
    Empty,
    Title(&'static str),
    Fact(Fact),
    /// A sign, what fits of a sentence, and whether it needs a look.
    Reason(&'static str, String, bool),
}

pub(super) fn draw(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let body = layout::body(state);
    let columns = columns(state, snapshot);
    let excess = longest(&columns).saturating_sub(body.height.into());
    let first = state.table().selected.min(excess);
    for (area, lines) in &columns {
        for (y, line) in (0..area.height).zip(lines.iter().skip(first)) {
            put(pen, row(*area, y), line);
        }
    }
    if first < excess && body.height > 0 {
        // It takes the place of a line, which is one of them.
        let below = excess - first + 1;
        let text = format!("↓ {}", many(below as u64, "more line"));
        let last = row(body, body.height - 1);
        pen.clear(last);
        pen.line(last, &[(&text, pen.theme.faint())]);
    }
}

/// How many lines the screen has no room for.
pub(crate) fn excess(state: &State, snapshot: &v1::Snapshot) -> usize {
    let room = layout::body(state).height;
    longest(&columns(state, snapshot)).saturating_sub(room.into())
}

fn longest(columns: &[(Rect, Vec<Line>)]) -> usize {
    let lengths = columns.iter().map(|(_, lines)| lines.len());
    lengths.max().unwrap_or_default()
}

/// What stands below each other, and where.
fn columns(state: &State, snapshot: &v1::Snapshot) -> Vec<(Rect, Vec<Line>)> {
    let body = layout::body(state);
    let is_wide = body.width >= WIDE;
    let bars = if is_wide { 24 } else { 16 };
    let who = who(snapshot, state.now_s());
    let work = section("Work", work(snapshot, bars));
    let money = section("Money", money(snapshot, bars));
    let history = history(state, if is_wide { 44 } else { 60 });
    let history = section("History", history);
    let why = why(snapshot);
    if !is_wide {
        let who: Vec<_> = who.into_iter().map(Line::Fact).collect();
        let why = reasons(&why, body.width);
        return vec![(body, [who, why, work, money, history].concat())];
    }
    let half = body.width / 2;
    let left = Rect::new(body.x, body.y, half - 2, body.height);
    let right = Rect::new(body.x + half, body.y, body.width - half, body.height);
    let node = section("Node", who);
    let why = reasons(&why, right.width);
    vec![
        (left, [node, history].join(&Line::Empty)),
        (right, [work, money, why].join(&Line::Empty)),
    ]
}

/// Lines under a title.
fn section(title: &'static str, facts: Vec<Fact>) -> Vec<Line> {
    let facts = facts.into_iter().map(Line::Fact);
    [Line::Title(title)].into_iter().chain(facts).collect()
}

/// Why there is no work, or what stands in its way.
fn reasons(why: &[(String, bool)], width: u16) -> Vec<Line> {
    let mut lines = vec![Line::Title("What stands in the way of work")];
    for (text, is_bad) in why.iter().take(MAX_REASONS) {
        let mut sign = if *is_bad { "! " } else { "  " };
        for part in wrapped(text, usize::from(width.saturating_sub(2))) {
            lines.push(Line::Reason(sign, part, *is_bad));
            sign = "  ";
        }
    }
    let more = why.len().saturating_sub(MAX_REASONS);
    if more > 0 {
        let text = format!("+{more} more; `souk status` says them all");
        lines.push(Line::Reason("  ", text, false));
    }
    lines
}

fn put(pen: &mut Pen<'_>, area: Rect, line: &Line) {
    let theme = pen.theme;
    let style = |is_bad| if is_bad { theme.bad() } else { theme.text() };
    match line {
        Line::Empty => {}
        Line::Title(title) => pen.line(area, &[(*title, theme.title())]),
        Line::Fact((name, value, is_bad)) => {
            pen.write(area.x, area.y, NAME.min(area.width), name, theme.faint());
            let sign = if *is_bad { "! " } else { "" };
            let width = area.width.saturating_sub(NAME);
            let value_area = Rect::new(area.x + NAME, area.y, width, area.height);
            let style = style(*is_bad);
            pen.line(value_area, &[(sign, style), (value, style)]);
        }
        Line::Reason(sign, text, is_bad) => {
            let style = style(*is_bad);
            pen.line(area, &[(*sign, style), (text, style)]);
        }
    }
}

fn history(state: &State, width: usize) -> Vec<Fact> {
    let samples = &state.samples;
    let line = |series: &crate::state::Series| {
        format!(
            "{} {}",
            spark(&series.last(width), width),
            count(series.newest())
        )
    };
    vec![
        ("leases", line(&samples.leases), false),
        ("packets/s", line(&samples.received), false),
    ]
}
