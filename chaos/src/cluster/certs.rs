//! The certificates of a cluster: made, made anew, replaced with their CA, and ending, under its feet.
//!
//! Made by the product's own command, as an operator makes them. Nodes read their files again when they change, so a
//! file is always replaced as a whole.

use super::clock::FakeClock;
use super::handshake::Hand;
use crate::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Days a certificate is good for.
const DAYS: &str = "1";
const DAY: Duration = Duration::from_hours(24);

/// All certificates of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Certs {
    engram: PathBuf,
    folder: PathBuf,
    /// Which CA signs, from 0.
    ca: u32,
}

impl Certs {
    /// Makes a CA that all nodes trust.
    ///
    /// # Errors
    /// The disk, or the command.
    pub(super) fn make(engram: &Path, folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)?;
        let certs = Self { engram: engram.to_owned(), folder: folder.to_owned(), ca: 0 };
        certs.init()?;
        certs.trust(&[0])?;
        Ok(certs)
    }

    /// What a node is told.
    pub(super) fn options(&self, node: usize) -> Vec<String> {
        let path = |name: String| self.folder.join(name).display().to_string();
        let pairs = [
            ("cert", path(format!("node-{node}.pem"))),
            ("key", path(format!("node-{node}.key"))),
            ("ca", path("ca.pem".to_owned())),
        ];
        pairs.into_iter().flat_map(|(name, value)| [format!("--cluster-tls-{name}"), value]).collect()
    }

    /// What a node shows of itself, and whom it trusts.
    pub(super) fn hand(&self, node: usize) -> Hand {
        let path = |name: String| self.folder.join(name);
        Hand {
            ca: path("ca.pem".into()),
            cert: path(format!("node-{node}.pem")),
            key: path(format!("node-{node}.key")),
        }
    }

    fn authority(&self, number: u32) -> PathBuf {
        self.folder.join(format!("ca-{number}"))
    }

    fn init(&self) -> Result<(), Error> {
        self.run(&["init-ca".into(), "--dir".into(), self.authority(self.ca).into()], Vec::new())
    }

    /// All nodes trust these CAs, and no others.
    fn trust(&self, authorities: &[u32]) -> Result<(), Error> {
        let mut text = Vec::new();
        for number in authorities {
            text.extend(std::fs::read(self.authority(*number).join("ca.pem"))?);
        }
        self.put("ca.pem", &text)
    }

    /// Another CA: trusted besides the one before from now on. Certificates it signed come with [`Self::issue`].
    ///
    /// # Errors
    /// The disk, or the command.
    pub(crate) fn next_authority(&mut self) -> Result<(), Error> {
        self.ca += 1;
        self.init()?;
        self.trust(&[self.ca - 1, self.ca])
    }

    /// The CA before this one is trusted no more.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn forget_the_last(&self) -> Result<(), Error> {
        self.trust(&[self.ca])
    }

    /// A new certificate for a node, which ends in a day, or in a while.
    ///
    /// # Errors
    /// The disk, or the command.
    pub(crate) fn issue(&self, node: usize, ends_in: Option<Duration>) -> Result<(), Error> {
        let (from, name) = (self.authority(self.ca), format!("node-{node}"));
        for ending in ["pem", "key"] {
            // The command replaces nothing.
            let old = from.join(format!("{name}.{ending}"));
            if old.exists() {
                std::fs::remove_file(old)?;
            }
        }
        let env = match ends_in {
            None => Vec::new(),
            // Issued by a clock that is nearly a day behind.
            Some(left) => {
                let clock = FakeClock::make(&from)?;
                let behind = DAY.saturating_sub(left).as_millis();
                clock.set(-i64::try_from(behind).unwrap_or(0))?;
                clock.env()
            }
        };
        let args = ["issue", name.as_str(), "--days", DAYS, "--dir"].map(OsString::from);
        self.run(&[args.to_vec(), vec![from.clone().into()]].concat(), env)?;
        // A key without its certificate is not taken by the node; the two agree again a moment later.
        for ending in ["key", "pem"] {
            let file = format!("{name}.{ending}");
            self.put(&file, &std::fs::read(from.join(&file))?)?;
        }
        Ok(())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let new = self.folder.join("new");
        std::fs::write(&new, bytes)?;
        Ok(std::fs::rename(new, self.folder.join(name))?)
    }

    fn run(&self, args: &[OsString], env: Vec<(&'static str, OsString)>) -> Result<(), Error> {
        let failed = |reason: String| Error::Process { path: self.engram.clone(), reason };
        let mut command = Command::new(&self.engram);
        let done = command.arg("tls").args(args).envs(env).output().map_err(|e| failed(e.to_string()))?;
        if done.status.success() {
            return Ok(());
        }
        Err(failed(format!("tls {args:?}: {}", String::from_utf8_lossy(&done.stderr).trim())))
    }
}
