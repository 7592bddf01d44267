//! `engram verify`: every block of the object store held against the metadata, by a node, told line by line.
//!
//! The exit code is 0 when all is as agreed, 1 when something is not or could not be looked at. What is in the store and
//! in no metadata, or beside a block's own objects, is told and is no failure: nobody reads it.

use std::io::{self, IsTerminal, Write};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::client::{Said, causes, escape};
use super::show::{self, brief, table};
use super::{text, with_node};

/// What is to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// The node.
    pub url: String,
    /// Whose blocks; none: everybody's.
    pub tenant: Option<String>,
    /// Whether all of each block is recomputed.
    pub deep: bool,
    /// Whether the events are printed as they are.
    pub json: bool,
}

/// The grammar.
pub(crate) fn command() -> Command {
    with_node(Command::new("verify").about("Hold every block of the object store against the metadata").after_help(
        "Looks whether each object is there, has its length and its checksum; --deep recomputes every block and its \
                 digest, too. Nothing is changed. The exit code is 1 when something is wrong.",
    ))
    .arg(Arg::new("tenant").long("tenant").value_name("NAME").help("Only this tenant's blocks [default: everybody's]"))
    .arg(Arg::new("deep").long("deep").action(ArgAction::SetTrue).help("Recompute all of each block"))
}

/// What the words ask for.
pub(crate) fn wanted(matches: &ArgMatches, url: String) -> Verify {
    Verify { url, tenant: text(matches, "tenant"), deep: matches.get_flag("deep"), json: matches.get_flag("json") }
}

/// Verifies; answers what to print and whether all is well.
///
/// # Errors
/// A line for the person.
pub fn run(verify: &Verify) -> Result<Said, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start: {error}"))?.block_on(exchange(verify))
}

/// What has come so far.
#[derive(Default)]
struct Seen {
    rows: Vec<Vec<String>>,
    lines: String,
    end: Option<Value>,
    blocks: u64,
}

async fn exchange(verify: &Verify) -> Result<Said, String> {
    // A second installation fails and changes nothing: another part of the program was first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().build().map_err(|error| format!("cannot make a client: {error}"))?;
    let tenant = verify.tenant.as_ref().map_or(String::new(), |tenant| format!("&tenant={}", escape(tenant)));
    let url = format!("{}/api/v1/admin/verify?deep={}{tenant}", verify.url.trim_end_matches('/'), verify.deep);
    let asked = client.post(url).send().await;
    let mut response = asked.map_err(|error| format!("cannot ask {}: {}", verify.url, causes(&error)))?;
    if !response.status().is_success() {
        return Err(show::failure(&response.text().await.unwrap_or_default()));
    }
    let (mut have, mut seen) = (Vec::new(), Seen::default());
    let broke_off = |error: &reqwest::Error| format!("{} broke off: {}", verify.url, causes(error));
    while let Some(bytes) = response.chunk().await.map_err(|error| broke_off(&error))? {
        have.extend_from_slice(&bytes);
        while let Some(at) = have.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = have.drain(..=at).collect();
            seen.take(&line, verify.json)?;
        }
    }
    seen.said(verify.json)
}

impl Seen {
    fn take(&mut self, line: &[u8], json: bool) -> Result<(), String> {
        let event: Value = serde_json::from_slice(line)
            .map_err(|_| format!("this is no answer of a node: {}", show::cut(&String::from_utf8_lossy(line))))?;
        if json {
            self.lines.push_str(&format!("{event}\n"));
        }
        let (tenant, block) = (brief(&event["tenant"]), brief(&event["block"]));
        let mut row = |file: String, fault: &str, what: String| {
            self.rows.push(vec![tenant.clone(), block.clone(), file, fault.to_owned(), what]);
        };
        match event["event"].as_str() {
            Some("block") => {
                for one in event["found"].as_array().into_iter().flatten() {
                    row(brief(&one["file"]), one["fault"].as_str().unwrap_or_default(), brief(&one["what"]));
                }
                for name in event["extra"].as_array().into_iter().flatten() {
                    row(brief(name), "extra", "it is no part of the block, nobody reads it".to_owned());
                }
                if let Some(why) = event["quarantined"].as_str() {
                    row("-".to_owned(), "quarantined", why.to_owned());
                }
                self.blocks += 1;
                if self.blocks.is_multiple_of(100) && io::stderr().is_terminal() {
                    // With nobody to print to there is nobody to tell.
                    let _told = write!(io::stderr(), "verify: {} blocks, up to {tenant} {block}\r", self.blocks);
                }
            }
            Some("unknown") => row("-".to_owned(), "unknown", brief(&event["why"])),
            Some("orphan") => {
                let whole = if event["whole"] == true { "a whole block" } else { "a part of a block" };
                row("-".to_owned(), "orphan", format!("{whole} of {} bytes that no metadata names", event["bytes"]));
            }
            Some("end") => self.end = Some(event),
            _ => {}
        }
        Ok(())
    }

    fn said(self, json: bool) -> Result<Said, String> {
        let Some(end) = self.end else {
            return Err(format!("the answer broke off after {} blocks: see the node's log", self.blocks));
        };
        let count = |name: &str| end[name].as_u64().unwrap_or(0);
        let is_good = count("damaged") == 0 && count("unknown") == 0;
        if json {
            return Ok(Said { text: self.lines, is_good });
        }
        let mut text = String::new();
        if !self.rows.is_empty() {
            let head = ["TENANT", "BLOCK", "FILE", "FAULT", "WHAT"].map(str::to_owned).to_vec();
            text.push_str(&table(&[vec![head], self.rows].concat()));
        }
        text.push_str(&format!(
            "{} blocks, {} bytes read: {} damaged, {} could not be read, {} extra objects, {} orphans\n",
            count("blocks"),
            count("bytes"),
            count("damaged"),
            count("unknown"),
            count("extra"),
            count("orphans")
        ));
        Ok(Said { text, is_good })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = r#"{"event":"block","tenant":"a","block":"B","quarantined":null,"bytes":7,
        "found":[{"file":"index","fault":"checksum","what":"it is other"}]}"#;

    fn said(lines: &[&str], json: bool) -> Result<Said, String> {
        let mut seen = Seen::default();
        lines.iter().try_for_each(|line| seen.take(line.as_bytes(), json))?;
        seen.said(json)
    }

    #[test]
    fn what_is_wrong_is_told_in_a_table_and_by_the_exit_code() {
        let end = |damaged: u32| {
            format!("{{\"event\":\"end\",\"blocks\":1,\"bytes\":7,\"damaged\":{damaged},\"unknown\":0,\"orphans\":1}}")
        };
        let beside = r#"{"event":"block","tenant":"a","block":"B","bytes":7,"found":[],"extra":["x.json"]}"#;
        let good = said(&[beside, &end(0)], false).unwrap();
        assert!(good.is_good && good.text.contains("x.json"), "{}", good.text);
        let orphan = r#"{"event":"orphan","tenant":"a","block":"C","bytes":9,"whole":false}"#;
        let bad = said(&[BLOCK, orphan, &end(1)], false).unwrap();
        assert_eq!((bad.is_good, bad.text.lines().count()), (false, 4));
        assert!(bad.text.contains("index") && bad.text.contains("1 damaged"), "{}", bad.text);
        assert!(said(&[orphan, &end(0)], false).unwrap().is_good, "an orphan is no damage");
        let json = said(&[BLOCK, &end(1)], true).unwrap();
        assert_eq!((json.is_good, json.text.lines().count()), (false, 2));
    }

    #[test]
    fn an_answer_without_its_end_is_a_failure() {
        assert!(said(&[BLOCK], false).unwrap_err().contains("broke off"));
        assert!(said(&["<html>"], false).is_err());
    }
}
