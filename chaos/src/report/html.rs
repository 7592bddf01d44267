//! The page: a table of all runs, and for each its timeline and what every checker says. One file, no script, nothing
//! loaded, so it can be mailed, kept beside a release, and opened anywhere.

use super::timeline::Timeline;
use super::{Report, Reports};
use crate::check::Outcome;
use std::fmt::Write;

/// Size of a timeline, in its own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 150.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:68rem;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}table{border-collapse:collapse;width:100%;font-size:.87rem}\
th,td{text-align:right;padding:.25rem .5rem;border-bottom:1px solid #d8dee4}th:first-child,td:first-child,.l{text-align:left}\
.passed{color:#116329}.failed{color:#b3261e;font-weight:700}.unknown{color:#7d4e00}svg{width:100%;height:auto;display:block;margin:.7rem 0}\
code{background:#f3f4f6;padding:.1rem .3rem;border-radius:3px}ul{margin:.2rem 0;padding-left:1.2rem}\
@media(prefers-color-scheme:dark){body{background:#14171c;color:#e4e7eb}th,td{border-color:#333a44}code{background:#232830}\
.passed{color:#5ed07c}.failed{color:#ff8a80}.unknown{color:#f0b429}}";

/// The whole page.
pub(super) fn page(reports: &Reports) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Engram chaos: {what}</title><style>{STYLE}</style><h1>Engram under attack: {what}</h1>\
         <p>engram-chaos {version}, seed {seed}, store <code>{store}</code>. Every operation of every client was written \
         down with its beginning and its end; the checkers read nothing else.{cut}</p>",
        what = text(&reports.what),
        version = reports.version,
        seed = reports.seed,
        store = text(&reports.store),
        cut = if reports.interrupted { " <strong>The run was interrupted.</strong>" } else { "" },
    );
    put(&mut out, &format!("<p>{}</p>", text(&reports.network)));
    reports.builds.iter().for_each(|build| put(&mut out, &format!("<p><code>{}</code></p>", text(&build.text()))));
    table(&mut out, reports);
    let totals = super::Totals::of(&reports.runs).text();
    totals.lines().for_each(|line| put(&mut out, &format!("<p>{}</p>", text(line))));
    reports.runs.iter().for_each(|report| section(&mut out, report));
    out + "</html>\n"
}

fn put(out: &mut String, text: &str) {
    out.push_str(text);
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Unknown => "unknown",
        Outcome::NotApplicable => "not applicable",
        Outcome::Failed => "failed",
    }
}

fn table(out: &mut String, reports: &Reports) {
    put(
        out,
        "<table><tr><th>scenario<th>seed<th>verdict<th>faults<th>operations<th>acknowledged<th>lost<th>stale<th>doubled\
              <th>phantom<th>failed writes<th>failed reads<th>longest gap<th>at a fault<th>unavailable<th>healed in</tr>",
    );
    for run in &reports.runs {
        let of = |checker, name| run.figure(checker, name);
        let foreign = of("samples", "wrong tenant") + of("samples", "wrong series");
        let row = format!(
            "<tr><td><a href=\"#{id}\">{name}</a><td>{seed}<td class=\"{class}\">{word}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\
             <td>{}<td>{} + {}<td>{} + {}<td>{}<td>{}<td>{:.1} s<td>{}</tr>",
            of("covered", "faults"),
            of("covered", "operations"),
            of("samples", "acknowledged"),
            of("samples", "lost"),
            of("samples", "stale"),
            of("samples", "doubled"),
            of("samples", "phantom") + foreign,
            of("available", "failed writes"),
            of("available", "failed writes in flight at a hit"),
            of("available", "failed reads") + of("available", "failed questions"),
            of("available", "failed reads in flight at a hit") + of("available", "failed questions in flight at a hit"),
            run.seconds("available", "longest gap s", 2),
            run.seconds("available", "longest gap at a fault s", 2),
            of("available", "unavailable s"),
            run.seconds("healed", "heal s", 1),
            id = id(run),
            name = run.scenario,
            seed = run.seed,
            class = class(run.outcome),
            word = run.word(),
        );
        put(out, &row);
    }
    put(out, "</table><p>Failed: by itself + in flight at a node that was taken down.</p>");
}

fn id(run: &Report) -> String {
    format!("{}-{}", run.scenario, run.seed)
}

fn section(out: &mut String, run: &Report) {
    let head = format!(
        "<h2 id=\"{}\">{} <small>(scenario {}, seed {})</small>: <span class=\"{}\">{}</span></h2><p>Fault: {}. Promise: {}.<br>\
         Replay: <code>{}</code></p>",
        id(run),
        run.scenario,
        run.number,
        run.seed,
        class(run.outcome),
        run.word(),
        text(run.fault),
        text(run.says),
        text(&run.replay),
    );
    put(out, &head);
    for why in run.broken.iter().chain(&run.harness) {
        put(out, &format!("<p class=\"failed\">{}</p>", text(why)));
    }
    draw(out, &run.timeline);
    put(out, &super::gauges::draw(&run.nodes, run.timeline.seconds(), WIDTH));
    put(out, "<table><tr><th>checker<th class=\"l\">says<th class=\"l\">verdict<th class=\"l\">figures</tr>");
    for verdict in &run.verdicts {
        let figures =
            verdict.figures.iter().map(|(name, value)| format!("{name} {}", (value * 1000.0).round() / 1000.0));
        let told: String = verdict.told.iter().map(|told| format!("<li>{}</li>", text(told))).collect();
        let told = if told.is_empty() { told } else { format!("<ul>{told}</ul>") };
        let row = format!(
            "<tr><td>{}<td class=\"l\">{}{told}<td class=\"l {}\">{}<td class=\"l\">{}</tr>",
            verdict.checker,
            text(verdict.property),
            class(verdict.outcome),
            class(verdict.outcome),
            figures.collect::<Vec<_>>().join(" · "),
        );
        put(out, &row);
    }
    put(out, "</table>");
}

/// Faults as bands, acknowledged writes as bars, failures as red bars from above, the slowest write as a line.
fn draw(out: &mut String, line: &Timeline) {
    let seconds = line.seconds();
    let x = |at: f64| at / seconds.max(0.001) * WIDTH;
    let wide = x(line.bucket_seconds);
    let most = line.buckets.iter().map(|b| b.acknowledged).max().unwrap_or(0).max(1);
    let slowest = line.buckets.iter().map(|b| b.slowest_ms).fold(10.0, f64::max);
    put(out, &format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", HEIGHT + 34.0));
    for band in &line.faults {
        let (from, to) = (x(band.from), x(band.to));
        put(
            out,
            &format!(
                "<rect x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f2a65a\" opacity=\".35\"><title>{}</title></rect>",
                (to - from).max(1.0),
                text(&band.name),
            ),
        );
    }
    let mut slow = String::new();
    for (at, bucket) in line.buckets.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "buckets are at most 28,800")]
        let left = at as f64 * wide;
        let high = f64::from(bucket.acknowledged) / f64::from(most) * (HEIGHT - 30.0);
        let failed = f64::from(bucket.failed + bucket.reads_failed).min(10.0) * 3.0;
        if high > 0.0 {
            put(
                out,
                &format!(
                    "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{wide:.2}\" height=\"{high:.1}\" fill=\"#3b82c4\"/>",
                    HEIGHT - high
                ),
            );
        }
        if failed > 0.0 {
            put(
                out,
                &format!("<rect x=\"{left:.1}\" y=\"0\" width=\"{wide:.2}\" height=\"{failed:.1}\" fill=\"#d32f2f\"/>"),
            );
        }
        if bucket.acknowledged > 0 {
            let _text = write!(slow, "{left:.1},{:.1} ", HEIGHT - bucket.slowest_ms / slowest * (HEIGHT - 30.0));
        }
    }
    put(out, &format!("<polyline points=\"{slow}\" fill=\"none\" stroke=\"#7b1fa2\" stroke-width=\"1\"/>"));
    legend(out, line, seconds, most, slowest);
}

/// Below the picture: leaders, changed replica sets, and what the colours mean.
fn legend(out: &mut String, line: &Timeline, seconds: f64, most: u32, slowest: f64) {
    let x = |at: f64| at / seconds.max(0.001) * WIDTH;
    for (at, term, leader) in &line.leaders {
        put(
            out,
            &format!(
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"11\" fill=\"#7a828c\">▲ leader {leader}<title>term {term}: the node with id {leader}</title></text>",
                x(*at),
                HEIGHT + 12.0
            ),
        );
    }
    for (at, epochs) in &line.epochs {
        put(
            out,
            &format!(
                "<circle cx=\"{:.1}\" cy=\"{}\" r=\"3\" fill=\"#2e7d32\"><title>epochs {epochs}</title></circle>",
                x(*at),
                HEIGHT + 18.0
            ),
        );
    }
    put(
        out,
        &format!(
            "<text x=\"0\" y=\"{}\" font-size=\"11\" fill=\"#7a828c\">{seconds:.0} s · bars: writes acknowledged, at most {most} in {} s · \
         red: failed · violet: slowest write, at most {slowest:.0} ms · orange: faults · green: replica sets changed</text></svg>",
            HEIGHT + 31.0,
            line.bucket_seconds,
        ),
    );
}

/// Text as HTML wants it.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::scenario;
    use std::time::Duration;

    #[test]
    fn the_page_is_whole_and_says_nothing_a_browser_would_run() {
        let mut reports = Reports::new("<script>", 7, "/bin/engram, engram 1", Vec::new());
        let broken = Some("node 1: <b>".to_owned());
        reports.add(Report::new(&scenario::ALL[0], 7, &History::default(), Vec::new(), broken, Duration::from_secs(1)));
        let page = page(&reports);
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        assert!(!page.contains("<script>") && !page.contains("<b>") && page.contains("kill-node --seed 7"));
    }
}
