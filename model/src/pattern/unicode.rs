//! Named sets of characters: `\p{Greek}`, `\pL`, `\d`, `[:alpha:]`.
//!
//! Which names exist is Go's affair and listed here; which characters they hold comes from `regex-syntax`, whose
//! Unicode may be a version newer than Go's.
//!
//! Source: Go `regexp/syntax` (doc.go, "Named character classes"), `unicode.Categories`, `unicode.Scripts`.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

/// General categories, folded as [`folded`] does, with their long names.
const CATEGORIES: &str = "c cc cf cn co cs l lc ll lm lo lt lu m mc me mn n nd nl no p pc pd pe pf pi po ps s sc sk \
    sm so z zl zp zs casedletter closepunctuation combiningmark connectorpunctuation control currencysymbol \
    dashpunctuation decimalnumber enclosingmark finalpunctuation format initialpunctuation letter letternumber \
    lineseparator lowercaseletter mark mathsymbol modifierletter modifiersymbol nonspacingmark number \
    openpunctuation other otherletter othernumber otherpunctuation othersymbol paragraphseparator privateuse \
    punctuation separator spaceseparator spacingmark surrogate symbol titlecaseletter unassigned uppercaseletter \
    cntrl digit punct";

/// Scripts of Unicode 15, folded as [`folded`] does.
const SCRIPTS: &str = "adlam ahom anatolianhieroglyphs arabic armenian avestan balinese bamum bassavah batak bengali \
    bhaiksuki bopomofo brahmi braille buginese buhid canadianaboriginal carian caucasianalbanian chakma cham \
    cherokee chorasmian common coptic cuneiform cypriot cyprominoan cyrillic deseret devanagari divesakuru dogra \
    duployan egyptianhieroglyphs elbasan elymaic ethiopic georgian glagolitic gothic grantha greek gujarati \
    gunjalagondi gurmukhi han hangul hanifirohingya hanunoo hatran hebrew hiragana imperialaramaic inherited \
    inscriptionalpahlavi inscriptionalparthian javanese kaithi kannada katakana kawi kayahli kharoshthi \
    khitansmallscript khmer khojki khudawadi lao latin lepcha limbu lineara linearb lisu lycian lydian mahajani \
    makasar malayalam mandaic manichaean marchen masaramgondi medefaidrin meeteimayek mendekikakui \
    meroiticcursive meroitichieroglyphs miao modi mongolian mro multani myanmar nabataean nagmundari nandinagari \
    newtailue newa nko nushu nyiakengpuachuehmong ogham olchiki oldhungarian olditalic oldnortharabian oldpermic \
    oldpersian oldsogdian oldsoutharabian oldturkic olduyghur oriya osage osmanya pahawhhmong palmyrene paucinhau \
    phagspa phoenician psalterpahlavi rejang runic samaritan saurashtra sharada shavian siddham signwriting \
    sinhala sogdian sorasompeng soyombo sundanese sylotinagri syriac tagalog tagbanwa taile taitham taiviet takri \
    tamil tangsa tangut telugu thaana thai tibetan tifinagh tirhuta toto ugaritic vai vithkuqi wancho warangciti \
    yezidi yi zanabazarsquare";

/// The characters of `\p{name}`, or `None` when Go knows no such name.
pub(super) fn named(name: &str) -> Option<ClassUnicode> {
    let name = folded(name);
    let has = |list: &str| list.split(' ').any(|have| have == name);
    match name.as_str() {
        "any" => Some(class(&[('\0', char::MAX)])),
        "ascii" => Some(class(&[('\0', '\x7f')])),
        "assigned" => {
            let mut class = query("gc=cn")?;
            class.negate();
            Some(class)
        }
        // Halves of pairs are no characters of their own in UTF-8.
        "cs" | "surrogate" => Some(ClassUnicode::empty()),
        _ if has(CATEGORIES) => query(&format!("gc={name}")),
        _ if has(SCRIPTS) => query(&format!("sc={name}")),
        _ => None,
    }
}

/// The characters of `\d`, `\s`, `\w` by their letter in small.
pub(super) fn perl(letter: char) -> Option<ClassUnicode> {
    match letter {
        'd' => posix("digit"),
        's' => Some(class(&[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')])),
        'w' => posix("word"),
        _ => None,
    }
}

/// The characters of `[:name:]`.
pub(super) fn posix(name: &str) -> Option<ClassUnicode> {
    Some(match name {
        "alnum" => class(&[('0', '9'), ('A', 'Z'), ('a', 'z')]),
        "alpha" => class(&[('A', 'Z'), ('a', 'z')]),
        "ascii" => class(&[('\0', '\x7f')]),
        "blank" => class(&[('\t', '\t'), (' ', ' ')]),
        "cntrl" => class(&[('\0', '\x1f'), ('\x7f', '\x7f')]),
        "digit" => class(&[('0', '9')]),
        "graph" => class(&[('!', '~')]),
        "lower" => class(&[('a', 'z')]),
        "print" => class(&[(' ', '~')]),
        "punct" => class(&[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
        "space" => class(&[('\t', '\r'), (' ', ' ')]),
        "upper" => class(&[('A', 'Z')]),
        "word" => class(&[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
        "xdigit" => class(&[('0', '9'), ('A', 'F'), ('a', 'f')]),
        _ => return None,
    })
}

fn class(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(ranges.iter().map(|&(low, high)| ClassUnicodeRange::new(low, high)))
}

/// Case, spaces, hyphens and underscores do not matter in a name.
fn folded(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).map(|c| c.to_ascii_lowercase()).collect()
}

fn query(property: &str) -> Option<ClassUnicode> {
    let hir = regex_syntax::parse(&format!(r"\p{{{property}}}")).ok()?;
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        // A set of one character.
        HirKind::Literal(literal) => {
            let c = std::str::from_utf8(&literal.0).ok()?.chars().next()?;
            Some(class(&[(c, c)]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_known() {
        for name in CATEGORIES.split(' ').chain(SCRIPTS.split(' ')) {
            let class = named(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(class.ranges().is_empty(), matches!(name, "cs" | "surrogate"), "{name}");
        }
        assert!(
            named("Old_Italic") == named("olditalic") && named("LC").is_some() && named("Upper case-letter").is_some()
        );
        for unknown in ["", "Latn", "XID_Start", "Emoji", "sc=Latin", "Klingon"] {
            assert!(named(unknown).is_none(), "{unknown}");
        }
    }
}
