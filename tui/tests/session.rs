//! What keys, the mouse and the node do to a session; and that no order of events at any size ends it.

mod support;

use proptest::prelude::*;
use souk_tui::{Action, Deed, Event, Key, MAX_HAPPENINGS, Mouse, Row, State, Theme, read};
use support::{NOW_MS, busy, cells, empty, failing, happenings, session, text};

fn press(state: &mut State, keys: &str) -> Option<Action> {
    let mut last = None;
    for key in keys.chars() {
        last = state.handle(Event::Key(Key::Char(key)));
    }
    last
}

/// What `e` asks for on a lease, at the time of the session.
fn end(lease: &souk_control::v1::Lease) -> Deed {
    Deed::EndLease {
        lease: lease.lease.clone(),
        backend: lease.backend.clone(),
        age_s: NOW_MS / 1000 - lease.accepted_unix_s,
        left_s: lease.valid_to_unix_s - NOW_MS / 1000,
    }
}

#[test]
fn nothing_is_done_before_the_question_was_answered_with_yes() {
    let snapshot = failing();
    let orphan = snapshot.orphans[0].clone();
    let lease = snapshot.leases[1].clone();
    let backend = || "sandbox".to_owned();
    for (keys, deed) in [
        ("1d", Deed::Drain),
        ("1u", Deed::Resume),
        ("1c", Deed::RefreshCard),
        ("5c", Deed::RefreshCard),
        ("2p", Deed::Unpause { backend: backend() }),
        (
            "2jx",
            Deed::Reap {
                backend: backend(),
                lease: orphan.lease,
            },
        ),
        ("3je", end(&lease)),
    ] {
        let mut state = session(80, 24, snapshot.clone());
        assert_eq!(press(&mut state, keys), None, "{keys}");
        assert!(text(&state, 80, 24).contains(&deed.question()), "{keys}");
        // Neither a slip nor a click answers it.
        assert_eq!(press(&mut state, "d1x7"), None);
        for y in 0..24 {
            let (what, x) = (Mouse::Click, 40);
            assert_eq!(state.handle(Event::Mouse { what, x, y }), None);
        }
        let mut refused = state.clone();
        assert_eq!(press(&mut refused, "n"), None);
        assert_eq!(press(&mut refused, "y"), None, "it was taken back");
        assert_eq!(press(&mut state, "y"), Some(Action::Do(deed)), "{keys}");
        assert_eq!(press(&mut state, "y"), None, "it is done once");
    }
}

#[test]
fn a_question_does_not_outlive_the_node_it_was_about_and_none_is_put_to_a_node_that_is_gone() {
    let mut state = session(80, 24, busy(3));
    press(&mut state, "1d");
    state.handle(Event::Gone("it stopped".to_owned()));
    state.handle(Event::Connected);
    assert_eq!(press(&mut state, "y"), None);
    state.handle(Event::Gone("it stopped".to_owned()));
    assert_eq!(press(&mut state, "1dy"), None);
    assert!(text(&state, 80, 24).contains("nothing can be done now"));
}

#[test]
fn what_became_of_an_action_is_said_for_a_while() {
    let mut state = session(80, 24, busy(3));
    let done = |refused: Option<&str>| Event::Done {
        deed: Deed::Drain,
        refused: refused.map(str::to_owned),
    };
    state.handle(done(None));
    assert!(text(&state, 80, 24).contains("✓ the node takes no new leases"));
    state.handle(done(Some("it drains already")));
    assert!(text(&state, 80, 24).contains("✖ it drains already"));
    state.handle(Event::Tick(NOW_MS + 60_000));
    assert!(!text(&state, 80, 24).contains("drains already"));
}

#[test]
fn a_filter_shows_the_rows_with_all_its_words_until_it_is_cleared() {
    let mut state = session(120, 40, busy(200));
    press(&mut state, "3/DRAINING sand");
    let drains = state.visible().len();
    assert_eq!(drains, 40, "a fifth of them drains");
    // Letters are written, not obeyed.
    assert!(text(&state, 120, 40).contains("/DRAINING sand"));
    state.handle(Event::Key(Key::Enter));
    assert_eq!(state.visible().len(), drains);
    press(&mut state, "/nothing");
    assert!(text(&state, 120, 40).contains("nothing matches the filter"));
    state.handle(Event::Key(Key::Esc));
    assert_eq!(state.visible().len(), 200);
    // Each page has its own.
    press(&mut state, "/quic");
    state.handle(Event::Key(Key::Enter));
    press(&mut state, "6");
    assert_eq!(state.visible().len(), 18);
}

#[test]
fn the_selected_row_is_always_on_the_screen() {
    let mut state = session(80, 24, busy(300));
    press(&mut state, "3");
    let mut seen = Vec::new();
    for key in [
        Key::End,
        Key::PageUp,
        Key::Down,
        Key::Home,
        Key::PageDown,
        Key::Up,
        Key::End,
    ] {
        state.handle(Event::Key(key));
        let buffer = cells(&state, 80, 24, Theme::plain());
        let reversed = (2..22).filter(|y| {
            let cell = &buffer[(0, *y)];
            cell.modifier.contains(ratatui::style::Modifier::REVERSED)
        });
        seen.push(reversed.count());
    }
    assert_eq!(seen, [1; 7]);
    // The leases that are left are fewer.
    state.handle(Event::Snapshot(Box::new(busy(2))));
    assert_eq!(state.visible(), [Row::Lease(0), Row::Lease(1)]);
    assert!(text(&state, 80, 24).contains(&busy(2).leases[0].lease[..12]));
}

#[test]
fn the_mouse_chooses_pages_and_rows_and_scrolls() {
    let mut state = session(80, 24, busy(300));
    let mut mouse = |what, x, y| {
        assert_eq!(state.handle(Event::Mouse { what, x, y }), None);
        text(&state, 80, 24)
    };
    assert!(mouse(Mouse::Click, 25, 1).contains("LEASE "), "its tab");
    mouse(Mouse::Click, 5, 4 + 6);
    mouse(Mouse::ScrollDown, 5, 5);
    let asked = press(&mut state, "ey");
    assert_eq!(asked, Some(Action::Do(end(&busy(300).leases[7]))));
}

#[test]
fn what_is_marked_stays_marked_wherever_it_stands() {
    let mut snapshot = failing();
    let lease = snapshot.leases[2].clone();
    let orphan = snapshot.orphans[1].clone();
    let mut other = snapshot.backends[0].clone();
    other.state.as_mut().expect("there").backend = "another".to_owned();

    let mut leases = session(80, 24, snapshot.clone());
    press(&mut leases, "3jj");
    let mut filtered = session(80, 24, snapshot.clone());
    press(&mut filtered, "3jj/sand");
    filtered.handle(Event::Key(Key::Enter));
    let mut orphans = session(80, 24, snapshot.clone());
    press(&mut orphans, "2jj");
    let mut backends = session(80, 24, snapshot.clone());
    press(&mut backends, "2");
    // Older ones close and another comes first.
    snapshot.leases.remove(0);
    snapshot.orphans.remove(0);
    snapshot.backends.insert(0, other);
    for state in [&mut leases, &mut filtered, &mut orphans, &mut backends] {
        state.handle(Event::Snapshot(Box::new(snapshot.clone())));
    }
    let ended = Some(Action::Do(end(&lease)));
    assert_eq!(press(&mut leases, "ey"), ended);
    assert_eq!(press(&mut filtered, "ey"), ended);
    let removed = Deed::Reap {
        backend: orphan.backend,
        lease: orphan.lease,
    };
    assert_eq!(press(&mut orphans, "xy"), Some(Action::Do(removed)));
    let backend = "sandbox".to_owned();
    let goes_on = Deed::Unpause { backend };
    assert_eq!(press(&mut backends, "py"), Some(Action::Do(goes_on)));
}

#[test]
fn where_what_was_marked_is_gone_nothing_is_asked_until_a_row_is_chosen() {
    let mut snapshot = busy(3);
    let mut state = session(80, 24, snapshot.clone());
    press(&mut state, "3j");
    snapshot.leases.remove(1);
    state.handle(Event::Snapshot(Box::new(snapshot.clone())));
    assert_eq!(press(&mut state, "ey"), None);
    let shown = text(&state, 80, 24);
    assert!(shown.contains("✖ what was marked is gone"), "{shown}");
    // The next that is chosen is the one at its place.
    let ended = Some(Action::Do(end(&snapshot.leases[1])));
    assert_eq!(press(&mut state, "jey"), ended);
}

#[test]
fn a_filter_that_hides_what_is_marked_marks_what_it_shows() {
    let mut state = session(80, 24, busy(5));
    let lease = busy(5).leases[3].clone();
    press(&mut state, "3/");
    press(&mut state, &lease.lease);
    state.handle(Event::Key(Key::Enter));
    assert_eq!(state.visible(), [Row::Lease(3)]);
    assert_eq!(press(&mut state, "ey"), Some(Action::Do(end(&lease))));
    // And it stays marked among all of them.
    state.handle(Event::Key(Key::Esc));
    assert_eq!(press(&mut state, "ey"), Some(Action::Do(end(&lease))));
}

#[test]
fn who_is_to_end_a_lease_is_told_where_it_runs_how_old_it_is_and_when_it_ends() {
    let mut state = session(80, 24, busy(3));
    press(&mut state, "3je");
    let asked = format!(
        "End the lease {} at sandbox, 1m14s old, 2m00s left?",
        &busy(3).leases[1].lease[..12]
    );
    assert!(text(&state, 80, 24).contains(&asked), "{asked}");
}

#[test]
fn the_overview_scrolls_to_its_last_line_and_no_further() {
    let mut state = session(80, 24, busy(3));
    let first = text(&state, 80, 24);
    assert!(first.contains("version") && first.contains("↓ 3 more lines"));
    assert!(!first.contains("packets/s"));
    // As far as there are lines, and back at once.
    press(&mut state, "jjjjjjjj");
    let last = text(&state, 80, 24);
    assert!(last.contains("packets/s") && !last.contains("more lines"));
    press(&mut state, "k");
    assert!(text(&state, 80, 24).contains("↓ 2 more lines"));
    state.handle(Event::Key(Key::Home));
    assert_eq!(text(&state, 80, 24), first);
    state.handle(Event::Key(Key::End));
    assert_eq!(text(&state, 80, 24), last);
    // Where there is room for all of it, it begins at its beginning.
    let (width, height) = (80, 40);
    state.handle(Event::Resize { width, height });
    let all = text(&state, width, height);
    assert!(all.contains("version") && all.contains("packets/s"));
}

#[test]
fn the_overview_shows_the_first_reasons_and_how_many_more_there_are() {
    let mut snapshot = busy(3);
    let warnings = (1..=9).map(|n| format!("warning {n} of nine"));
    snapshot.status.as_mut().expect("there").warnings = warnings.collect();
    for (width, height) in [(80, 60), (200, 60)] {
        let shown = text(&session(width, height, snapshot.clone()), width, height);
        assert!(shown.contains("warning 5 of nine"), "{shown}");
        assert!(!shown.contains("warning 6 of nine"), "{shown}");
        // With what was refused.
        assert!(shown.contains("+5 more"), "{shown}");
    }
}

#[test]
fn a_terminal_of_another_size_than_the_session_shows_of_it_what_fits() {
    let mut state = session(100, 30, busy(60));
    press(&mut state, "3");
    let lines = |width, height| -> Vec<String> {
        let text = text(&state, width, height);
        text.lines().map(str::to_owned).collect()
    };
    let (same, larger, smaller) = (lines(100, 30), lines(140, 40), lines(80, 20));
    assert_eq!(larger[..30], same);
    assert!(larger[30..].iter().all(String::is_empty));
    // The page is cut below, and the keys are where they are looked for.
    for (cut, whole) in smaller[2..18].iter().zip(&same[2..18]) {
        let first: String = whole.chars().take(80).collect();
        assert_eq!(cut, first.trim_end());
    }
    assert_eq!(smaller[18], "");
    assert!(smaller[19].starts_with("e end lease"), "{}", smaller[19]);
}

#[test]
fn a_node_that_says_nothing_is_said_to_be_silent() {
    let mut state = session(80, 24, busy(1));
    state.handle(Event::Tick(NOW_MS + 4_000));
    assert!(text(&state, 80, 24).contains("● open"));
    state.handle(Event::Tick(NOW_MS + 30_000));
    assert!(text(&state, 80, 24).contains("! silent for 30s"));
    state.handle(Event::Snapshot(Box::new(busy(1))));
    assert!(text(&state, 80, 24).contains("● open"));
}

#[test]
fn a_session_keeps_no_more_than_it_may_however_long_it_lasts() {
    let mut state = session(80, 24, empty());
    for n in 0..2_000 {
        let mut late = happenings();
        late.missed = 1;
        state.handle(Event::Happenings(late));
        state.handle(Event::Tick(NOW_MS + n));
        state.handle(Event::Snapshot(Box::new(empty())));
    }
    press(&mut state, "8");
    assert_eq!(state.visible().len(), MAX_HAPPENINGS);
    assert!(text(&state, 80, 24).contains("2 000 more were missed"));
}

#[test]
fn a_recording_shows_again_what_was_shown() {
    let events = [
        Event::Tick(NOW_MS),
        Event::Connected,
        Event::Snapshot(Box::new(busy(40))),
        Event::Happenings(happenings()),
        Event::Key(Key::Char('3')),
        Event::Key(Key::PageDown),
        Event::Snapshot(Box::new(failing())),
        Event::Key(Key::Char('8')),
    ];
    let mut recording = String::from("{\"souk_top_recording\":1}\n");
    let mut live = State::new(120, 40);
    for event in &events {
        let event_json = serde_json::to_string(event).expect("JSON");
        recording.push_str(&format!("{{\"ms\":1,\"event\":{event_json}}}\n"));
        live.handle(event.clone());
    }
    let mut again = State::new(120, 40);
    for line in read(recording.as_bytes()).expect("a recording") {
        again.handle(line.expect("an event").1);
    }
    assert_eq!(text(&live, 120, 40), text(&again, 120, 40));
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => "[ -~é漢]".prop_map(|c| Key::Char(c.chars().next().expect("one"))),
        2 => prop::sample::select(vec!['1', '2', '3', '4', '5', '6', '7', '8', '/', '?', 'y', 'd', 'e', 'x', 'p'])
            .prop_map(Key::Char),
        4 => prop::sample::select(vec![
            Key::Enter, Key::Esc, Key::Backspace, Key::Tab, Key::BackTab, Key::Up, Key::Down, Key::Left,
            Key::Right, Key::PageUp, Key::PageDown, Key::Home, Key::End,
        ]),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let mouse = prop::sample::select(vec![Mouse::Click, Mouse::ScrollUp, Mouse::ScrollDown]);
    let snapshot = prop_oneof![
        Just(empty()),
        (0u32..60).prop_map(busy),
        Just(failing()),
        Just(souk_control::v1::Snapshot::default()),
    ];
    prop_oneof![
        8 => key().prop_map(Event::Key),
        2 => (mouse, 0u16..300, 0u16..100).prop_map(|(what, x, y)| Event::Mouse { what, x, y }),
        2 => (0u16..260, 0u16..80).prop_map(|(width, height)| Event::Resize { width, height }),
        // A recording may say any.
        1 => any::<(u16, u16)>().prop_map(|(width, height)| Event::Resize { width, height }),
        1 => any::<u64>().prop_map(Event::Tick),
        1 => Just(Event::Connected),
        1 => "\\PC*".prop_map(Event::Gone),
        3 => snapshot.prop_map(|snapshot| Event::Snapshot(Box::new(snapshot))),
        1 => any::<u64>().prop_map(|missed| {
            let mut late = happenings();
            late.missed = missed;
            Event::Happenings(late)
        }),
        1 => "\\PC*".prop_map(|why| Event::Done { deed: Deed::Drain, refused: Some(why) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_order_of_events_panics_at_any_size(
        events in prop::collection::vec(event(), 0..40),
        width in 0u16..220,
        height in 0u16..70,
        // The terminal may be of another size than the last event said.
        real in (1u16..220, 1u16..70),
    ) {
        let mut state = State::new(width, height);
        for event in events {
            if let Some(Action::Do(_)) = state.handle(event.clone()) {
                let yes = matches!(event, Event::Key(Key::Char('y' | 'Y')));
                prop_assert!(yes, "{event:?}: only yes does something");
            }
            cells(&state, real.0, real.1, Theme::colourful());
            for row in state.visible() {
                prop_assert!(!matches!(row, Row::Happening(at) if *at >= MAX_HAPPENINGS));
            }
        }
    }
}
