//! Goal: what a person writes is taken from the right place or refused with words that help. Method: files in a
//! temporary directory, an environment handed in.

use super::*;

fn file(text: &str) -> (tempfile::TempDir, Given) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engram.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, Given { file: Some(path), flags: Vec::new() })
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let (_dir, mut given) = file("zone: file\nquery:\n  timeout: 1m\n  lookback: 10m\nretention: 15d\n");
    given.flags = vec![("query.timeout", "3m".to_owned())];
    let loaded = load(&given, &env(&[("ENGRAM_QUERY_TIMEOUT", "2m"), ("ENGRAM_QUERY_LOOKBACK", "7m")])).unwrap();
    assert_eq!(loaded.config.query.timeout, Duration::from_secs(180));
    assert_eq!(loaded.config.query.lookback, Duration::from_secs(420));
    assert_eq!(loaded.config.zone, "file");
    assert_eq!(loaded.config.retention_ms, 15 * 86_400_000);
    assert_eq!(loaded.config.partitions, 64);
    let origin = |name: &str| loaded.origins[KEYS.iter().position(|k| k.name == name).unwrap()].to_string();
    assert_eq!(origin("query.timeout"), "flag --query-timeout");
    assert_eq!(origin("query.lookback"), "environment variable ENGRAM_QUERY_LOOKBACK");
    assert!(origin("retention").ends_with("engram.yaml:5"));
    assert_eq!(origin("partitions"), "default");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let (_dir, given) = file("zone: a\nquery:\n  timeuot: 1m\n");
    let error = load(&given, &[]).unwrap_err().to_string();
    assert!(
        error.ends_with("engram.yaml:3: unknown key \"query.timeuot\", did you mean \"query.timeout\"?"),
        "{error}"
    );
    let (_dir, given) = file("zz: 1\n");
    assert!(load(&given, &[]).unwrap_err().to_string().ends_with("engram.yaml:1: unknown key \"zz\""));
}

#[test]
fn a_bad_value_names_key_value_expectation_and_place() {
    let given = Given { file: None, flags: vec![("write.body-bytes-max", "100MB".to_owned())] };
    assert_eq!(
        load(&given, &[]).unwrap_err().to_string(),
        "flag --write-body-bytes-max: write.body-bytes-max is \"100MB\": not a size, \
         but must be a size such as 512KiB, 100MiB or 2GiB, larger than 0"
    );
    let (_dir, given) = file("\npartitions: [1]\n");
    assert!(load(&given, &[]).unwrap_err().to_string().contains("engram.yaml:2: partitions is"));
}

#[test]
fn every_key_refuses_nonsense_and_none_is_there_twice() {
    for (at, key) in KEYS.iter().enumerate() {
        let nonsense = "\u{0}/ no";
        let taken = (key.set)(&mut Config::default(), nonsense).is_ok();
        assert!(!taken, "{} takes {nonsense:?}", key.name);
        assert!(KEYS[..at].iter().all(|other| other.name != key.name && other.flag() != key.flag()), "{}", key.name);
        assert!(key.help.ends_with('.'), "{}", key.name);
    }
}

#[test]
fn what_is_written_out_reads_back() {
    for comments in [false, true] {
        let mut config = Config::default();
        config.limits.max_query_length_ms = 86_400_000;
        config.http_listen = "[::]:80".to_owned();
        config.log_level = "info,engram_node::read=debug".to_owned();
        config.data_dir = "/a b/it's".into();
        let (_dir, given) = file(&config.to_yaml(comments));
        assert_eq!(load(&given, &[]).unwrap().config, config);
    }
    assert!(Config::default().to_yaml(true).lines().all(|line| line.len() <= 100));
}

#[test]
fn a_misspelt_level_is_no_filter() {
    let key = KEYS.iter().find(|key| key.name == "log-level").unwrap();
    for (text, good) in [("loud", false), ("info,wran", false), ("warn", true), ("off", true), ("info,h2=warn", true)] {
        assert_eq!((key.set)(&mut Config::default(), text).is_ok(), good, "{text}");
    }
}

#[test]
fn values_are_checked_together() {
    let (_dir, given) = file("write: {in-flight-bytes-max: 1MiB}\n");
    assert!(load(&given, &[]).unwrap_err().to_string().starts_with("write.body-bytes-max (100MiB) is larger"));
    let (_dir, given) = file("http-listen: 127.0.0.1:1\ngrpc-listen: 127.0.0.1:1\n");
    assert!(load(&given, &[]).is_err());
}

#[test]
fn variables_that_look_like_ours_are_told_but_for_the_orchestrators() {
    let env = env(&[
        ("ENGRAM_ZON", "x"),
        ("ENGRAM_SERVICE_HOST", "10.0.0.1"),
        ("ENGRAM_PORT_9009_TCP", "x"),
        ("PATH", "/bin"),
        ("ENGRAM_CONFIG", "x"),
    ]);
    assert_eq!(
        load(&Given::default(), &env).unwrap().warnings,
        ["environment variable ENGRAM_ZON is not known, did you mean \"ENGRAM_ZONE\"?"]
    );
}

#[test]
fn a_window_is_made_of_slots() {
    for (window, is_good) in
        [("5m", true), ("2h", true), ("1d", true), ("1m", false), ("7m", false), ("25m", false), ("25h", false)]
    {
        let given = Given { file: None, flags: vec![("blocks.window", window.to_owned())] };
        assert_eq!(load(&given, &[]).is_ok(), is_good, "{window}");
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let given = Given { file: Some("/nowhere/engram.yaml".into()), flags: Vec::new() };
    assert!(load(&given, &[]).unwrap_err().to_string().starts_with("/nowhere/engram.yaml: cannot read the file"));
}

#[test]
fn secrets_are_shown_nowhere() {
    let env = env(&[("ENGRAM_OBJECT_STORE_ACCESS_KEY", "me"), ("ENGRAM_OBJECT_STORE_SECRET_KEY", "hunter2")]);
    let given = Given { file: None, flags: vec![("object-store.url", "s3://bucket/a".to_owned())] };
    let config = load(&given, &env).unwrap().config;
    assert_eq!(config.object_store.secret_key.0, "hunter2");
    let shown = format!("{config:?}{}{:?}", config.to_yaml(true), config.to_flags());
    assert!(!shown.contains("hunter2") && shown.contains("(hidden)"), "{shown}");
    let bad = Given { file: None, flags: vec![("object-store.secret-key", "hunter 2".to_owned())] };
    let told = load(&bad, &[]).unwrap_err().to_string();
    assert!(!told.contains("hunter"), "{told}");
}

#[test]
fn a_store_that_cannot_be_reached_like_that_is_refused() {
    for (key, value, told) in [
        ("object-store.url", "ftp://x/y", "ftp:// is not known"),
        ("object-store.endpoint", "http://x", "the store is a directory"),
        ("object-store.sse", "store", "s3:// only"),
        ("object-store.part-bytes", "1MiB", "less than 5MiB"),
    ] {
        let given = Given { file: None, flags: vec![(key, value.to_owned())] };
        let error = load(&given, &[]).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
