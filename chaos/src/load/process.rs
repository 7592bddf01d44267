//! What a process costs: CPU seconds and memory, from `/proc`.
//!
//! Ticks are hundredths of a second on every Linux architecture this runs on (`USER_HZ`); asking `sysconf` would
//! need unsafe code for a number that does not change.

use serde::Serialize;

const TICKS_PER_SECOND: f64 = 100.0;

/// A process at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// User and system time since its start.
    pub(crate) cpu_seconds: f64,
    /// Resident memory.
    pub(crate) rss_bytes: u64,
    /// Bytes it made the kernel write to disk; `None` when that may not be read.
    pub(crate) disk_write_bytes: Option<u64>,
}

/// Reads `/proc/WHO`, where `who` is a process id or `self`; `None` when there is no such process (or no `/proc`).
pub(crate) fn usage(who: &str) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{who}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{who}/status")).ok()?;
    let io = std::fs::read_to_string(format!("/proc/{who}/io")).unwrap_or_default();
    Some(Usage {
        cpu_seconds: cpu_seconds(&stat)?,
        rss_bytes: field(&status, "VmRSS:")? * 1024,
        disk_write_bytes: field(&io, "write_bytes:"),
    })
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the process stands in parentheses and may hold spaces: count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(field("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(field("", "VmRSS:"), None);
    }
}
