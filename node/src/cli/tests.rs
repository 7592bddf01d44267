//! Goal: the words people type do what the help says. Method: arguments and environment handed in.

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn parsed(line: &str) -> Result<Action, Stop> {
    parse(words(line), &[])
}

fn asked_for(line: &str) -> client::Ask {
    match parsed(line) {
        Ok(Action::Ask(ask)) => ask,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_grammar_is_sound() {
    command().debug_assert();
}

#[test]
fn nothing_at_all_runs_a_node() {
    for line in ["engram", "engram run", "engram run --zone a", "engram --promql-experimental --zone=a"] {
        assert!(matches!(parsed(line), Ok(Action::Run(_))), "{line}");
    }
}

#[test]
fn flags_reach_the_configuration() {
    let Ok(Action::Run(loaded)) = parsed("engram --query-timeout 3m --limits-max-exemplars=7 --promql-experimental")
    else {
        panic!("not run");
    };
    assert_eq!(loaded.config.query.timeout.as_secs(), 180);
    assert_eq!(loaded.config.limits.max_exemplars, 7);
    assert!(loaded.config.promql_experimental);
}

#[test]
fn words_nobody_knows_are_refused_with_the_nearest() {
    let Err(Stop::Usage(error)) = parsed("engram --query-timeuot 3m") else { panic!("taken") };
    assert!(error.to_string().contains("--query-timeout"), "{error}");
    assert!(matches!(parsed("engram rnu"), Err(Stop::Usage(_))));
    assert!(matches!(parsed("engram --zone a/b"), Err(Stop::Config(_))));
}

#[test]
fn help_names_every_option_in_all_its_forms() {
    let Err(Stop::Usage(help)) = parsed("engram --help") else { panic!("no help") };
    let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for key in KEYS {
        assert!(help.contains(&format!("--{}", key.flag())) && help.contains(&key.env()), "{}", key.name);
    }
    let Err(Stop::Usage(version)) = parsed("engram --version") else { panic!("no version") };
    assert_eq!(version.to_string(), format!("engram {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_written_out_configuration_names_every_key() {
    let Ok(Action::Print(text)) = parsed("engram config defaults") else { panic!("not printed") };
    for key in KEYS {
        let name = key.name.rsplit('.').next().unwrap();
        assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("{name}: "))), "{name}");
    }
}

#[test]
fn a_check_says_where_values_come_from() {
    let env = [("ENGRAM_ZONE".to_owned(), "b".to_owned())];
    let Ok(Action::Print(text)) = parse(words("engram config check --retention 15d"), &env) else { panic!("refused") };
    assert_eq!(
        text,
        "zone = b  (environment variable ENGRAM_ZONE)\nretention = 15d  (flag --retention)\nthe configuration is good\n"
    );
}

#[test]
fn queries_become_requests() {
    let ask = asked_for("engram query up --url host:1/ --tenant t");
    assert_eq!((ask.url.as_str(), ask.tenant.as_deref()), ("http://host:1/api/v1/query", Some("t")));
    assert_eq!(ask.verb, client::Verb::Form(vec![("query".to_owned(), "up".to_owned())]));
    let ask = asked_for("engram query up --start 0 --end 1970-01-01T02:00:00Z");
    assert!(ask.url.ends_with("/api/v1/query_range"));
    let client::Verb::Form(form) = ask.verb else { panic!("no form") };
    assert!(form.contains(&("step".to_owned(), "120".to_owned())), "{form:?}");
    assert!(matches!(parsed("engram query up --start 0"), Err(Stop::Usage(_))));
    assert_eq!(asked_for("engram cluster status").url, "http://127.0.0.1:9009/api/v1/cluster/status");
    assert_eq!(asked_for("engram cluster ring").shape, client::Shape::Ring);
    assert_eq!(asked_for("engram cluster drain 7").url, "http://127.0.0.1:9009/api/v1/cluster/nodes/7/drain");
}

#[test]
fn answers_become_tables() {
    let vector = r#"{"status":"success","data":{"resultType":"vector","result":[
        {"metric":{"__name__":"up","job":"a"},"value":[1,"1"]},{"metric":{},"histogram":[1,{"count":"2","sum":"3"}]}]},
        "warnings":["careful"]}"#;
    assert_eq!(
        show::answer(vector, client::Shape::Query).unwrap(),
        "# careful\nSERIES       VALUE\nup{job=\"a\"}  1\n{}           count 2 sum 3\n"
    );
    let matrix = r#"{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[0.5,"1"],[1,"2"]]}]}}"#;
    assert_eq!(
        show::answer(matrix, client::Shape::Query).unwrap(),
        "SERIES   TIME                      VALUE\n{a=\"b\"}  1970-01-01T00:00:00.500Z  1\n         1970-01-01T00:00:01Z      2\n"
    );
    let scalar = r#"{"data":{"resultType":"scalar","result":[1,"7"]}}"#;
    assert_eq!(show::answer(scalar, client::Shape::Query).unwrap(), "7\n");
    assert_eq!(
        show::answer(r#"{"data":{"resultType":"vector","result":[]}}"#, client::Shape::Query).unwrap(),
        "nothing\n"
    );
    assert_eq!(show::answer("<html>", client::Shape::Query), None);
}

#[test]
fn another_versions_answer_is_shown_by_its_structure() {
    let status = r#"{"data":{"leader":1,"nodes":[{"id":1,"zone":"a"},{"id":2,"zone":"b","ready":true}]}}"#;
    assert_eq!(
        show::answer(status, client::Shape::Cluster).unwrap(),
        "leader:  1\n\nnodes\nID  ZONE  READY\n1   a\n2   b     true\n"
    );
    let partition = |id: u32| serde_json::json!({"epoch": 1, "id": id, "replicas": [id / 63, 2]});
    let partitions: Vec<_> = (0..64).map(partition).collect();
    let status = serde_json::json!({"data": {"partitions": partitions}}).to_string();
    assert_eq!(
        show::answer(&status, client::Shape::Cluster).unwrap(),
        "partitions\nID    EPOCH  REPLICAS\n0-62  1      0,2\n63    1      1,2\n"
    );
}

#[test]
fn failures_are_shown_in_the_nodes_words() {
    assert_eq!(show::failure(r#"{"status":"error","errorType":"bad_data","error":"no"}"#), "bad_data: no");
    assert_eq!(show::failure("502 Bad\n\nGateway"), "502 Bad Gateway");
}

#[test]
fn a_flush_is_asked_for_and_told() {
    let ask = asked_for("engram flush --tenant acme --wait");
    assert_eq!((ask.url.as_str(), ask.tenant.as_deref()), ("http://127.0.0.1:9009/api/v1/admin/flush", Some("acme")));
    assert_eq!(ask.verb, client::Verb::Form(vec![("wait".to_owned(), "true".to_owned())]));
    assert_eq!(asked_for("engram flush").verb, client::Verb::Form(Vec::new()));
    let body = r#"{"data":{"windows":[
        {"partition":3,"seal":1,"start":0,"end":7200000,"samples":9,"cut":true,"block":"00000000000000000000000007"},
        {"partition":3,"seal":2,"start":7200000,"end":14400000,"samples":1,"cut":false,"block":null}]}}"#;
    let told = show::answer(body, ask.shape).unwrap();
    assert!(told.contains("00000000000000000000000007") && told.contains("to be cut"), "{told}");
    let nothing = show::answer(r#"{"data":{"windows":[]}}"#, ask.shape).unwrap();
    assert!(nothing.starts_with("nothing to flush"), "{nothing}");
}

#[test]
fn a_snapshot_is_asked_for_with_its_tenant() {
    let ask = asked_for("engram snapshot --tenant acme --url http://node:1/");
    assert_eq!((ask.url.as_str(), ask.tenant.as_deref()), ("http://node:1/api/v1/admin/tsdb/snapshot", Some("acme")));
    assert_eq!(ask.verb, client::Verb::Form(Vec::new()));
    let body = r#"{"data":{"name":"n-1","path":"/s/n-1/acme","blocks":2,"samples":9}}"#;
    let want = "name     n-1\npath     /s/n-1/acme\nblocks   2\nsamples  9\n";
    assert_eq!(show::answer(body, ask.shape).unwrap(), want);
}

#[test]
fn an_export_is_what_was_asked_for() {
    let export = |line: &str| match parsed(line) {
        Ok(Action::Export(export)) => export,
        other => panic!("{other:?}"),
    };
    let all = export("engram export");
    assert_eq!((all.url.as_str(), all.format, all.output), (ADDRESS_DEFAULT, export::Format::OpenMetrics, None));
    assert_eq!(export("engram export --url n:9").url, "http://n:9", "as in every other command");
    assert_eq!(export("engram export --url https://n:9").url, "https://n:9");
    let some =
        export("engram export --tenant a --format blocks -o x --match up --match {a=\"b\"} --start -5 --end 7.5");
    assert_eq!((some.format, some.start, some.end), (export::Format::Blocks(86_400_000), Some(-5000), Some(7500)));
    assert_eq!(some.selectors, ["up", "{a=\"b\"}"]);
    for line in [
        "engram export --format blocks",
        "engram export --block-duration 3h",
        "engram export --start x",
        "engram export --format csv",
    ] {
        assert!(matches!(parsed(line), Err(Stop::Usage(_))), "{line}");
    }
}

#[test]
fn an_import_is_what_was_asked_for() {
    let import = |line: &str| match parsed(line) {
        Ok(Action::Import(import)) => import,
        other => panic!("{other:?}"),
    };
    let plain = import("engram import /data");
    assert_eq!(
        (plain.source.url.as_str(), plain.labels.add, plain.dry_run, plain.tenant),
        ("/data", true, false, None)
    );
    let some = import(
        "engram import s3://b/x --tenant a --external-labels ignore --drop-label replica --dry-run --endpoint http://h",
    );
    assert_eq!((some.labels.add, some.labels.drop, some.dry_run), (false, vec!["replica".to_owned()], true));
    assert_eq!(some.source.endpoint, "http://h");
    assert!(matches!(parsed("engram import"), Err(Stop::Usage(_))));
}
