//! Scripts as commands: `load`, `clear`, `eval`.
//!
//! Source: `prometheus promql/promqltest/{README.md,test.go}`.

use engram_model::{Labels, Millis};
use regex::Regex;

use super::series::{
    Item, Parsed, parse_duration, parse_labels, parse_number, parse_series, parse_starts, parse_string,
};

/// Values of one series, with start timestamps relative to each.
pub(super) struct Loaded {
    pub(super) labels: Labels,
    pub(super) items: Vec<Item>,
    pub(super) starts: Option<Vec<Option<i64>>>,
}

pub(super) enum Command {
    Clear,
    Load { step_ms: i64, with_nhcb: bool, series: Vec<Loaded> },
    Eval(Box<Eval>),
}

/// What a text must be.
pub(super) enum Text {
    Any,
    Exactly(String),
    Like(Regex),
}

impl Text {
    pub(super) fn fits(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(want) => want == text,
            Self::Like(regex) => regex.is_match(text),
        }
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Exactly(text) => write!(f, "{text:?}"),
            Self::Like(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// Expected texts beside the answer.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) expected: Vec<Text>,
    pub(super) none: bool,
}

/// One evaluation and its expected answer.
pub(super) struct Eval {
    pub(super) line: usize,
    pub(super) expr: String,
    pub(super) start: Millis,
    pub(super) end: Millis,
    /// 0: an instant query.
    pub(super) step_ms: i64,
    /// Times of an expected range vector: start, end, step.
    pub(super) range_vector: Option<(Millis, Millis, i64)>,
    pub(super) fail: Option<Text>,
    pub(super) warn: Texts,
    pub(super) info: Texts,
    pub(super) ordered: bool,
    pub(super) scalar: Option<f64>,
    pub(super) string: Option<String>,
    /// Position, labels, values.
    pub(super) series: Vec<(usize, Labels, Vec<Item>)>,
}

/// Reads a script.
pub(super) fn parse(text: &str) -> Parsed<Vec<Command>> {
    let lines: Vec<&str> =
        text.lines().map(str::trim).map(|line| if line.starts_with('#') { "" } else { line }).collect();
    let mut commands = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        at += 1;
        if line.is_empty() {
            continue;
        }
        let command = match line.split_whitespace().next().unwrap_or_default() {
            "clear" => Ok(Command::Clear),
            word if word.starts_with("load") => parse_load(&lines, &mut at),
            word if word.starts_with("eval") => parse_eval(&lines, &mut at).map(|e| Command::Eval(Box::new(e))),
            _ => Err("no such command".to_owned()),
        };
        commands.push(command.map_err(|e| format!("line {at}: {line}: {e}"))?);
    }
    Ok(commands)
}

/// The lines up to the next empty one.
fn block<'l>(lines: &[&'l str], at: &mut usize) -> Vec<&'l str> {
    let block: Vec<&str> = lines[*at..].iter().copied().take_while(|line| !line.is_empty()).collect();
    *at += block.len();
    block
}

fn parse_load(lines: &[&str], at: &mut usize) -> Parsed<Command> {
    let (word, step) = lines[*at - 1].split_once(char::is_whitespace).ok_or("load has a step")?;
    let mut series: Vec<Loaded> = Vec::new();
    let mut starts = None;
    for line in block(lines, at) {
        let (first, rest) = line.split_at(line.find("@st").unwrap_or(0));
        let is_starts = !first.is_empty() && parse_labels(first).is_ok_and(|(_, after)| after.is_empty());
        if is_starts {
            starts = Some(parse_starts(&rest["@st".len()..])?);
            continue;
        }
        let (labels, items) = parse_series(line)?;
        series.push(Loaded { labels, items, starts: starts.take() });
    }
    Ok(Command::Load { step_ms: parse_duration(step.trim())?, with_nhcb: word == "load_with_nhcb", series })
}

fn parse_eval(lines: &[&str], at: &mut usize) -> Parsed<Eval> {
    let line = *at;
    let (word, rest) = lines[*at - 1].split_once(char::is_whitespace).ok_or("eval has a kind")?;
    let mut eval = parse_head(rest.trim_start())?;
    eval.line = line;
    match word {
        "eval" => {}
        "eval_fail" => eval.fail = Some(Text::Any),
        "eval_ordered" => eval.ordered = true,
        "eval_warn" => eval.warn.expected.push(Text::Any),
        "eval_info" => eval.info.expected.push(Text::Any),
        other => return Err(format!("no such command: {other}")),
    }
    let mut position = 0;
    for line in block(lines, at) {
        position += 1;
        if let Some(rest) = line.strip_prefix("expect range vector") {
            let (start, rest) = word_after(rest, "from")?;
            let (end, rest) = word_after(rest, "to")?;
            let (step, _) = word_after(rest, "step")?;
            eval.range_vector = Some((parse_duration(start)?, parse_duration(end)?, parse_duration(step)?));
        } else if let Some(rest) = line.strip_prefix("expect string ") {
            eval.string = Some(parse_string(rest.trim())?.0);
        } else if line.split_whitespace().next() == Some("expect") {
            parse_expect(line["expect".len()..].trim(), &mut eval)?;
            position -= 1;
        } else if let Some(message) = line.strip_prefix("expected_fail_message") {
            eval.fail = Some(Text::Exactly(message.trim().to_owned()));
        } else if let Some(pattern) = line.strip_prefix("expected_fail_regexp") {
            eval.fail = Some(Text::Like(Regex::new(pattern.trim()).map_err(|e| e.to_string())?));
        } else if let Ok(value) = parse_number(line) {
            eval.scalar = Some(value);
        } else {
            let (labels, items) = parse_series(line)?;
            eval.series.push((position, labels, items));
        }
    }
    Ok(eval)
}

/// `instant at 5m expr`, `range from 0 to 5m step 1m expr`.
fn parse_head(text: &str) -> Parsed<Eval> {
    let mut eval = Eval {
        line: 0,
        expr: String::new(),
        start: 0,
        end: 0,
        step_ms: 0,
        range_vector: None,
        fail: None,
        warn: Texts::default(),
        info: Texts::default(),
        ordered: false,
        scalar: None,
        string: None,
        series: Vec::new(),
    };
    if let Some(rest) = text.strip_prefix("instant") {
        let (time, rest) = word_after(rest, "at")?;
        eval.start = parse_duration(time)?;
        eval.end = eval.start;
        eval.expr = rest.trim().to_owned();
        return Ok(eval);
    }
    let rest = text.strip_prefix("range").ok_or("instant or range")?;
    let (start, rest) = word_after(rest, "from")?;
    let (end, rest) = word_after(rest, "to")?;
    let (step, rest) = word_after(rest, "step")?;
    eval.start = parse_duration(start)?;
    eval.end = parse_duration(end)?;
    eval.step_ms = parse_duration(step)?;
    eval.expr = rest.trim().to_owned();
    Ok(eval)
}

/// The word after a given one, and the rest.
fn word_after<'t>(text: &'t str, word: &str) -> Parsed<(&'t str, &'t str)> {
    let rest = text.trim_start().strip_prefix(word).ok_or(format!("{word:?} is missing in {text:?}"))?.trim_start();
    Ok(rest.split_once(char::is_whitespace).unwrap_or((rest, "")))
}

/// `warn msg: …`, `no_info`, `fail regex: …`, `ordered`.
fn parse_expect(text: &str, eval: &mut Eval) -> Parsed<()> {
    let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let want = match rest.split_once(':') {
        _ if rest.is_empty() => Text::Any,
        Some(("msg", text)) => Text::Exactly(text.trim().to_owned()),
        Some(("regex", pattern)) => Text::Like(Regex::new(pattern.trim()).map_err(|e| e.to_string())?),
        _ => return Err(format!("no such expectation: {text:?}")),
    };
    match kind {
        "fail" => eval.fail = Some(want),
        "warn" => eval.warn.expected.push(want),
        "info" => eval.info.expected.push(want),
        "no_warn" => eval.warn.none = true,
        "no_info" => eval.info.none = true,
        "ordered" => eval.ordered = true,
        other => return Err(format!("no such expectation: {other}")),
    }
    Ok(())
}
