//! The configuration file: YAML → keys with dots, each with its line.
//!
//! Why not straight into a struct: an unknown key, a wrong value and a value from a flag are to be reported alike, with
//! the place each came from, and the table of options decides what is known.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Largest file taken.
pub(crate) const FILE_BYTES_MAX: usize = 1 << 20;

/// A value of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its key with dots, as in the table (`_` is read as `-`).
    pub(crate) key: String,
    /// Line of the key, from 1.
    pub(crate) line: u64,
    /// Its value; `None` when the file has a list there, or nothing.
    pub(crate) value: Value,
}

/// What stands behind a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// One value, as text.
    Text(String),
    /// Nothing: `key:`.
    Nothing,
    /// A list.
    List,
}

/// Reads a file.
///
/// # Errors
/// What is wrong with the YAML, with line and column.
pub(crate) fn read(text: &str) -> Result<Vec<Entry>, String> {
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("the file has {} bytes, more than {FILE_BYTES_MAX}", text.len()));
    }
    let only_comments = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    if only_comments {
        return Ok(Vec::new());
    }
    let root: Node = serde_saphyr::from_str(text).map_err(|error| first_lines(&error.to_string()))?;
    let Node::Map(pairs) = root else { return Err("the file is no map of keys and values".to_owned()) };
    let mut all = Vec::new();
    flatten("", pairs, &mut all);
    Ok(all)
}

fn first_lines(text: &str) -> String {
    text.trim_end().to_owned()
}

fn flatten(prefix: &str, pairs: Vec<(Spanned<String>, Node)>, all: &mut Vec<Entry>) {
    for (name, node) in pairs {
        let key = format!("{prefix}{}", name.value.replace('_', "-"));
        let line = name.referenced.line();
        let value = match node {
            Node::Map(inner) => {
                flatten(&format!("{key}."), inner, all);
                continue;
            }
            Node::Text(text) => Value::Text(text),
            Node::Nothing => Value::Nothing,
            Node::List => Value::List,
        };
        all.push(Entry { key, line, value });
    }
}

enum Node {
    Map(Vec<(Spanned<String>, Node)>),
    Text(String),
    Nothing,
    List,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a map")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Node::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Node::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_with_their_lines() {
        let text = "# comment\ndata-dir: /x\nquery:\n  timeout: 2m\n  # more\n  samples_max: 5\nzone:\npromql-experimental: true\nlist: [1, 2]\n";
        let have: Vec<_> = read(text).unwrap().into_iter().map(|e| (e.key, e.line, e.value)).collect();
        let text = |t: &str| Value::Text(t.to_owned());
        assert_eq!(
            have,
            [
                ("data-dir".to_owned(), 2, text("/x")),
                ("query.timeout".to_owned(), 4, text("2m")),
                ("query.samples-max".to_owned(), 6, text("5")),
                ("zone".to_owned(), 7, Value::Nothing),
                ("promql-experimental".to_owned(), 8, text("true")),
                ("list".to_owned(), 9, Value::List),
            ]
        );
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert_eq!(read(text), Ok(Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for text in ["- a\n", "just text", "a: 1\na: 2\n", "a: [1", "a: *nothing\n", "\t- x", "a: b: c"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
