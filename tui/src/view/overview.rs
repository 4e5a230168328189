//! Who the node is, what it carries and earns, and why there is no work where there is none.

use ratatui::layout::Rect;
use souk_control::v1;

use super::pen::{Pen, row, wrapped};
use crate::{
    facts::{Fact, money, who, why, work},
    layout,
    state::State,
    text::{count, spark},
};

/// From this width on there are two columns.
const WIDE: u16 = 120;
/// Cells of a name before its value.
const NAME: u16 = 12;

pub(super) fn draw(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let body = layout::body(state);
    let bars = if body.width >= WIDE { 24 } else { 16 };
    let who = who(snapshot, state.now_s());
    let work = work(snapshot, bars);
    let money = money(snapshot, bars);
    let history = history(state, if body.width >= WIDE { 44 } else { 60 });
    let why = why(snapshot);
    if body.width < WIDE {
        let y = section(pen, body, 0, "", &who);
        let y = reasons(pen, body, y, &why);
        let y = section(pen, body, y, "Work", &work);
        let y = section(pen, body, y, "Money", &money);
        section(pen, body, y, "History", &history);
        return;
    }
    let half = body.width / 2;
    let left = Rect::new(body.x, body.y, half - 2, body.height);
    let right = Rect::new(body.x + half, body.y, body.width - half, body.height);
    let y = section(pen, left, 0, "Node", &who);
    section(pen, left, y + 1, "History", &history);
    let y = section(pen, right, 0, "Work", &work);
    let y = section(pen, right, y + 1, "Money", &money);
    reasons(pen, right, y + 1, &why);
}

/// Draws lines under a title; says which row comes next.
fn section(pen: &mut Pen<'_>, area: Rect, mut y: u16, title: &str, lines: &[Fact]) -> u16 {
    let theme = pen.theme;
    if !title.is_empty() {
        pen.line(row(area, y), &[(title, theme.title())]);
        y += 1;
    }
    for (name, value, is_bad) in lines {
        let line = row(area, y);
        let style = if *is_bad { theme.bad() } else { theme.text() };
        pen.write(line.x, line.y, NAME.min(line.width), name, theme.faint());
        let sign = if *is_bad { "! " } else { "" };
        let value_area = Rect::new(
            line.x + NAME,
            line.y,
            line.width.saturating_sub(NAME),
            line.height,
        );
        pen.line(value_area, &[(sign, style), (value, style)]);
        y += 1;
    }
    y
}

/// Why there is no work, or what stands in its way; says which row comes next.
fn reasons(pen: &mut Pen<'_>, area: Rect, mut y: u16, why: &[(String, bool)]) -> u16 {
    let theme = pen.theme;
    pen.line(
        row(area, y),
        &[("What stands in the way of work", theme.title())],
    );
    y += 1;
    for (text, is_bad) in why {
        let (mut sign, style) = match is_bad {
            true => ("! ", theme.bad()),
            false => ("  ", theme.text()),
        };
        for line in wrapped(text, usize::from(area.width.saturating_sub(2))) {
            pen.line(row(area, y), &[(sign, style), (&line, style)]);
            y += 1;
            sign = "  ";
        }
    }
    y
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
