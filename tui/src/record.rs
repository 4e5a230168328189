//! A session as a file: one JSON object a line, the first with the version of the form.
//!
//! It holds what the control API says, and so nothing of a requester; keys that were pressed are in it too.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// The version of the form.
const VERSION: u32 = 1;
/// A line is no longer, in bytes: a snapshot with all its rows is much shorter.
const MAX_LINE: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Head {
    souk_top_recording: u32,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Since the beginning.
    ms: u64,
    event: Event,
}

/// Writes a session down.
pub(crate) struct Recorder(BufWriter<File>);

impl Recorder {
    /// Begins a file of mode 0600, which must not exist.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut recorder = Self(BufWriter::new(file));
        recorder.put(&Head {
            souk_top_recording: VERSION,
        })?;
        Ok(recorder)
    }

    pub(crate) fn take(&mut self, ms: u64, event: &Event) -> io::Result<()> {
        let event = event.clone();
        self.put(&Line { ms, event })
    }

    /// What was taken is in the file on return.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn put(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, line)?;
        self.0.write_all(b"\n")
    }
}

/// Why a recording was not read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("the recording cannot be read")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("this is no recording of souk top")]
    NoRecording,
    /// It is of another version.
    #[error("this recording has the form {theirs}; this program reads {VERSION}")]
    OtherVersion {
        /// Its version.
        theirs: u32,
    },
    /// A line is no event.
    #[error("line {line} of the recording is no event")]
    Line {
        /// From one.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a recording: each event with the milliseconds since the beginning.
///
/// # Errors
/// [`ReadError`], at once where the file is no recording, and later at the first line that is no event.
pub fn read(
    mut from: impl BufRead,
) -> Result<impl Iterator<Item = Result<(u64, Event), ReadError>>, ReadError> {
    let head = line(&mut from)?.ok_or(ReadError::NoRecording)?;
    let head: Head = serde_json::from_str(&head).map_err(|_| ReadError::NoRecording)?;
    if head.souk_top_recording != VERSION {
        return Err(ReadError::OtherVersion {
            theirs: head.souk_top_recording,
        });
    }
    let mut number = 1;
    Ok(std::iter::from_fn(move || {
        number += 1;
        let text = match line(&mut from) {
            Ok(text) => text?,
            Err(error) => return Some(Err(error.into())),
        };
        let read = serde_json::from_str(&text);
        let read = read.map_err(|source| ReadError::Line {
            line: number,
            source,
        });
        Some(read.map(|Line { ms, event }| (ms, event)))
    }))
}

/// The next line; none at the end, and none of one that was cut off as it was written.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    io::Read::take(from, MAX_LINE).read_line(&mut text)?;
    Ok(text.strip_suffix('\n').map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Seek as _, SeekFrom};

    use super::*;
    use crate::event::Key;

    #[test]
    fn what_was_written_is_read_again_and_a_line_that_was_cut_off_is_left_out() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("session");
        let mut recorder = Recorder::create(&path).expect("creates");
        let events = [
            Event::Tick(5),
            Event::Connected,
            Event::Snapshot(Box::default()),
            Event::Key(Key::Char('é')),
            Event::Gone("no".to_owned()),
        ];
        for (ms, event) in (0..).zip(&events) {
            recorder.take(ms, event).expect("writes");
        }
        recorder.flush().expect("writes");
        assert!(Recorder::create(&path).is_err(), "nothing is written over");
        let mut file = File::open(&path).expect("there");
        let all = |file: &File| {
            let read = read(BufReader::new(file)).expect("a recording");
            read.collect::<Result<Vec<_>, _>>().expect("events")
        };
        let expected: Vec<_> = (0..).zip(events).collect();
        assert_eq!(all(&file), expected);

        let length = file.metadata().expect("there").len();
        let cut = OpenOptions::new().write(true).open(&path).expect("opens");
        cut.set_len(length - 3).expect("cuts");
        file.seek(SeekFrom::Start(0)).expect("seeks");
        assert_eq!(all(&file), expected[..4]);
    }

    #[test]
    fn what_is_no_recording_is_said_to_be_none() {
        for text in ["", "hello\n", "{}\n", "{\"souk_top_recording\":1}"] {
            assert!(matches!(
                read(text.as_bytes()).map(drop),
                Err(ReadError::NoRecording)
            ));
        }
        assert!(matches!(
            read(&b"{\"souk_top_recording\":9}\n"[..]).map(drop),
            Err(ReadError::OtherVersion { theirs: 9 })
        ));
        let bad = b"{\"souk_top_recording\":1}\n{\"ms\":1,\"event\":\"Connected\"}\n{\"ms\":2}\n";
        let read: Vec<_> = read(&bad[..]).expect("a recording").collect();
        assert!(matches!(
            read[..],
            [Ok(_), Err(ReadError::Line { line: 3, .. })]
        ));
    }
}
