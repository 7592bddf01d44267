//! Any text may come as a query: it must be refused or parsed, and what parses must print to text that parses to
//! the same print, in one line and in many.
#![no_main]

use engram_query::parse::{Switches, parse, parse_selector, prettify, resolve_durations, to_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _refused = parse_selector(text).is_err();
    let Ok(mut expr) = parse(text, &Switches::all()) else { return };
    let printed = expr.to_string();
    for again in [&printed, &prettify(&expr)] {
        match parse(again, &Switches::all()) {
            Ok(read) => assert_eq!(read.to_string(), printed, "{text:?} became {again:?}"),
            Err(e) => panic!("{text:?} became {again:?}: {e}"),
        }
    }
    let _json = to_json(&expr);
    let _resolved = resolve_durations(&mut expr, 0, 3_600_000, 15_000);
});
