//! What the routes about tenants take and refuse, before any room is asked.

use super::*;

async fn send_to(fake: &Arc<Fake>, method: &str, path: &str, body: &'static str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let (status, _, body) = send(fake, request.body(Body::from(body)).unwrap()).await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn a_change_reaches_the_metadata_as_it_was_said() {
    let fake = Arc::new(Fake::default());
    let body = r#"{"version": 3, "limits": {"ingestion_rate": 5}, "shardSize": 4}"#;
    let (status, answer) = send_to(&fake, "PUT", "/api/v1/admin/tenants/acme", body).await;
    assert_eq!(status, 200, "{answer}");
    same(&answer, r#"{"status":"success","data":{"tenant":"acme","version":4}}"#);
    assert_eq!(send_to(&fake, "PUT", "/api/v1/admin/tenants/acme", "{}").await.0, 200);
    assert_eq!(send_to(&fake, "DELETE", "/api/v1/admin/tenants/acme?version=4", "").await.0, 200);
    let limits = serde_json::json!({"ingestion_rate": 5}).as_object().unwrap().clone();
    let change = TenantChange { version: 3, limits, shard_size: Some(4) };
    let want = [format!("set acme {change:?}"), format!("set acme {:?}", TenantChange::default())];
    assert_eq!(fake.asked.lock()[..2], want);
    assert_eq!(fake.asked.lock()[2], "delete acme 4");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_changes() {
    let fake = Arc::new(Fake::default());
    let path = "/api/v1/admin/tenants/acme";
    for (method, path, body, want, part) in [
        ("PUT", path, "", 400, "no JSON"),
        ("PUT", path, "[]", 400, "no JSON object"),
        ("PUT", path, r#"{"limit": {}}"#, 400, "did you mean \\\"limits\\\"?"),
        ("PUT", path, r#"{"version": -1}"#, 400, "the body"),
        ("PUT", path, r#"{"shardSize": 5000000000}"#, 400, "the body"),
        ("PUT", path, r#"{"limits": []}"#, 400, "the body"),
        ("PUT", "/api/v1/admin/tenants/a%2Fb", "{}", 400, "unsupported character"),
        ("PUT", "/api/v1/admin/tenants/%ff", "{}", 400, "UTF-8"),
        ("DELETE", path, "", 400, "name the version"),
        ("DELETE", "/api/v1/admin/tenants/acme?version=x", "", 400, "no whole number"),
        ("GET", "/api/v1/admin/tenants/nobody", "", 404, "there is no tenant nobody"),
        ("POST", path, "{}", 405, "not allowed"),
        ("GET", "/api/v1/status/tsdb?limit=0", "", 400, "from 1 to 1000"),
        ("GET", "/api/v1/status/tsdb?limit=x", "", 400, "invalid syntax"),
    ] {
        let (status, answer) = send_to(&fake, method, path, body).await;
        assert_eq!(status, want, "{method} {path} {body}: {answer}");
        assert!(answer.contains(part) && answer.contains("\"status\":\"error\""), "{part} is not in {answer}");
    }
    let form = Request::put(path).body(Body::from("{}")).unwrap();
    assert_eq!(send(&fake, form).await.0.as_u16(), 415);
    let large = Request::put(path).header("content-type", "application/json").body(Body::from(vec![b' '; 70_000]));
    assert_eq!(send(&fake, large.unwrap()).await.0.as_u16(), 413);
    assert!(fake.asked.lock().is_empty(), "{:?}", fake.asked.lock());
    let (status, answer) = send_to(&fake, "PUT", path, r#"{"version": 7}"#).await;
    assert_eq!(status, 409);
    same(&answer, &error("conflict", "tenant acme is at version 8, not 7"));
}

#[tokio::test]
async fn counts_have_the_shape_of_prometheus() {
    let fake = Arc::new(Fake::default());
    let (status, answer) = get(&fake, "/api/v1/status/tsdb?limit=3").await;
    assert_eq!(status, 200);
    same(
        &answer,
        r#"{"status":"success","data":{
            "headStats":{"numSeries":0,"numLabelPairs":0,"chunkCount":0,
                         "minTime":9223372036854775807,"maxTime":-9223372036854775808},
            "seriesCountByMetricName":[{"name":"up","value":3}],
            "labelValueCountByLabelName":[],"memoryInBytesByLabelName":[],"seriesCountByLabelValuePair":[]}}"#,
    );
    assert_eq!(*fake.asked.lock(), ["cardinality anonymous 3"]);
    let (_, answer) = get(&fake, "/api/v1/user_stats").await;
    same(
        &answer,
        r#"{"status":"success","data":{"tenant":"anonymous","numSeries":3,"numSamples":9,"chunkCount":3,
            "minTime":1,"maxTime":2}}"#,
    );
}

#[tokio::test]
async fn a_snapshot_is_named_as_in_prometheus() {
    let fake = Arc::new(Fake::default());
    let ask = |method: &str, path: &str| Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    for (method, prefix, query) in [
        ("POST", "/api/v1", ""),
        ("PUT", "/prometheus/api/v1", "?skip_head=false"),
        ("POST", "/api/prom/api/v1", "?skip_head="),
    ] {
        let (status, _, answer) = send(&fake, ask(method, &format!("{prefix}/admin/tsdb/snapshot{query}"))).await;
        assert_eq!(status.as_u16(), 200, "{answer}");
        same(
            &answer,
            r#"{"status":"success","data":{"name":"19700101T001640Z-1","path":"/s/a","blocks":2,"samples":9}}"#,
        );
    }
    assert_eq!(*fake.asked.lock(), ["snapshot anonymous"; 3]);
    for (method, query, code) in [("POST", "?skip_head=true", 400), ("PUT", "?skip_head=maybe", 400), ("GET", "", 405)]
    {
        let (status, _, answer) = send(&fake, ask(method, &format!("/api/v1/admin/tsdb/snapshot{query}"))).await;
        assert_eq!(status.as_u16(), code, "{answer}");
    }
    assert_eq!(fake.asked.lock().len(), 3, "what is refused takes no snapshot");
}

#[tokio::test]
async fn a_flush_names_windows_and_blocks() {
    let fake = Arc::new(Fake::default());
    let ask = |method: &str, query: &str| {
        let uri = format!("/api/v1/admin/flush{query}");
        Request::builder().method(method).uri(uri).header("X-Scope-OrgID", "acme").body(Body::empty()).unwrap()
    };
    let (status, _, answer) = send(&fake, ask("POST", "?wait=true")).await;
    assert_eq!(status.as_u16(), 200, "{answer}");
    same(
        &answer,
        r#"{"status":"success","data":{"tenant":"acme","samples":18,"done":true,"blocks":["00000000000000000000000007"],
            "windows":[
            {"partition":3,"seal":1,"start":0,"end":7200000,"samples":9,"cut":true,"block":null},
            {"partition":3,"seal":2,"start":0,"end":7200000,"samples":9,"cut":true,"block":"00000000000000000000000007"}]}}"#,
    );
    let (status, _, answer) = send(&fake, ask("PUT", "")).await;
    assert!(status.as_u16() == 200 && answer.contains(r#""done":false"#), "{answer}");
    assert_eq!(*fake.asked.lock(), ["flush acme true", "flush acme false"]);
    for (method, query, code) in [("POST", "?wait=maybe", 400), ("GET", "", 405)] {
        let (status, _, answer) = send(&fake, ask(method, query)).await;
        assert_eq!(status.as_u16(), code, "{answer}");
    }
}

#[tokio::test]
async fn what_a_nodes_replicas_hold_is_asked_as_it_was_said() {
    let fake = Arc::new(Fake::default());
    for (query, status) in [
        ("", 200),
        ("?tenant=acme&slots=true", 200),
        ("?partition=7&slots=0", 200),
        ("?slots=true", 400),
        ("?slots=maybe&tenant=acme", 400),
        ("?tenant=no/slash", 400),
        ("?partition=-1", 400),
    ] {
        let (told, body) = send_to(&fake, "GET", &format!("/api/v1/admin/replicas{query}"), "").await;
        assert_eq!(told, status, "{query}: {body}");
    }
    let asked = |tenant: Option<&str>, partition: Option<u32>, slots| {
        let tenant = tenant.map(|name| TenantId::new(name).unwrap());
        format!("replicas {:?}", OwnAsked { tenant, partition: partition.map(PartitionId), slots })
    };
    let want = [asked(None, None, false), asked(Some("acme"), None, true), asked(None, Some(7), false)];
    assert_eq!(*fake.asked.lock(), want);
}
