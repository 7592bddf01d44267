//! The process that keeps the nodes of a local cluster.
//!
//! Each node is a child with a pipe as its standard input, and ends in order when the pipe is closed: by this process
//! when it stops the node, by the system when this process is gone, even by `kill -9`. So no node is ever left behind.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use engram_model::time::Stopwatch;

use super::SOCKET;
use super::ports::{Place, places};
use crate::cli::client::{Ask, Shape, Target, Verb, fetch};
use crate::cli::{complain, say};
use crate::program::STDIN_KEEPS;

/// How often it is looked whether a node has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a node may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// How long the nodes may take to be a cluster before that is said.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Questions that wait to be answered.
const QUESTIONS_MAX: usize = 8;
/// Longest a question may take to come.
const QUESTION_WITHIN: Duration = Duration::from_secs(2);

enum Event {
    /// Ctrl-C, or a signal to end.
    Stop,
    /// Another terminal wants something.
    Question(String, UnixStream),
}

struct Node {
    place: Place,
    child: Option<Child>,
}

struct Cluster {
    dir: PathBuf,
    nodes: Vec<Node>,
    /// How many nodes make the cluster.
    expect: usize,
    options: Vec<String>,
}

/// Starts the cluster in `dir` and keeps it until it is told to stop.
pub(super) fn run(dir: &Path, (nodes, zones, any_ports): (u64, u64, bool), options: &[String]) -> Result<(), String> {
    let places = places(dir, (nodes, zones), any_ports)?;
    let dir = dir.canonicalize().map_err(|e| format!("{}: {e}", dir.display()))?;
    let (tx, events) = sync_channel(QUESTIONS_MAX);
    let _socket = listen(&dir, tx.clone())?;
    on_signal(tx)?;
    let expect = match places.len() {
        1 => 0,
        2 => 2,
        many => many / 2 + 1,
    };
    let nodes = places.into_iter().map(|place| Node { place, child: None }).collect();
    let mut cluster = Cluster { dir, nodes, expect, options: options.to_vec() };
    for i in 0..cluster.nodes.len() {
        cluster.start(i)?;
    }
    let _said = say(&format!("{}\nwaiting until they are one cluster …\n", cluster.status()));
    let done = cluster.keep(&events);
    cluster.stop_all();
    done
}

/// The socket's file goes with it.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Left behind it is replaced by the next one.
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn listen(dir: &Path, tx: SyncSender<Event>) -> Result<Socket, String> {
    let path = dir.join(SOCKET);
    if UnixStream::connect(&path).is_ok() {
        return Err(format!("a cluster runs in {} already: `engram dev down` stops it", dir.display()));
    }
    let say = |e: std::io::Error| format!("{}: {e}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(say(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(say)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let timed = stream.set_read_timeout(Some(QUESTION_WITHIN));
            let read = timed.and_then(|()| BufReader::new(&stream).read_line(&mut line));
            // Nobody listens any more: this process ends.
            if read.is_ok() && tx.send(Event::Question(line.trim().to_owned(), stream)).is_err() {
                return;
            }
        }
    });
    Ok(Socket(path))
}

fn on_signal(tx: SyncSender<Event>) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("signals cannot be heard: {e}"))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if tx.send(Event::Stop).is_err() {
                    return;
                }
            }
        });
    });
    Ok(())
}

impl Cluster {
    fn start(&mut self, i: usize) -> Result<(), String> {
        let (number, place) = (i + 1, &self.nodes[i].place);
        let path = self.dir.join(format!("node-{number}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
        let program = std::env::current_exe().map_err(|e| format!("this program's file: {e}"))?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--data-dir")
            .arg(self.dir.join(format!("node-{number}")))
            .args(["--http-listen", &place.http, "--grpc-listen", &place.grpc, "--zone", &place.zone])
            .env(STDIN_KEEPS, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is this process's affair: the nodes stop when it closes their pipes.
            .process_group(0);
        if self.nodes.len() > 1 {
            let seeds: Vec<&str> = self.nodes.iter().map(|node| node.place.grpc.as_str()).collect();
            command.args(["--join", &seeds.join(","), "--bootstrap-expect", &self.expect.to_string()]);
            command.arg("--object-store-url").arg(self.dir.join("blocks"));
        }
        let child = command.args(&self.options).spawn().map_err(|e| format!("node {number} does not start: {e}"))?;
        self.nodes[i].child = Some(child);
        Ok(())
    }

    /// Serves signals and questions until one of them ends it.
    fn keep(&mut self, events: &Receiver<Event>) -> Result<(), String> {
        let (began, mut is_ready) = (Stopwatch::start(), false);
        loop {
            match events.recv_timeout(LOOK_EVERY) {
                Ok(Event::Stop) => return Ok(()),
                Ok(Event::Question(line, stream)) => {
                    if line == "down" {
                        self.stop_all();
                        tell(&stream, "stopped\n");
                        return Ok(());
                    }
                    let answer = self.answer(&line).unwrap_or_else(|why| format!("error: {why}\n"));
                    tell(&stream, &answer);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err("signals are not heard".to_owned()),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.look();
            if !is_ready && self.is_healthy() {
                is_ready = true;
                let _said = say(&self.welcome());
            } else if !is_ready && began.elapsed() > READY_WITHIN {
                is_ready = true;
                complain(&format!("they are not one cluster yet: look into {}/node-*.log", self.dir.display()));
            }
        }
    }

    /// Notes the nodes that have ended by themselves.
    fn look(&mut self) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            let ended = node.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                node.child = None;
                complain(&format!(
                    "node {} has ended with {status}: see {}/node-{}.log",
                    i + 1,
                    self.dir.display(),
                    i + 1
                ));
            }
        }
    }

    fn is_healthy(&self) -> bool {
        let Some(node) = self.nodes.first() else { return false };
        let target = Target { url: node.place.http.clone(), tenant: None, json: true };
        let ask = Ask::of(&target, "/api/v1/cluster/overview", Verb::Get, Shape::Overview);
        let answer = fetch(&ask).ok().and_then(|(_, body)| serde_json::from_str::<serde_json::Value>(&body).ok());
        answer.is_some_and(|answer| {
            let nodes = answer["data"]["nodes"].as_array().map_or(0, Vec::len);
            answer["data"]["healthy"] == true && nodes >= self.nodes.len()
        })
    }

    fn welcome(&self) -> String {
        let dir = self.dir.display();
        let url = self.nodes.first().map_or("", |node| node.place.http.as_str());
        format!(
            "ready: every node takes writes and answers queries, Ctrl-C stops all of them.\n\
             In another terminal:\n  \
             engram cluster watch --url {url}\n  \
             engram dev kill 2 --dir {dir}      then: engram dev start 2 --dir {dir}\n"
        )
    }

    fn answer(&mut self, line: &str) -> Result<String, String> {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        if word == "status" {
            self.look();
            return Ok(self.status());
        }
        let count = self.nodes.len();
        let by_number = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)).filter(|i| *i < count);
        let i = by_number.or_else(|| self.nodes.iter().position(|node| node.place.http == number));
        let i = i.ok_or_else(|| format!("there is no node {number:?}, only 1 to {count}"))?;
        match (word, self.nodes[i].child.is_some()) {
            ("start", false) => self.start(i).map(|()| format!("node {} is started\n", i + 1)),
            ("start", true) => Err(format!("node {} runs", i + 1)),
            ("restart", runs) => {
                if runs {
                    self.stop(&[i]);
                }
                self.start(i).map(|()| format!("node {} is started again\n", i + 1))
            }
            ("kill" | "stop", false) => Err(format!("node {} does not run", i + 1)),
            ("kill", true) => {
                if let Some(mut child) = self.nodes[i].child.take() {
                    child.kill().and_then(|()| child.wait()).map_err(|e| format!("node {}: {e}", i + 1))?;
                }
                Ok(format!("node {} is killed\n", i + 1))
            }
            ("stop", true) => {
                self.stop(&[i]);
                Ok(format!("node {} is stopped\n", i + 1))
            }
            _ => Err(format!("{word:?} is not understood")),
        }
    }

    /// Stops nodes in order, all at once.
    fn stop(&mut self, which: &[usize]) {
        for i in which {
            if let Some(child) = &mut self.nodes[*i].child {
                drop(child.stdin.take());
            }
        }
        let began = Stopwatch::start();
        for i in which {
            let Some(mut child) = self.nodes[*i].child.take() else { continue };
            while let Ok(None) = child.try_wait() {
                if began.elapsed() > STOP_WITHIN {
                    complain(&format!("node {} does not stop, it is killed", i + 1));
                    // What was acknowledged is on disk.
                    let _killed = child.kill();
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    fn stop_all(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).filter(|i| self.nodes[*i].child.is_some()).collect();
        if !all.is_empty() {
            let _said = say("stopping the nodes …\n");
        }
        self.stop(&all);
    }

    fn status(&self) -> String {
        let mut rows = vec![["NODE", "ZONE", "RUNS", "HTTP", "GRPC"].map(str::to_owned).to_vec()];
        for (i, node) in self.nodes.iter().enumerate() {
            let runs = node.child.as_ref().map_or("no".to_owned(), |child| format!("process {}", child.id()));
            let Place { zone, http, grpc } = node.place.clone();
            rows.push(vec![(i + 1).to_string(), zone, runs, format!("http://{http}"), grpc]);
        }
        format!("{}data and logs: {}\n", crate::cli::show::table(&rows), self.dir.display())
    }
}

fn tell(mut stream: &UnixStream, text: &str) {
    // Who has gone does not wait for an answer.
    let _told = stream.write_all(text.as_bytes());
}
