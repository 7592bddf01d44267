//! `label_replace` and `label_join`: new label values from old ones. Which series they are set on is the engine's.

use engram_model::pattern::{Grouped, Groups};

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
    #[must_use]
    pub fn apply(&self, value: &str) -> Option<String> {
        self.regex.groups(value).map(|groups| expand(&self.template, &groups))
    }
}

/// Go's rules: a name is the longest run of letters, digits and underscores, so `$1x` is the group `1x`; a group that
/// is not there is empty; a dollar sign before anything else stands for itself.
fn expand(template: &str, groups: &Groups<'_>) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = group_name(after) {
            out.push_str(group(name, groups));
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
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
#[must_use]
pub fn join<'a>(values: impl Iterator<Item = &'a str>, separator: &str) -> String {
    values.collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_expanded_as_go_does() {
        let make =
            |template: &str, pattern: &str, value: &str| Replacer::new("dst", template, pattern).unwrap().apply(value);
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
        assert_eq!(join(["a", "", "c"].into_iter(), "-"), "a--c");
    }
}
