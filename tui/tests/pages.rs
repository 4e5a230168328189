//! What every page shows, of every kind of node, at three sizes of terminal.

mod support;

use souk_tui::{Event, Key, Page, State, Theme};
use support::{busy, cells, empty, failing, happenings, session, text};

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (200, 60)];

/// All pages of a session, one below the other.
fn pages(mut state: State, width: u16, height: u16) -> String {
    let mut all = String::new();
    for page in Page::ALL {
        let key = char::from(b'1' + u8::try_from(page.number()).expect("one digit"));
        state.handle(Event::Key(Key::Char(key)));
        all.push_str(&format!("═══ {}\n", page.title()));
        all.push_str(&text(&state, width, height));
    }
    all
}

fn pinned(name: &str, situation: impl Fn(u16, u16) -> State) {
    for (width, height) in SIZES {
        let shown = pages(situation(width, height), width, height);
        insta::assert_snapshot!(format!("{name}_{width}x{height}"), shown);
    }
}

#[test]
fn a_node_that_has_just_begun() {
    pinned("empty", |width, height| session(width, height, empty()));
}

#[test]
fn a_busy_provider() {
    pinned("busy", |width, height| {
        let mut state = session(width, height, busy(120));
        state.handle(Event::Happenings(happenings()));
        state
    });
}

#[test]
fn a_provider_in_trouble() {
    pinned("failing", |width, height| {
        let mut state = session(width, height, failing());
        state.handle(Event::Happenings(happenings()));
        state
    });
}

#[test]
fn a_node_that_is_gone() {
    pinned("disconnected", |width, height| {
        let mut state = session(width, height, busy(2));
        state.handle(Event::Gone("the node broke off".to_owned()));
        state.handle(Event::Tick(support::NOW_MS + 95_000));
        state
    });
}

#[test]
fn a_node_that_was_never_there() {
    let mut state = State::new(80, 24);
    state.handle(Event::Tick(support::NOW_MS));
    state.handle(Event::Gone(
        "no node is running at /run/souk/control.sock".to_owned(),
    ));
    insta::assert_snapshot!(text(&state, 80, 24));
}

#[test]
fn a_question_says_what_will_happen_and_help_lists_the_keys() {
    let mut state = session(80, 24, failing());
    for key in ['2', 'j', 'x'] {
        state.handle(Event::Key(Key::Char(key)));
    }
    insta::assert_snapshot!("question", text(&state, 80, 24));
    state.handle(Event::Key(Key::Esc));
    state.handle(Event::Key(Key::Char('?')));
    insta::assert_snapshot!("help", text(&state, 80, 24));
}

#[test]
fn what_is_known_against_other_nodes_is_shown_on_the_market_and_nowhere_else() {
    let mut snapshot = busy(3);
    let word = "do not rely on provider 12D3KooWOther".to_owned();
    snapshot.status.as_mut().expect("there").others = vec![word];
    for page in Page::ALL {
        let key = char::from(b'1' + u8::try_from(page.number()).expect("one digit"));
        let [with, without] = [&snapshot, &busy(3)].map(|snapshot| {
            let mut state = session(80, 24, snapshot.clone());
            state.handle(Event::Key(Key::Char(key)));
            text(&state, 80, 24)
        });
        assert!(with.contains("● open"), "{with}");
        if page == Page::Market {
            let told = "! against other nodes: 1 warning;";
            assert!(with.contains(told), "{with}");
        } else {
            assert_eq!(with, without);
        }
    }
}

#[test]
fn without_colours_nothing_is_coloured_and_the_same_is_said() {
    for snapshot in [empty(), busy(9), failing()] {
        for page in Page::ALL {
            let mut state = session(120, 40, snapshot.clone());
            let key = char::from(b'1' + u8::try_from(page.number()).expect("one digit"));
            state.handle(Event::Key(Key::Char(key)));
            let plain = cells(&state, 120, 40, Theme::plain());
            let colourful = cells(&state, 120, 40, Theme::colourful());
            for (one, other) in plain.content.iter().zip(&colourful.content) {
                assert_eq!(one.symbol(), other.symbol());
                assert_eq!(one.fg, ratatui::style::Color::Reset);
                // The background is that of the terminal, whatever it is.
                assert_eq!(
                    (one.bg, other.bg),
                    (ratatui::style::Color::Reset, ratatui::style::Color::Reset)
                );
            }
        }
    }
}

#[test]
fn what_a_stranger_writes_cannot_reach_the_terminal() {
    let mut snapshot = busy(1);
    let evil = "\x1b]0;owned\x07\x1b[2J\u{202e}\n\r\0";
    let market = snapshot.market.as_mut().expect("there");
    market.offers[0].price = evil.to_owned();
    market.offers[0].arch = evil.to_owned();
    snapshot.backends[0].state.as_mut().expect("there").error = evil.to_owned();
    snapshot.status.as_mut().expect("there").warnings = vec![evil.to_owned()];
    for page in Page::ALL {
        let mut state = session(200, 60, snapshot.clone());
        let key = char::from(b'1' + u8::try_from(page.number()).expect("one digit"));
        state.handle(Event::Key(Key::Char(key)));
        let buffer = cells(&state, 200, 60, Theme::colourful());
        for cell in &buffer.content {
            assert!(
                !cell.symbol().contains(char::is_control),
                "{:?}",
                cell.symbol()
            );
            assert!(
                !cell.symbol().contains('\u{202e}'),
                "text that runs backwards"
            );
        }
    }
}
