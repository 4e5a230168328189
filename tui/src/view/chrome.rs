//! What is round every page: title, tabs, keys, notices, questions, help.

use ratatui::layout::Rect;

use super::pen::{Pen, row, wide, wrapped};
use crate::{
    layout,
    page::Page,
    state::{Link, State},
    text::duration,
};

/// The smallest terminal that all pages are made for.
const SMALLEST: (u16, u16) = (80, 24);

/// The keys that work on every page.
const KEYS: [(&str, &str); 5] = [
    ("1-8 Tab", "page"),
    ("↑↓", "row"),
    ("/", "filter"),
    ("?", "help"),
    ("q", "quit"),
];

/// Title, tabs and keys.
pub(super) fn frame(pen: &mut Pen<'_>, state: &State) {
    let screen = pen.screen();
    let theme = pen.theme;
    title(pen, state);
    for (page, x, width) in layout::tabs() {
        let text = format!("{} {}", page.number() + 1, page.title());
        let style = match page == state.page {
            true => theme.selected(),
            false => theme.text(),
        };
        pen.write(x, 1, width, &text, style);
    }
    let at = |from_bottom: u16| {
        let y = screen.bottom().saturating_sub(from_bottom);
        Rect::new(0, y, screen.width, u16::from(y > 1))
    };
    status_line(pen, state, at(2));
    let keys = at(1);
    if keys.height == 0 {
        return;
    }
    let filter = state.page.has_table();
    let general = KEYS
        .iter()
        .filter(|(key, _)| filter || !matches!(*key, "/" | "↑↓"));
    let mut x = 0;
    for (key, what) in state.page.keys().iter().chain(general) {
        // A key without its word is worse than none.
        let width = u16::try_from(wide(key) + wide(what) + 1).unwrap_or(u16::MAX);
        if x + width > screen.width {
            break;
        }
        x += pen.write(x, keys.y, screen.width, key, theme.selected());
        x += 1 + pen.write(x + 1, keys.y, screen.width, what, theme.text()) + 2;
    }
}

fn title(pen: &mut Pen<'_>, state: &State) {
    let theme = pen.theme;
    let width = pen.screen().width;
    let (word, style) = match (&state.link, state.silent_ms()) {
        (Link::Connecting, _) => ("○ connecting".to_owned(), theme.faint()),
        (Link::Gone { since_ms, .. }, _) => {
            let s = state.now_ms.saturating_sub(*since_ms) / 1000;
            (
                format!("✖ the node is gone for {}", duration(s)),
                theme.bad(),
            )
        }
        (Link::Up, Some(ms)) => (format!("! silent for {}", duration(ms / 1000)), theme.bad()),
        (Link::Up, None) => {
            let status = state.snapshot.as_ref().and_then(|s| s.status.as_ref());
            match status.map(|status| (status.standing.as_str(), status.warnings.is_empty())) {
                Some(("open", true)) => ("● open".to_owned(), theme.accent()),
                Some(("open", false)) => ("! open, with warnings".to_owned(), theme.bad()),
                Some((standing, _)) => (format!("! {standing}"), theme.bad()),
                None => ("○ connected".to_owned(), theme.faint()),
            }
        }
    };
    let right = u16::try_from(wide(&word)).unwrap_or(width).min(width);
    pen.write_right(width - right, 0, right, &word, style);
    let status = state.snapshot.as_ref().and_then(|s| s.status.as_ref());
    let who = status.map_or_else(String::new, |status| {
        format!("  {}  {}", status.network_id, status.node_id)
    });
    let left = Rect::new(0, 0, width.saturating_sub(right + 2), 1);
    pen.line(left, &[("souk top", theme.title()), (&who, theme.text())]);
}

/// The filter that is written, or a notice, or what stands in the way.
fn status_line(pen: &mut Pen<'_>, state: &State, line: Rect) {
    let theme = pen.theme;
    if line.height == 0 {
        return;
    }
    let filter = &state.table().filter;
    if state.is_filtering {
        let text = format!("/{filter}▏");
        pen.line(
            line,
            &[
                (&text, theme.title()),
                ("  Enter keeps it, Esc clears it", theme.faint()),
            ],
        );
    } else if let Some(notice) = &state.notice {
        let (sign, style) = match notice.is_bad {
            true => ("✖ ", theme.bad()),
            false => ("✓ ", theme.accent()),
        };
        pen.line(line, &[(sign, style), (&notice.text, style)]);
    } else if let Link::Gone { why, .. } = &state.link {
        let text = format!("✖ {why}; trying again. What is shown is old.");
        pen.line(line, &[(&text, theme.bad())]);
    } else if state.width < SMALLEST.0 || state.height < SMALLEST.1 {
        let text = format!(
            "this terminal is smaller than {}×{}",
            SMALLEST.0, SMALLEST.1
        );
        pen.line(line, &[(&text, theme.faint())]);
    } else if !filter.is_empty() {
        let text = format!("{} rows with /{filter}", state.visible().len());
        pen.line(line, &[(&text, theme.title())]);
    }
}

/// Before the first snapshot.
pub(super) fn nothing_yet(pen: &mut Pen<'_>, state: &State) {
    let body = layout::body(state);
    let faint = pen.theme.faint();
    let text = match &state.link {
        Link::Connecting => "asking the node how it stands …",
        Link::Up => "the node answers; its first snapshot is on its way …",
        Link::Gone { .. } => {
            "no node answers; start it with `souk node run`. This goes on by itself then."
        }
    };
    pen.line(row(body, 1), &[(text, faint)]);
}

/// What lies above a page.
pub(super) fn overlays(pen: &mut Pen<'_>, state: &State) {
    if let Some(deed) = &state.dialog {
        let lines = wrapped(deed.consequence(), 60);
        let mut lines: Vec<_> = lines.into_iter().map(|line| (line, false)).collect();
        lines.insert(0, (String::new(), false));
        lines.insert(0, (deed.question(), true));
        lines.push((String::new(), false));
        lines.push(("y  yes        n  no".to_owned(), true));
        window(pen, &lines);
    } else if state.has_help {
        window(pen, &help(state.page));
    }
}

fn help(page: Page) -> Vec<(String, bool)> {
    let mut lines = vec![(format!("Keys on {}", page.title()), true)];
    let line = |(key, what): &(&str, &str)| (format!("{key:<12} {what}"), false);
    lines.extend(page.keys().iter().map(line));
    lines.push((String::new(), false));
    lines.push(("Everywhere".to_owned(), true));
    let everywhere = [
        ("1 … 8", "a page"),
        ("Tab ← →", "the next page, the one before"),
        ("↑ ↓ j k", "a row; PgUp, PgDn, Home, End: more of them"),
        ("/", "show only rows with these words; Esc shows all"),
        ("mouse", "a tab, a row, the wheel"),
        ("q Ctrl-C", "quit; the node goes on"),
    ];
    lines.extend(everywhere.iter().map(line));
    lines.push((String::new(), false));
    lines.push((
        "What changes something asks first. Any key closes this.".to_owned(),
        false,
    ));
    lines
}

/// A box in the middle.
fn window(pen: &mut Pen<'_>, lines: &[(String, bool)]) {
    let screen = pen.screen();
    let theme = pen.theme;
    let inner = lines
        .iter()
        .map(|(text, _)| wide(text))
        .max()
        .unwrap_or_default();
    let width = u16::try_from(inner + 4)
        .unwrap_or(u16::MAX)
        .min(screen.width);
    let height = u16::try_from(lines.len() + 2)
        .unwrap_or(u16::MAX)
        .min(screen.height);
    let area = Rect::new(
        (screen.width - width) / 2,
        (screen.height - height) / 2,
        width,
        height,
    );
    if width < 4 || height < 2 {
        return;
    }
    pen.clear(area);
    let bar = "─".repeat(usize::from(width - 2));
    let (top, bottom) = (format!("┌{bar}┐"), format!("└{bar}┘"));
    pen.line(row(area, 0), &[(&top, theme.text())]);
    pen.line(row(area, height - 1), &[(&bottom, theme.text())]);
    for at in 1..height - 1 {
        let line = row(area, at);
        pen.write(line.x, line.y, 1, "│", theme.text());
        pen.write(line.right() - 1, line.y, 1, "│", theme.text());
        let Some((text, is_title)) = lines.get(usize::from(at - 1)) else {
            continue;
        };
        let style = if *is_title {
            theme.title()
        } else {
            theme.text()
        };
        pen.write(line.x + 2, line.y, width - 4, text, style);
    }
}
