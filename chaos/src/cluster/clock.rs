//! The clock of one node: what it takes for the time of day, in our hands.
//!
//! The node is told nothing: `libfaketime` stands before the system's clock and reads an offset from a file at every
//! look, so a clock can jump while the node runs. Its monotonic clock is left alone, as a wrong date leaves it alone
//! on a real machine. Where the library is not installed, faults of clocks are skipped.
//!
//! Source: libfaketime, `README` (`FAKETIME_TIMESTAMP_FILE`, `FAKETIME_DONT_FAKE_MONOTONIC`).

use crate::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where distributions put it.
const PLACES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

/// A clock that can be set.
#[derive(Clone, Debug)]
pub(crate) struct FakeClock {
    file: PathBuf,
}

impl FakeClock {
    /// Whether this machine can do it; else why not.
    pub(crate) fn possible() -> Result<(), String> {
        library().map(drop).ok_or_else(|| "there is no libfaketime (Debian: apt-get install libfaketime)".to_owned())
    }

    /// A clock that goes right, kept in `folder`.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn make(folder: &Path) -> Result<Self, Error> {
        let clock = Self { file: folder.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a process must be started with to live by it.
    pub(super) fn env(&self) -> Vec<(&'static str, OsString)> {
        let library = library().unwrap_or_default();
        vec![
            ("LD_PRELOAD", library.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_NO_CACHE", "1".into()),
        ]
    }

    /// Sets it off by so many milliseconds.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn set(&self, offset_ms: i64) -> Result<(), Error> {
        self.write(&offset(offset_ms))
    }

    /// Has it go at so many hundredths of the true speed, from when the node was started on.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn pace(&self, percent: u32) -> Result<(), Error> {
        self.write(&format!("+0 x{}.{:02}", percent / 100, percent % 100))
    }

    fn write(&self, text: &str) -> Result<(), Error> {
        // Never half a text: it is read at every look at the clock.
        let new = self.file.with_extension("new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, &self.file)?)
    }
}

fn offset(offset_ms: i64) -> String {
    let sign = if offset_ms < 0 { '-' } else { '+' };
    let ms = offset_ms.unsigned_abs();
    format!("{sign}{}.{:03}", ms / 1000, ms % 1000)
}

fn library() -> Option<&'static str> {
    PLACES.into_iter().find(|place| Path::new(place).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_said_in_seconds() {
        assert_eq!([offset(0), offset(-200), offset(86_400_001)], ["+0.000", "-0.200", "+86400.001"]);
    }
}
