//! `label_replace` and `label_join`: new label values from old ones. Which series they are set on is the engine's.

use engram_model::pattern::{Grouped, Groups};

/// Longest value made, in bytes. Calls nest, and each may double a value: without a bound a short query asks for more
/// memory than there is. A tenant's longest values, all labels of a series joined, fit.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Most work of one match, bytes of the value times bytes of the automaton: a tenth of a second at worst, in which
/// nobody can stop it. An automaton of a common pattern has ten kilobytes and most values fifty bytes: a thousandth.
const MATCH_WORK_MAX: usize = 1 << 30;

/// What `label_replace` makes of a value.
#[derive(Clone, Debug)]
pub struct Replacer {
    regex: Grouped,
    template: String,
}

impl Replacer {
    /// `pattern` must match the whole value, a dot matches line ends too. The template names groups as `$1`, `$name`,
    /// `${name}`; `$$` is a dollar sign.
    ///
    /// # Errors
    /// The text the query fails with, when the target is no label name or the pattern no expression.
    pub fn new(target: &str, template: &str, pattern: &str) -> Result<Self, String> {
        let regex =
            Grouped::new(pattern).map_err(|_| format!("invalid regular expression in label_replace(): {pattern}"))?;
        if target.is_empty() {
            return Err(format!("invalid destination label name in label_replace(): {target}"));
        }
        Ok(Self { regex, template: template.to_owned() })
    }

    /// The new value; `None` where the pattern does not match and nothing is to be set.
    ///
    /// # Errors
    /// The text the query fails with, when the value would be too long or the match take too long.
    pub fn apply(&self, value: &str) -> Result<Option<String>, String> {
        if self.work(value) > MATCH_WORK_MAX {
            return Err(format!(
                "the regular expression in label_replace() is too large for a label value of {} bytes",
                value.len()
            ));
        }
        let Some(groups) = self.regex.groups(value) else { return Ok(None) };
        expand(&self.template, &groups).map(Some).ok_or_else(|| too_long("label_replace"))
    }

    /// What a match with a value takes at most, in bytes of the value times bytes of the automaton.
    #[must_use]
    pub fn work(&self, value: &str) -> usize {
        self.regex.size_bytes().saturating_mul(value.len())
    }
}

fn too_long(func: &str) -> String {
    format!("{func}() makes a label value of more than {VALUE_BYTES_MAX} bytes")
}

/// A value that never grows beyond the longest allowed.
#[derive(Default)]
struct Bounded(String);

impl Bounded {
    fn push(&mut self, text: &str) -> Option<()> {
        if text.len() > VALUE_BYTES_MAX - self.0.len() {
            return None;
        }
        self.0.push_str(text);
        Some(())
    }
}

/// Go's rules: a name is the longest run of letters, digits and underscores, so `$1x` is the group `1x`; a group that
/// is not there is empty; a dollar sign before anything else stands for itself. `None`: it would be too long.
fn expand(template: &str, groups: &Groups<'_>) -> Option<String> {
    let mut out = Bounded::default();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push(before)?;
        if let Some(after) = after.strip_prefix('$') {
            out.push("$")?;
            rest = after;
        } else if let Some((name, after)) = group_name(after) {
            out.push(group(name, groups))?;
            rest = after;
        } else {
            out.push("$")?;
            rest = after;
        }
    }
    out.push(rest)?;
    Some(out.0)
}

fn group_name(text: &str) -> Option<(&str, &str)> {
    let (text, brace) = text.strip_prefix('{').map_or((text, false), |text| (text, true));
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    let rest = if brace { rest.strip_prefix('}')? } else { rest };
    (!name.is_empty()).then_some((name, rest))
}

fn group<'a>(name: &str, groups: &Groups<'a>) -> &'a str {
    let is_number = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    let found = if is_number { name.parse().ok().and_then(|n: usize| groups.number(n)) } else { groups.name(name) };
    found.unwrap_or("")
}

/// Checks the names `label_join` works with.
///
/// # Errors
/// The text the query fails with.
pub fn check_join<'a>(target: &str, mut sources: impl Iterator<Item = &'a str>) -> Result<(), String> {
    if sources.any(str::is_empty) {
        return Err("invalid source label name in label_join(): ".to_owned());
    }
    if target.is_empty() {
        return Err(format!("invalid destination label name in label_join(): {target}"));
    }
    Ok(())
}

/// What `label_join` makes of values, missing ones empty.
///
/// # Errors
/// The text the query fails with, when the value would be too long.
pub fn join<'a>(values: impl Iterator<Item = &'a str>, separator: &str) -> Result<String, String> {
    let mut out = Bounded::default();
    for (i, value) in values.enumerate() {
        let separator = if i == 0 { "" } else { separator };
        out.push(separator).and_then(|()| out.push(value)).ok_or_else(|| too_long("label_join"))?;
    }
    Ok(out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_expanded_as_go_does() {
        let make = |template: &str, pattern: &str, value: &str| {
            Replacer::new("dst", template, pattern).unwrap().apply(value).unwrap()
        };
        assert_eq!(
            make("destination-value-$1", "source-value-(.*)", "source-value-10").unwrap(),
            "destination-value-10"
        );
        assert_eq!(make("$1x", "(.*)", "a").unwrap(), "");
        assert_eq!(make("${1}x$$", "(.*)", "a").unwrap(), "ax$");
        assert_eq!(make("$name ${name} $", "(?P<name>.*)", "a\nb").unwrap(), "a\nb a\nb $");
        assert_eq!(make("${1", "(.*)", "a").unwrap(), "${1");
        assert_eq!(make("$01", "(.*)", "a").unwrap(), "");
        assert_eq!(make("x", "a", "ab"), None);
        assert!(Replacer::new("dst", "", "(.*").unwrap_err().starts_with("invalid regular expression"));
        assert!(Replacer::new("", "", "").is_err());
        assert_eq!(join(["a", "", "c"].into_iter(), "-").unwrap(), "a--c");
    }

    #[test]
    fn values_do_not_grow_without_end() {
        let half = "x".repeat(VALUE_BYTES_MAX / 2);
        let twice = Replacer::new("dst", "$1$1", "(.*)").unwrap();
        let whole = twice.apply(&half).unwrap().unwrap();
        assert_eq!(whole.len(), VALUE_BYTES_MAX);
        assert!(twice.apply(&whole).unwrap_err().starts_with("label_replace() makes a label value of more than"));
        assert_eq!(join([half.as_str(), &half].into_iter(), "").unwrap().len(), VALUE_BYTES_MAX);
        assert!(join([half.as_str(), &half].into_iter(), "-").unwrap_err().starts_with("label_join() makes"));
    }
}
