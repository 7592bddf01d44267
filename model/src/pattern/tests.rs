//! Goal: expressions mean here what they mean in Go. Method: cases whose answers were asked of Go 1.26, and random
//! texts, which must be answered or refused within the limits.

use proptest::prelude::*;

use super::*;

fn refusal(text: &str) -> String {
    let reason = parse(text).map(|_| ()).unwrap_err().reason;
    reason.strip_prefix("error parsing regexp: ").unwrap_or(&reason).to_owned()
}

fn matches(text: &str, value: &str) -> bool {
    Grouped::new(text).unwrap_or_else(|bad| panic!("{text}: {bad}")).groups(value).is_some()
}

#[test]
fn mistakes_are_named_as_in_go() {
    for (text, wanted) in [
        ("a(b", "missing closing ): `a(b`"),
        ("a)b", "unexpected ): `a)b`"),
        ("x[a-", "missing closing ]: `[a-`"),
        ("[[:alpha:]", "missing closing ]: `[[:alpha:]`"),
        ("*", "missing argument to repetition operator: `*`"),
        ("(?i)*", "missing argument to repetition operator: `*`"),
        ("(|+?)", "missing argument to repetition operator: `+?`"),
        (".**", "invalid nested repetition operator: `**`"),
        ("a{2}{3}?", "invalid nested repetition operator: `{2}{3}?`"),
        ("a{1001}?", "invalid repeat count: `{1001}`"),
        ("a{3,2}", "invalid repeat count: `{3,2}`"),
        ("((a{40}){0,40}?)", "invalid repeat count: `{0,40}?`"),
        ("(a{2}){99999999999999999999}", "invalid repeat count: `{99999999999999999999}`"),
        ("[z-a]", "invalid character class range: `z-a`"),
        ("[[:nope:]]", "invalid character class range: `[:nope:]`"),
        (r"\p{Latn}x", r"invalid character class range: `\p{Latn}`"),
        (r"[\pA]", r"invalid character class range: `\pA`"),
        (r"\p{Greek", r"invalid character class range: `\p{Greek`"),
        (r"\p", r"invalid character class range: `\p`"),
        (r"[a-\d]", r"invalid escape sequence: `\d`"),
        (r"a\y", r"invalid escape sequence: `\y`"),
        (r"\<a\y", r"invalid escape sequence: `\y`"),
        (r"\C", r"invalid escape sequence: `\C`"),
        (r"[\b]", r"invalid escape sequence: `\b`"),
        (r"(a)\1", r"invalid escape sequence: `\1`"),
        (r"\x4g", r"invalid escape sequence: `\x4g`"),
        (r"\x{110000}", r"invalid escape sequence: `\x{110000`"),
        (r"\x{}", r"invalid escape sequence: `\x{}`"),
        (r"\é", r"invalid escape sequence: `\é`"),
        ("a\\", "trailing backslash at end of expression: ``"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
        ("(?i-)a", "invalid or unsupported Perl syntax: `(?i-)`"),
        ("(?i", "invalid or unsupported Perl syntax: `(?i`"),
        ("(?P<a-b>c)", "invalid named capture: `(?P<a-b>`"),
        ("(?<>c)", "invalid named capture: `(?<>`"),
        ("(?P<n", "invalid named capture: `(?P<n`"),
    ] {
        assert_eq!(refusal(text), wanted, "{text}");
    }
}

#[test]
fn expressions_match_as_in_go() {
    for (text, yes, no) in [
        ("{.*", "{a", "a"),
        ("a{}b", "a{}b", "ab"),
        ("a{,2}", "a{,2}", "aa"),
        ("a{01}", "a{01}", "a"),
        ("a{2,}", "aaa", "a"),
        (r"\Qa*\E+", "a**", "aa"),
        (r"a\Q\E+", "aa", ""),
        ("a*(?i)*", "aa", "A"),
        (r"\101\07", "A\x07", "101"),
        (r"\x41\x{e9}\v", "Aé\x0b", "A"),
        (r"\x{d800}|a", "a", ""),
        (r"\d", "1", "٣"),
        (r"\D", "٣", "1"),
        (r"\w+", "a_1", "é"),
        (r"(?i)\w", "\u{212a}", "é"),
        (r"(?i)\W", "é", "\u{17f}"),
        (r"\s", "\t", "\x0b"),
        (r"[[:space:]]", "\x0b", "\u{a0}"),
        (r"[[:^alpha:]]", "é", "a"),
        (r"é\Ba", "", "éa"),
        (r"é\ba", "éa", "é"),
        (r".\B.", "ab", "a-"),
        (r"\<a\>", "<a>", "a"),
        ("[a&&b]{2}", "&&", "c"),
        ("[+--]", ",", "a"),
        ("[[a]]", "[]", "a"),
        ("[]a]", "]", "b"),
        ("[^]a]", "b", "]"),
        ("[a-]", "-", "b"),
        (r"[\d-z]", "-", "y"),
        (r"[^\x00-\x{10ffff}]|a", "a", "b"),
        (r"\pN", "٣", "a"),
        (r"\p{^Greek}", "a", "σ"),
        (r"\P{lu}", "a", "A"),
        (r"(?i)\p{Lu}", "a", "1"),
        (r"\p{Old_Italic}", "\u{10300}", "a"),
        ("(?i)straſe", "STRASE", "strae"),
        ("(?i)σ", "ς", "s"),
        ("(?i:a)b", "Ab", "AB"),
        ("((?i)a|b)c", "Bc", "BC"),
        ("(?-s)a.b", "a b", "a\nb"),
        ("a.b", "a\nb", "ab"),
        ("(?m)a$\n^b", "a\nb", "ab"),
        ("a$", "a", "a\n"),
        (r"\Aa\z", "a", "a\n"),
        ("[a]{0}b", "b", "ab"),
        ("a #b", "a #b", "a"),
    ] {
        if !yes.is_empty() {
            assert!(matches(text, yes), "{text} on {yes}");
        }
        assert!(!matches(text, no), "{text} on {no}");
    }
}

#[test]
fn groups_take_what_they_take_in_go() {
    let number = |text: &str, value: &str, number| {
        Grouped::new(text).unwrap().groups(value).unwrap().number(number).map(str::to_owned)
    };
    for (text, value, wanted) in [
        ("(a*)(a*)", "aa", ["aa", ""]),
        ("(?U)(a*)(a*)", "aa", ["", "aa"]),
        ("(?U)(a*?)(a*)", "aa", ["aa", ""]),
        ("(a|ab)(c|bcd)?", "abcd", ["a", "bcd"]),
        ("(x){0}(a)", "a", ["-", "a"]),
        ("(a)|(b)", "b", ["-", "b"]),
        ("(?:(a)|(b))*", "ab", ["a", "b"]),
        ("(a*)*(b)", "b", ["", "b"]),
    ] {
        for (at, wanted) in (1..).zip(wanted) {
            let got = number(text, value, at);
            assert_eq!(got.as_deref().unwrap_or("-"), wanted, "group {at} of {text} on {value}");
        }
    }
    // Names may start with a digit and be there twice; the text is put between parentheses as it is.
    let twice = Grouped::new("(?P<1x>a)|(?<1x>b)").unwrap();
    assert_eq!(twice.groups("b").unwrap().name("1x"), Some("b"));
    assert_eq!(number("a)|(b", "b", 1).as_deref(), Some("b"));
}

#[test]
fn what_is_too_large_is_refused() {
    let nested = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    assert!(parse(&nested(DEPTH_MAX)).is_ok());
    assert!(refusal(&nested(DEPTH_MAX + 1)).starts_with("expression nests too deeply"));
    assert!(refusal(&format!("a{}", "*(?i)".repeat(DEPTH_MAX + 1))).starts_with("expression nests too deeply"));
    assert!(refusal(&r"\pL".repeat(10_000)).starts_with("expression too large"));
    assert!(refusal(&format!("(?i){}", r"[B-\x{10ffff}]".repeat(4000))).starts_with("expression too large"));
    assert!(refusal(&"a".repeat(PATTERN_BYTES_MAX + 1)).contains("longer than"));
    assert!(Grouped::new(&"()".repeat(20_000)).is_err());
    // Deepest and longest texts that are taken end in little time on a small stack.
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let run = small.spawn(move || {
        let text = format!("{}a{}", "(b|c".repeat(DEPTH_MAX / 4 - 1), "d)*".repeat(DEPTH_MAX / 4 - 1));
        assert!(Grouped::new(&text).unwrap().groups("bbb").is_some());
        assert!(crate::Matcher::new("l", crate::MatchOp::Regex, &text).unwrap().matches("bb"));
    });
    run.unwrap().join().unwrap();
    let long = |part: &str| parse(&part.repeat(PATTERN_BYTES_MAX / part.len())).is_ok();
    assert!(["{", "|", r"\Q\E", "{1,", "a?"].into_iter().all(long));
    assert!(!["[[:", "[a", "(?<"].into_iter().any(long));
}

/// Pieces of expressions, fitting and not.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b",
        "é",
        "-",
        "{",
        "}",
        "[",
        "]",
        "^",
        "$",
        ".",
        "*",
        "+",
        "?",
        "|",
        "(",
        ")",
        "(?",
        "(?i)",
        "(?:",
        "(?P<n>",
        "(?-s",
        "{2}",
        "{0,3}",
        "{1000}",
        "{,",
        r"\Q",
        r"\E",
        r"\pL",
        r"\P{Greek}",
        r"\p{",
        r"\x",
        r"\x{d800}",
        r"\07",
        r"\d",
        r"\W",
        r"\b",
        r"\B",
        "\\",
        "[:",
        ":]",
        "[:alpha:]",
        "&&",
        "a-z",
        "[^",
        r"\z",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics_or_passes_the_limits(text in prop_oneof![pieces(), any::<String>()], value in "[abé\n-]{0,4}") {
        if let Ok(read) = parse(&text) {
            prop_assert!(read.hir.properties().explicit_captures_len() < read.groups.len());
            prop_assert!(read.hir.properties().is_utf8());
        }
        if let Ok(grouped) = Grouped::new(&text) {
            prop_assert!(grouped.regex.memory_usage() <= 2 * COMPILED_BYTES_MAX);
            if let Some(groups) = grouped.groups(&value) {
                prop_assert_eq!(groups.number(0), Some(value.as_str()));
            }
        }
    }

    #[test]
    fn quoted_text_matches_itself_alone(text in "[^\\\\]{0,12}", other in any::<String>()) {
        let quoted = Grouped::new(&format!(r"\Q{text}\E")).unwrap();
        prop_assert!(quoted.groups(&text).is_some());
        prop_assert_eq!(quoted.groups(&other).is_some(), text == other);
    }

    #[test]
    fn plain_expressions_match_as_in_the_common_dialect(
        text in "([abc]|\\(a\\|b\\)|\\[a-c\\]|\\[\\^a\\]|\\.|\\(\\?i:b\\)){0,4}([*+?]|\\{1,2\\})?",
        value in "[abcABC\n]{0,4}",
    ) {
        let Ok(plain) = Regex::new(&format!("(?s)^(?:{text})$")) else { return Ok(()) };
        prop_assert_eq!(matches(&text, &value), plain.is_match(&value), "{} on {:?}", text, value);
    }
}
