//! One node as a process: it starts, is killed, stopped, paused, and never outlives us.
//!
//! A node runs in a process group of its own, so that Ctrl-C reaches it by our hand only, and is told by the kernel to
//! end when we end, however that comes: it is started through `engram-chaos guard`, which asks the kernel for that and
//! then becomes the node.

use super::inject::{tasks, word};
use super::switch::{self, Namespace};
use crate::error::Error;
use engram_model::time::Stopwatch;
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long a stopped process may take until it stands.
const STANDS_WITHIN: Duration = Duration::from_secs(5);

/// Variables of the environment.
pub(crate) type Env = Vec<(&'static str, OsString)>;

/// A running node.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

/// What `guard` does: becomes `command`, which dies with the process that started us, of that id; in another network if one
/// is named.
///
/// # Errors
/// Only when it could not; otherwise it does not return.
pub(crate) fn guard(parent: u32, network: Option<&Path>, command: &[OsString]) -> Error {
    if let Err(error) = network.map_or(Ok(()), switch::join) {
        return error;
    }
    let Some((program, args)) = command.split_first() else { return Error::Usage("guard whom?".to_owned()) };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return Error::Io(error.into());
    }
    // Who ended before this was asked for is told to nobody.
    let parent_now = rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    if parent_now != Some(parent) {
        return Error::Usage(format!("process {parent}, whom this was started by, is gone"));
    }
    let error = Command::new(program).args(args).exec();
    Error::Usage(format!("{}: {error}", program.display()))
}

/// The beginning of a command that dies with us, in a network of its own if there is one: the program and its arguments are
/// to follow.
///
/// # Errors
/// This program does not know where it is.
pub(super) fn guarded(network: Option<&Namespace>) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["guard", "--parent", &std::process::id().to_string()]);
    if let Some(network) = network {
        command.arg("--network").arg(network.path());
    }
    command.arg("--");
    Ok(command)
}

impl Process {
    /// Starts `binary` with `env` besides our own, in a network of its own if there is one; what it prints is added to `log`.
    ///
    /// # Errors
    /// It does not exist, or nothing can be started.
    pub(super) fn start(
        (binary, args): (&Path, &[String]),
        env: Env,
        network: Option<&Namespace>,
        log: &Path,
    ) -> Result<Self, Error> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let child = guarded(network)?
            .arg(binary)
            .args(args)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| Error::Process { path: binary.to_owned(), reason: e.to_string() })?;
        Ok(Self { child })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal; nothing happens to one that has ended and was not waited for.
    pub(super) fn signal(&self, signal: Signal) {
        // The id is ours until it is waited for, so no stranger is hit; one that ended already needs no signal.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _gone = pid.map(|pid| rustix::process::kill_process(pid, signal));
    }

    /// Waits until none of its threads runs, after it was stopped: each stands, or is within a call in the kernel, at whose
    /// end it will stand.
    ///
    /// # Errors
    /// Some still run after [`STANDS_WITHIN`].
    pub(super) async fn stands(&self) -> Result<(), Error> {
        let watch = Stopwatch::start();
        let runs = |status: &str| matches!(word(status, "State:"), Some("R" | "S"));
        // One that has ended runs no more.
        while tasks(self.pid(), runs).is_ok_and(|(running, _)| running > 0) {
            if watch.elapsed() > STANDS_WITHIN {
                return Err(Error::Usage(format!("process {} was stopped and still runs", self.pid())));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// SIGKILL without waiting, so that many can be hit at one moment; then [`Self::gone`].
    pub(super) fn kill(&mut self) {
        // Already ended is as good as killed.
        let _gone = self.child.kill();
    }

    /// Waits until it is gone.
    pub(super) async fn gone(mut self) -> Result<ExitStatus, Error> {
        Ok(tokio::task::spawn_blocking(move || self.child.wait()).await??)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill().and_then(|()| self.child.wait());
    }
}
