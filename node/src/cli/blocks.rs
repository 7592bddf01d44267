//! `engram blocks …`, `engram delete-series`: what an operator asks of blocks.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::client::{Ask, Shape, Target, Verb, escape};
use super::show::{brief, table};
use super::{text, with_target};
use crate::config::units::{format_duration_ms, format_size};

/// The grammar of `engram blocks`.
pub(crate) fn command() -> Command {
    let id = || Arg::new("ID").required(true).help("The block's name, see `engram blocks ls`");
    Command::new("blocks")
        .about("Look at the blocks of a tenant")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_target(Command::new("ls").about("All blocks: time, size, where they come from, state")))
        .subcommand(
            with_target(Command::new("inspect").about("One block: its files, and how many values its labels have"))
                .arg(id()),
        )
        .subcommand(
            with_target(Command::new("verify").about("Read all of a block and hold it against the metadata")).arg(id()),
        )
        .subcommand(with_target(Command::new("plan").about("What compaction would do next")))
        .subcommand(orphans_command())
        .subcommand(with_target(
            Command::new("clean").about("Take deleted samples out of the blocks now; ends when none is left"),
        ))
}

fn orphans_command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let command = Command::new("orphans")
        .about("What lies in the object store and in no metadata, with age and size; and remove it")
        .after_help(
            "A whole block that nobody knows was left by a crash, or is the only copy of its samples after the metadata was \
             restored from an old backup: look at its time, import it (`engram import`) if in doubt. Nothing younger than \
             compaction.orphan-age is ever removed.",
        );
    with_target(command)
        .arg(Arg::new("older-than").long("older-than").value_name("DURATION").help("Remove only what is older, such as 7d"))
        .arg(flag("remove").requires("yes").help("Remove the objects for good; takes --yes"))
        .arg(flag("yes").requires("remove").help("They are to be removed, nobody needs them"))
        .arg(
            Arg::new("ID").action(ArgAction::Append).requires("remove").help(
                "Remove only these; needed for those that were imported, that others made, or that are older than the cluster",
            ),
        )
}

/// The grammar of `engram delete-series`.
pub(crate) fn delete_command() -> Command {
    let moment = "RFC 3339 or seconds since 1970";
    with_target(
        Command::new("delete-series")
            .about("Delete series: hidden at once, taken out of the blocks later")
            .after_help("Example:\n\n    engram delete-series '{job=\"old\"}' --end 2026-01-01T00:00:00Z"),
    )
    .arg(Arg::new("SELECTOR").required(true).action(ArgAction::Append).help("Which series; any of them selects"))
    .arg(Arg::new("start").long("start").value_name("TIME").help(format!("From when, {moment} [default: the first]")))
    .arg(Arg::new("end").long("end").value_name("TIME").help(format!("Until when, {moment} [default: now]")))
}

/// What the words after `engram blocks` ask for.
pub(crate) fn wanted(matches: &ArgMatches, target: impl Fn(&ArgMatches) -> Target) -> Ask {
    let Some((word, inner)) = matches.subcommand() else {
        return Ask::of(&target(matches), "/api/v1/admin/blocks", Verb::Get, Shape::Blocks);
    };
    let target = target(inner);
    let path = |rest: &str| format!("/api/v1/admin/blocks/{}{rest}", escape(&text(inner, "ID").unwrap_or_default()));
    let form = |pairs: &[(&str, &str)]| {
        Verb::Form(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    };
    match word {
        "inspect" => Ask::of(&target, &path(""), Verb::Get, Shape::Block),
        "verify" => Ask::of(&target, &path("/verify"), form(&[]), Shape::Verified),
        "orphans" => orphans_ask(inner, &target),
        "plan" => Ask::of(&target, "/api/v1/admin/blocks/plan", Verb::Get, Shape::Plan),
        "clean" => Ask::of(&target, "/api/v1/admin/tsdb/clean_tombstones", form(&[("wait", "true")]), Shape::Cleaned),
        _ => Ask::of(&target, "/api/v1/admin/blocks", Verb::Get, Shape::Blocks),
    }
}

fn orphans_ask(matches: &ArgMatches, target: &Target) -> Ask {
    let path = "/api/v1/admin/blocks/orphans";
    let older = text(matches, "older-than");
    if !matches.get_flag("remove") {
        let query = older.map_or_else(String::new, |older| format!("?older_than={}", escape(&older)));
        return Ask::of(target, &format!("{path}{query}"), Verb::Get, Shape::Orphans);
    }
    let mut form = vec![("confirm".to_owned(), "true".to_owned())];
    form.extend(older.map(|older| ("older_than".to_owned(), older)));
    form.extend(matches.get_many::<String>("ID").into_iter().flatten().map(|id| ("block".to_owned(), id.clone())));
    Ask::of(target, &format!("{path}/remove"), Verb::Form(form), Shape::Removed)
}

/// What the words after `engram delete-series` ask for.
pub(crate) fn deletion(matches: &ArgMatches, target: &Target) -> Ask {
    let selectors = matches.get_many::<String>("SELECTOR").into_iter().flatten();
    let mut form: Vec<_> = selectors.map(|one| ("match[]".to_owned(), one.clone())).collect();
    let times = ["start", "end"].into_iter().filter_map(|name| Some((name.to_owned(), text(matches, name)?)));
    form.extend(times);
    Ask::of(target, "/api/v1/admin/tsdb/delete_series", Verb::Form(form), Shape::Deleted)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

fn moment(value: &Value) -> String {
    value.as_i64().map_or_else(|| brief(value), crate::http::format_time)
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| brief(value), short_size)
}

/// To three digits: sizes of blocks are seldom whole.
#[allow(clippy::cast_precision_loss, reason = "a size to show")]
pub(crate) fn short_size(bytes: u64) -> String {
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit < 4 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format_size(bytes) } else { format!("{value:.1}{}", ["B", "KiB", "MiB", "GiB", "TiB"][unit]) }
}

fn length(one: &Value) -> Option<String> {
    Some(format_duration_ms(one.get("end")?.as_i64()?.checked_sub(one.get("start")?.as_i64()?)?))
}

fn shard(one: &Value) -> String {
    match one.get("shard").and_then(|shard| Some((shard.get("index")?.as_u64()?, shard.get("count")?.as_u64()?))) {
        Some((index, count)) => format!("{}/{count}", index + 1),
        None => "all".to_owned(),
    }
}

/// `admin/blocks`.
pub(crate) fn list(data: &Value) -> Option<String> {
    let blocks = data.get("blocks")?.as_array()?;
    if blocks.is_empty() {
        return Some("no blocks: heads are cut when their windows are over, or by `engram flush`\n".to_owned());
    }
    let mut rows =
        vec![row(["BLOCK", "LEVEL", "START", "LENGTH", "SHARD", "SERIES", "SAMPLES", "SIZE", "ORIGIN", "STATE"])];
    for one in blocks {
        let cell = |name: &str| brief(&one[name]);
        rows.push(vec![
            cell("id"),
            cell("level"),
            moment(one.get("start")?),
            length(one)?,
            shard(one),
            cell("series"),
            cell("samples"),
            size(one.get("bytes")?),
            cell("origin"),
            cell("state"),
        ]);
    }
    let mut out = table(&rows);
    let deletions = data.get("deletions").and_then(Value::as_array).map_or(0, Vec::len);
    if deletions > 0 {
        out.push_str(&format!("\n{deletions} deletions are hidden in queries and not carried out everywhere yet\n"));
    }
    Some(out)
}

/// `admin/blocks/<id>`.
pub(crate) fn one(data: &Value) -> Option<String> {
    let (files, labels) = (data.get("files")?.as_array()?, data.get("labels")?.as_array()?);
    let cell = |name: &str| brief(&data[name]);
    let mut out = table(&[
        row(["block", &cell("id")]),
        row(["state", &cell("state")]),
        row(["origin", &cell("origin")]),
        row(["level", &cell("level")]),
        row(["time", &format!("{} and {} on", moment(data.get("start")?), length(data)?)]),
        row(["shard", &shard(data)]),
        row(["series", &cell("series")]),
        row(["chunks", &cell("chunks")]),
        row(["samples", &cell("samples")]),
        row(["size", &size(data.get("bytes")?)]),
        row(["digest", &cell("digest")]),
        row(["made", &format!("{}, as of metadata {}", moment(data.get("madeAt")?), cell("asOf"))]),
    ]);
    let mut rows = vec![row(["FILE", "SIZE", "CRC-32C"])];
    rows.extend(files.iter().map(|file| vec![brief(&file["name"]), size(&file["bytes"]), brief(&file["crc32c"])]));
    out.push('\n');
    out.push_str(&table(&rows));
    let mut rows = vec![row(["LABEL", "VALUES"])];
    rows.extend(labels.iter().map(|label| vec![brief(&label["name"]), brief(&label["values"])]));
    out.push('\n');
    out.push_str(&table(&rows));
    Some(out)
}

/// `admin/blocks/<id>/verify`.
pub(crate) fn verified(data: &Value) -> Option<String> {
    let cell = |name: &str| brief(&data[name]);
    let found = match data.get("ok")?.as_bool()? {
        true => "whole: every byte is what was agreed".to_owned(),
        false => format!("DAMAGED: {}", cell("damage")),
    };
    Some(table(&[
        row(["block", &cell("id")]),
        row(["result", &found]),
        row(["series", &cell("series")]),
        row(["chunks", &cell("chunks")]),
        row(["samples", &cell("samples")]),
        row(["size", &size(data.get("bytes")?)]),
        row(["digest", &cell("digest")]),
    ]))
}

/// `admin/blocks/plan`.
pub(crate) fn plan(data: &Value) -> Option<String> {
    let jobs = data.get("jobs")?.as_array()?;
    if jobs.is_empty() {
        return Some("nothing to do\n".to_owned());
    }
    let mut rows = vec![row(["JOB", "START", "LENGTH", "SOURCES", "SIZE", "RESULTS", "LEVEL", "WAITS"])];
    for job in jobs {
        rows.push(vec![
            brief(job.get("kind")?),
            moment(job.get("start")?),
            length(job)?,
            job.get("sources")?.as_array()?.len().to_string(),
            size(job.get("bytes")?),
            job.get("results")?.as_array()?.len().to_string(),
            brief(job.get("level")?),
            format_duration_ms(job.get("waitsMs")?.as_i64()? / 1000 * 1000),
        ]);
    }
    Some(table(&rows))
}

/// `admin/blocks/orphans`.
pub(crate) fn orphans(data: &Value) -> Option<String> {
    let all = data.get("orphans")?.as_array()?;
    if all.is_empty() {
        return Some("nothing: all that lies in the store is in the metadata\n".to_owned());
    }
    let mut rows = vec![row(["BLOCK", "WHOLE", "MADE BY", "AGE", "SIZE", "START", "END", "SAMPLES", "A REMOVAL"])];
    for one in all {
        let cell = |name: &str| if one[name].is_null() { "-".to_owned() } else { brief(&one[name]) };
        let time = |name: &str| if one[name].is_null() { "-".to_owned() } else { moment(&one[name]) };
        rows.push(vec![
            cell("id"),
            if one.get("whole")?.as_bool()? { "yes" } else { "no" }.to_owned(),
            cell("madeBy"),
            format_duration_ms(one.get("ageMs")?.as_i64()?.max(0) / 1000 * 1000),
            size(&one["bytes"]),
            time("start"),
            time("end"),
            cell("samples"),
            one["stays"].as_str().map_or_else(|| "takes it".to_owned(), |why| format!("leaves it: {why}")),
        ]);
    }
    Some(table(&rows) + &more(data))
}

/// `admin/blocks/orphans/remove`.
pub(crate) fn removed(data: &Value) -> Option<String> {
    let (gone, kept) = (data.get("removed")?.as_array()?, data.get("kept")?.as_array()?);
    let mut rows = Vec::new();
    rows.extend(gone.iter().map(|id| row([&brief(id), "removed"])));
    rows.extend(kept.iter().map(|one| row([&brief(&one["id"]), &format!("stays: {}", brief(&one["why"]))])));
    let bytes = size(data.get("bytes")?);
    Some(format!("{}{} removed ({bytes}), {} left\n{}", table(&rows), gone.len(), kept.len(), more(data)))
}

fn more(data: &Value) -> String {
    match data["more"].as_u64().unwrap_or(0) {
        0 => String::new(),
        n => format!("{n} more are not shown: ask again when these are gone\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(line: &str) -> Ask {
        let command = Command::new("engram").subcommand(command()).subcommand(delete_command());
        let matches = command.try_get_matches_from(line.split_whitespace()).unwrap();
        let target = |inner: &ArgMatches| Target {
            url: "node:1".to_owned(),
            tenant: text(inner, "tenant"),
            json: inner.get_flag("json"),
        };
        match matches.subcommand() {
            Some(("blocks", inner)) => wanted(inner, target),
            Some((_, inner)) => deletion(inner, &target(inner)),
            None => panic!("no words"),
        }
    }

    #[test]
    fn words_become_requests() {
        for (line, url, shape) in [
            ("engram blocks ls", "http://node:1/api/v1/admin/blocks", Shape::Blocks),
            ("engram blocks inspect 01X", "http://node:1/api/v1/admin/blocks/01X", Shape::Block),
            ("engram blocks verify a/b", "http://node:1/api/v1/admin/blocks/a%2Fb/verify", Shape::Verified),
            ("engram blocks plan", "http://node:1/api/v1/admin/blocks/plan", Shape::Plan),
            ("engram blocks clean", "http://node:1/api/v1/admin/tsdb/clean_tombstones", Shape::Cleaned),
        ] {
            let got = ask(line);
            assert_eq!((got.url.as_str(), got.shape), (url, shape), "{line}");
        }
        let got = ask("engram blocks orphans --older-than 2d");
        assert_eq!(
            (got.url.as_str(), got.shape),
            ("http://node:1/api/v1/admin/blocks/orphans?older_than=2d", Shape::Orphans)
        );
        let got = ask("engram blocks orphans --remove --yes 01X --older-than 2d");
        let form = [("confirm", "true"), ("older_than", "2d"), ("block", "01X")];
        assert_eq!(got.verb, Verb::Form(form.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()));
        assert!(got.url.ends_with("/orphans/remove"));
        for line in ["engram blocks orphans --remove", "engram blocks orphans --yes", "engram blocks orphans 01X"] {
            let command = Command::new("engram").subcommand(command());
            assert!(command.try_get_matches_from(line.split_whitespace()).is_err(), "{line}");
        }
        let got = ask("engram delete-series up {job=\"a\"} --end 5 --tenant t");
        let form = [("match[]", "up"), ("match[]", "{job=\"a\"}"), ("end", "5")];
        assert_eq!(got.verb, Verb::Form(form.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()));
        assert_eq!((got.tenant.as_deref(), got.shape), (Some("t"), Shape::Deleted));
    }

    #[test]
    fn blocks_are_shown_as_tables() {
        let block = json!({
            "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "level": 2, "start": 0, "end": 7_200_000, "series": 3, "samples": 9,
            "shard": {"index": 0, "count": 4}, "chunks": 3, "bytes": 2560, "origin": "compacted from 2",
            "state": "read", "digest": "9-1-2", "madeAt": 0, "asOf": 7, "files": [], "labels": [],
        });
        let text = list(&json!({"blocks": [block], "deletions": [{}]})).unwrap();
        for part in ["01ARZ3NDEKTSV4RRFFQ69G5FAV  2      1970-01-01T00:00:00Z  2h      1/4", "2.5KiB", "1 deletions"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(one(&block).unwrap().contains("1970-01-01T00:00:00Z and 2h on"));
        assert!(list(&json!({"blocks": []})).unwrap().starts_with("no blocks"));
        assert_eq!(
            (list(&json!({})), one(&json!({})), plan(&json!([])), verified(&json!({}))),
            (None, None, None, None)
        );
        let job = json!({"kind": "merge", "start": 0, "end": 43_200_000, "sources": ["a", "b"], "results": [{}],
            "bytes": 100, "level": 3, "waitsMs": 61_500});
        assert!(plan(&json!({"jobs": [job]})).unwrap().contains("merge  1970-01-01T00:00:00Z  12h     2"));
        let orphan = json!({"id": "x", "whole": true, "madeBy": "engram", "ageMs": 90_061_000, "bytes": 2560, "start": 0,
            "end": 7_200_000, "samples": 9, "stays": null});
        let text = orphans(&json!({"orphans": [orphan], "more": 2})).unwrap();
        assert!(text.contains("takes it") && text.contains("25h1m1s") && text.contains("2 more"), "{text}");
        assert!(orphans(&json!({"orphans": []})).unwrap().starts_with("nothing"));
        let text = removed(&json!({"removed": ["x"], "bytes": 9, "kept": [{"id": "y", "why": "young"}]})).unwrap();
        assert!(text.contains("stays: young") && text.contains("1 removed"), "{text}");
        let damaged = json!({"id": "x", "ok": false, "damage": "a chunk", "series": 1, "chunks": 1, "samples": 1,
            "bytes": 1, "digest": "d"});
        assert!(verified(&damaged).unwrap().contains("DAMAGED: a chunk"));
    }
}
