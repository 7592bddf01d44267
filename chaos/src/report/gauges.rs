//! What nodes took, for readers: the peaks of each, and what is drawn below the timeline.

use crate::check::seconds;
use crate::history::{Gauge, History, Micros};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Points of a node that are kept: two hours; what is longer is cut off.
const POINTS_MAX: usize = 7_200;
/// Two looks that are further apart than this are not joined by a line.
const APART_MAX: f64 = 3.5;
/// Height of a strip and of the room between two.
const HEIGHT: f64 = 48.0;
const ROOM: f64 = 16.0;
/// One for each node; further ones begin again.
const COLOURS: [&str; 6] = ["#3b82c4", "#c2410c", "#2e7d32", "#7b1fa2", "#b8860b", "#00838f"];

/// What a node took at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Point {
    at_seconds: f64,
    rss_bytes: u64,
    open_files: u64,
    threads: u64,
    /// Of one core, since the point before.
    cpu_share: f64,
}

/// A node over the whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    node: u32,
    /// Processes it was.
    lives: usize,
    peak_rss_bytes: u64,
    /// Of it what is no copy of a file.
    peak_own_bytes: u64,
    peak_open_files: u64,
    peak_threads: u64,
    cpu_seconds: f64,
    points: Vec<Point>,
}

/// All nodes.
pub(super) fn nodes(history: &History) -> Vec<Node> {
    let mut all: BTreeMap<u32, Node> = BTreeMap::new();
    let mut last: BTreeMap<u32, (Micros, &Gauge)> = BTreeMap::new();
    for (at, gauge) in &history.gauges {
        let node = all.entry(gauge.node).or_default();
        let before = last.insert(gauge.node, (*at, gauge)).filter(|(_, before)| before.pid == gauge.pid);
        let (since, had) = before.map_or((*at, 0), |(since, before)| (since, before.cpu_ms));
        node.node = gauge.node;
        node.lives += usize::from(before.is_none());
        node.peak_rss_bytes = node.peak_rss_bytes.max(gauge.rss);
        node.peak_own_bytes = node.peak_own_bytes.max(gauge.own);
        node.peak_open_files = node.peak_open_files.max(gauge.files);
        node.peak_threads = node.peak_threads.max(gauge.threads);
        let took = seconds(gauge.cpu_ms.saturating_sub(had) * 1_000);
        node.cpu_seconds += took;
        if node.points.len() < POINTS_MAX {
            let over = seconds(at.saturating_sub(since));
            let cpu_share = if over > 0.0 { took / over } else { 0.0 };
            let (rss_bytes, open_files, threads) = (gauge.rss, gauge.files, gauge.threads);
            node.points.push(Point { at_seconds: seconds(*at), rss_bytes, open_files, threads, cpu_share });
        }
    }
    all.into_values().collect()
}

/// The most of each over all nodes, for a line of text.
pub(super) fn peaks(nodes: &[Node]) -> Option<String> {
    let most = |of: fn(&Node) -> u64| nodes.iter().map(of).max();
    let (rss, files, threads) =
        (most(|node| node.peak_rss_bytes)?, most(|node| node.peak_open_files)?, most(|node| node.peak_threads)?);
    let cpu: f64 = nodes.iter().map(|node| node.cpu_seconds).sum();
    let mib = rss >> 20;
    Some(format!(
        "at most at a node: {mib} MiB, {files} open files, {threads} threads; all took {cpu:.0} s of processors"
    ))
}

/// Strips below each other, each with a line a node: memory, open files, threads, processor time.
pub(super) fn draw(nodes: &[Node], end_seconds: f64, width: f64) -> String {
    /// A strip: what it shows, its unit, its value of a point.
    type Strip = (&'static str, &'static str, fn(&Point) -> f64);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    const STRIPS: [Strip; 4] = [
        ("memory", "MiB", |point| (point.rss_bytes >> 20) as f64),
        ("open files", "", |point| point.open_files as f64),
        ("threads", "", |point| point.threads as f64),
        ("processor", "% of a core", |point| point.cpu_share * 100.0),
    ];
    if nodes.is_empty() {
        return String::new();
    }
    let mut out = format!("<svg viewBox=\"0 0 {width} {}\" role=\"img\">", (HEIGHT + ROOM) * 4.0 + ROOM);
    for ((name, unit, of), row) in STRIPS.into_iter().zip(0_u8..) {
        let top = f64::from(row) * (HEIGHT + ROOM);
        let most = nodes.iter().flat_map(|node| &node.points).map(of).fold(1.0, f64::max);
        let _text = write!(
            out,
            "<text x=\"0\" y=\"{:.0}\" font-size=\"11\" fill=\"#7a828c\">{name}, at most {most:.0} {unit}</text>\
             <line x1=\"0\" x2=\"{width}\" y1=\"{1:.0}\" y2=\"{1:.0}\" stroke=\"#7a828c\" stroke-width=\".5\"/>",
            top + 11.0,
            top + ROOM + HEIGHT,
        );
        for (node, colour) in nodes.iter().zip(COLOURS.iter().cycle()) {
            for piece in node.points.chunk_by(|a, b| b.at_seconds - a.at_seconds <= APART_MAX) {
                let xy = |point: &Point| {
                    let x = point.at_seconds / end_seconds.max(0.001) * width;
                    format!("{x:.1},{:.1}", top + ROOM + HEIGHT * (1.0 - of(point) / most))
                };
                let points: Vec<_> = piece.iter().map(xy).collect();
                let _text = write!(
                    out,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"><title>node {}</title></polyline>",
                    points.join(" "),
                    node.node,
                );
            }
        }
    }
    let names = nodes.iter().zip(COLOURS.iter().cycle()).fold(String::new(), |mut names, (node, colour)| {
        let _text = write!(names, "<tspan fill=\"{colour}\">node {} </tspan>", node.node);
        names
    });
    let _text =
        write!(out, "<text x=\"0\" y=\"{:.0}\" font-size=\"11\">{names}</text></svg>", (HEIGHT + ROOM) * 4.0 + 12.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_and_shares_are_those_of_each_process() {
        let gauge = |at: u64, node, pid, rss, cpu_ms| {
            (at * 1_000_000, Gauge { node, pid, rss, own: rss / 2, files: rss, threads: 3, cpu_ms, told: None })
        };
        // Node 1 was killed and came again: its processor time begins anew.
        let gauges =
            vec![gauge(1, 0, 7, 10, 500), gauge(1, 1, 8, 5, 100), gauge(3, 0, 7, 30, 1_500), gauge(9, 1, 9, 20, 200)];
        let all = nodes(&History { gauges, ..History::default() });
        assert_eq!(all.len(), 2);
        let of = |node: &Node| (node.lives, node.peak_rss_bytes, node.peak_own_bytes, node.peak_open_files);
        assert_eq!((of(&all[0]), of(&all[1])), ((1, 30, 15, 30), (2, 20, 10, 20)));
        assert!((all[0].points[1].cpu_share - 0.5).abs() < 1e-9 && (all[0].cpu_seconds - 1.5).abs() < 1e-9);
        assert!((all[1].cpu_seconds - 0.3).abs() < 1e-9);
        let picture = draw(&all, 10.0, 1000.0);
        assert!(picture.ends_with("</svg>") && picture.contains("<title>node 1</title>"));
        // Four strips: one line for node 0, two for node 1, which was away.
        assert_eq!(picture.matches("<polyline").count(), 12);
        assert!(peaks(&all).unwrap().contains("30 open files, 3 threads; all took 2 s"));
        assert!(peaks(&[]).is_none() && draw(&[], 1.0, 1.0).is_empty());
    }
}
