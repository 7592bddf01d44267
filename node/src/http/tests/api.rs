//! Questions and their answers, good and bad.

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn an_instant_query_is_asked_and_answered() {
    let fake = Arc::new(Fake::default());
    let sample = InstantSample {
        labels: Labels::from_pairs([("__name__", "up"), ("job", "a")]),
        at: 1_435_781_451_781,
        value: SampleValue::Float(1.0),
    };
    let mut answer = outcome(Value::Vector(vec![sample.clone(), sample]));
    answer.annotations.warnings.insert("PromQL warning: x".to_owned());
    answer.annotations.infos.insert("PromQL info: y".to_owned());
    *fake.query.lock() = Some(Ok(answer));
    let path = "/prometheus/api/v1/query?query=up&time=1435781451.781&timeout=5s&limit=1&lookback_delta=1m";
    let (status, body) = get(&fake, path).await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        "{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[{\"metric\":{\"__name__\":\"up\",\"job\":\"a\"},\
         \"value\":[1435781451.781,\"1\"]}]},\"warnings\":[\"PromQL warning: x\",\"results truncated due to limit\"],\
         \"infos\":[\"PromQL info: y\"]}"
    );
    let asked = "anonymous up 1435781451781..1435781451781/0 timeout Some(5s) lookback Some(60000) limit 1";
    assert_eq!(*fake.asked.lock(), [asked]);
    get(&fake, "/api/v1/query?query=up").await;
    assert!(fake.asked.lock()[1].contains("up 1000500..1000500/0 timeout None lookback None limit 0"));
}

#[tokio::test]
async fn a_range_query_takes_a_form() {
    let fake = Arc::new(Fake::default());
    let series =
        RangeSeries { labels: Labels::empty(), floats: vec![(0, 1.5), (1000, f64::NAN)], histograms: Vec::new() };
    *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series]))));
    let request = Request::post("/api/v1/query_range?step=1")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .header("x-scope-orgid", "team")
        .body(Body::from("query=a%2Bb&start=0&end=1970-01-01T00%3A00%3A01Z&step=1s&stats=all"))
        .unwrap();
    let (status, _, body) = send(&fake, request).await;
    assert_eq!(status, StatusCode::OK);
    let start = "{\"status\":\"success\",\"data\":{\"resultType\":\"matrix\",\"result\":[{\"metric\":{},\
                 \"values\":[[0,\"1.5\"],[1,\"NaN\"]]}],\"stats\":{\"timings\":";
    assert!(body.starts_with(start), "{body}");
    let tree: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(tree["data"]["stats"]["samples"]["peakSamples"], 0);
    assert_eq!(tree["data"]["stats"]["blocks"]["fetchedBytes"], 0);
    assert!(fake.asked.lock()[0].starts_with("team a+b 0..1000/1000"));
}

#[tokio::test]
async fn scalars_and_strings_have_their_shapes() {
    let fake = Arc::new(Fake::default());
    for (value, want) in [
        (Value::Scalar { at: 1000, value: f64::INFINITY }, "{\"resultType\":\"scalar\",\"result\":[1,\"+Inf\"]}"),
        (
            Value::String { at: 1000, value: b"a\"\xff".to_vec() },
            "{\"resultType\":\"string\",\"result\":[1,\"a\\\"\u{fffd}\"]}",
        ),
        (Value::Vector(Vec::new()), "{\"resultType\":\"vector\",\"result\":[]}"),
        (Value::Matrix(Vec::new()), "{\"resultType\":\"matrix\",\"result\":[]}"),
    ] {
        *fake.query.lock() = Some(Ok(outcome(value)));
        let (_, body) = get(&fake, "/api/v1/query?query=x").await;
        assert_eq!(body, format!("{{\"status\":\"success\",\"data\":{want}}}"));
    }
}

#[tokio::test]
async fn bad_parameters_are_refused_in_prometheus_words() {
    let fake = Arc::new(Fake::default());
    let zero = "invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer";
    let points =
        "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)";
    for (path, text) in [
        (
            "query?query=up&time=x",
            "invalid parameter \"time\": invalid time value for 'time': cannot parse \"x\" to a valid timestamp",
        ),
        (
            "query?query=up&time=1e300",
            "invalid parameter \"time\": invalid time value for 'time': cannot parse \"1e300\" to a valid timestamp",
        ),
        ("query?query=up&limit=x", "invalid parameter \"limit\": strconv.Atoi: parsing \"x\": invalid syntax"),
        ("query?query=up&limit=-1", "invalid parameter \"limit\": limit must be non-negative"),
        (
            "query?query=up&limit=99999999999999999999",
            "invalid parameter \"limit\": strconv.Atoi: parsing \"99999999999999999999\": value out of range",
        ),
        ("query?query=up&timeout=x", "invalid parameter \"timeout\": cannot parse \"x\" to a valid duration"),
        (
            "query?query=up&lookback_delta=NaN",
            "error parsing lookback delta duration: cannot parse \"NaN\" to a valid duration",
        ),
        ("query_range?query=up", "invalid parameter \"start\": cannot parse \"\" to a valid timestamp"),
        ("query_range?query=up&start=0", "invalid parameter \"end\": cannot parse \"\" to a valid timestamp"),
        (
            "query_range?query=up&start=2&end=1&step=1",
            "invalid parameter \"end\": end timestamp must not be before start time",
        ),
        ("query_range?query=up&start=0&end=1", "invalid parameter \"step\": cannot parse \"\" to a valid duration"),
        ("query_range?query=up&start=0&end=1&step=0", zero),
        ("query_range?query=up&start=0&end=1&step=-1", zero),
        ("query_range?query=up&start=0&end=1&step=0.0001", zero),
        (
            "query_range?query=up&start=0&end=1&step=1e300",
            "invalid parameter \"step\": cannot parse \"1e300\" to a valid duration. It overflows int64",
        ),
        ("query_range?query=up&start=0&end=11001&step=1", points),
        ("query_range?query=up&start=-9223309901257974&end=9223309901257974&step=1", points),
        ("series", "no match[] parameter provided"),
        ("series?match[]=%7B%7D", "invalid parameter \"match[]\": match[] must contain at least one non-empty matcher"),
        ("labels?match[]=%7B%7D", "match[] must contain at least one non-empty matcher"),
        (
            "labels?start=NaN",
            "invalid parameter \"start\": invalid time value for 'start': cannot parse \"NaN\" to a valid timestamp",
        ),
        ("metadata?limit=x", "limit must be a number"),
        ("metadata?limit_per_metric=x", "limit_per_metric must be a number"),
        ("query_exemplars?query=up&start=2&end=1", "end timestamp must not be before start timestamp"),
        ("query?query=%zz", "error parsing form values: invalid URL escape \"%zz\""),
    ] {
        let (status, body) = get(&fake, &format!("/api/v1/{path}")).await;
        assert_eq!(status, 400, "{path}: {body}");
        same(&body, &error("bad_data", text));
    }
    assert_eq!(get(&fake, "/api/v1/query_range?query=up&start=0&end=11000&step=1").await.0, 200);
}

#[tokio::test]
async fn failures_of_queries_keep_their_codes() {
    let fake = Arc::new(Fake::default());
    let execution = Error { stage: Stage::Execution, ..Error::invalid("many-to-many") };
    for (failure, status, kind) in [
        (Error::invalid("bad"), 400, "bad_data"),
        (execution, 422, "execution"),
        (Error::new(Class::Timeout, "slow"), 503, "timeout"),
        (Error::new(Class::Cancelled, "left"), 499, "canceled"),
        (Error::new(Class::Internal, "broken"), 500, "internal"),
        (Error::unavailable("no quorum"), 503, "unavailable"),
        (Error::new(Class::Limited, "too many"), 429, "too_many_requests"),
    ] {
        *fake.query.lock() = Some(Err(failure.clone()));
        let (have, body) = get(&fake, "/api/v1/query?query=up").await;
        assert_eq!(have, status, "{body}");
        same(&body, &error(kind, &failure.message));
    }
}

#[tokio::test]
async fn tenants_come_from_the_header() {
    let fake = Arc::new(Fake::default());
    for (name, status) in [("team-1", 200), ("", 401), ("a|b", 400), ("..", 400)] {
        let request = Request::get("/api/v1/query?query=up").header("X-Scope-OrgID", name).body(Body::empty()).unwrap();
        let (have, _, body) = send(&fake, request).await;
        assert_eq!(have.as_u16(), status, "{name}: {body}");
        serde_json::from_str::<serde_json::Value>(&body).unwrap();
    }
}

#[tokio::test]
async fn lists_are_answered_and_cut() {
    let fake = Arc::new(Fake::default());
    let (_, body) = get(&fake, "/api/v1/series?match[]=up&limit=2").await;
    same(&body, r#"{"status":"success","data":[{"a":"0"},{"a":"1"}],"warnings":["results truncated due to limit"]}"#);
    let (_, body) = get(&fake, "/api/v1/series?match[]=up&start=5&end=1").await;
    same(&body, r#"{"status":"success","data":[]}"#);
    let (_, body) = get(&fake, "/api/v1/labels").await;
    same(&body, r#"{"status":"success","data":["__name__","a\"b"],"warnings":["partial"]}"#);
    for (name, want) in [("job", "job"), ("U__a_2e_b", "a.b"), ("a%2Fb", "a/b")] {
        let (_, body) = get(&fake, &format!("/api/v1/label/{name}/values")).await;
        same(&body, &format!(r#"{{"status":"success","data":["{want}"]}}"#));
    }
    assert_eq!(get(&fake, "/api/v1/label/%ff/values").await.0, 400);
    let (_, body) = get(&fake, "/api/v1/metadata?metric=m&limit=5").await;
    same(&body, r#"{"status":"success","data":{"m":[{"type":"counter","help":"h","unit":""}]}}"#);
    let (_, body) = get(&fake, "/api/v1/metadata?limit=0").await;
    same(&body, r#"{"status":"success","data":{}}"#);
    // Nothing is selected: there is nothing to say.
    assert_eq!(get(&fake, "/api/v1/query_exemplars?query=1").await.0, 204);
    let (status, body) = get(&fake, "/api/v1/query_exemplars?query=(").await;
    assert_eq!(status, 400);
    same(&body, &error("bad_data", "1:2: parse error: unclosed left parenthesis"));
    let (_, body) = get(&fake, "/api/v1/query_exemplars?query=up").await;
    same(
        &body,
        r#"{"status":"success","data":[{"seriesLabels":{"a":"b"},"exemplars":[{"labels":{"trace":"x"},"value":"6","timestamp":1.500}]}]}"#,
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_apis_shape() {
    let fake = Arc::new(Fake::default());
    let (status, body) = get(&fake, "/api/v1/targets").await;
    assert_eq!(status, 404);
    same(&body, &error("not_found", "no such endpoint: /api/v1/targets"));
    for (method, path) in
        [("DELETE", "/api/v1/query"), ("GET", "/api/v1/write"), ("POST", "/api/v1/metadata"), ("PUT", "/-/ready")]
    {
        let (status, headers, body) =
            send(&fake, Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status.as_u16(), 405, "{path}");
        assert!(headers.contains_key("allow"), "{path}");
        same(&body, &error("bad_data", &format!("method {method} is not allowed here")));
    }
    let json =
        Request::post("/api/v1/query").header("content-type", "application/json").body(Body::from("{}")).unwrap();
    assert_eq!(send(&fake, json).await.0.as_u16(), 415);
    let zipped = Request::post("/api/v1/query")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("content-encoding", "gzip")
        .body(Body::from("x"))
        .unwrap();
    assert_eq!(send(&fake, zipped).await.0.as_u16(), 415);
    let empty = Request::post("/api/v1/query?query=up").body(Body::empty()).unwrap();
    assert_eq!(send(&fake, empty).await.0.as_u16(), 200);
}

#[tokio::test]
async fn the_node_speaks_of_itself() {
    let fake = Arc::new(Fake::default());
    for path in [
        "/",
        "/ready",
        "/-/ready",
        "/-/healthy",
        "/metrics",
        "/api/v1/rules",
        "/api/v1/alerts",
        "/api/v1/alertmanagers",
        "/api/v1/status/config",
        "/api/v1/status/runtimeinfo",
        "/api/v1/cluster/status",
    ] {
        assert_eq!(get(&fake, path).await.0, 200, "{path}");
    }
    let (_, body) = get(&fake, "/api/v1/status/flags").await;
    same(&body, r#"{"status":"success","data":{"zone":"a"}}"#);
    let (_, body) = get(&fake, "/prometheus/api/v1/status/buildinfo").await;
    assert!(body.contains("\"application\":\"Engram\""), "{body}");
    fake.not_ready.store(true, Ordering::SeqCst);
    assert_eq!(get(&fake, "/-/ready").await, (503, "Engram is not ready:\ningest: replaying\n".to_owned()));
    assert_eq!(get(&fake, "/-/healthy").await.0, 200);
}

#[tokio::test]
async fn a_node_that_starts_says_how_far_it_is_and_asks_for_patience() {
    let health = Health::default();
    health.set("node/log", Condition::Starting("replaying".to_owned()));
    let router = starting(health);
    for (method, path, want) in [
        ("GET", "/-/healthy", 200),
        ("GET", "/-/ready", 503),
        ("POST", "/api/v1/write", 503),
        ("GET", "/api/v1/query", 503),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), want, "{path}");
        assert_eq!(response.headers().contains_key("retry-after"), path.starts_with("/api"), "{path}");
    }
}

#[tokio::test]
async fn queries_are_formatted_and_shown_as_trees() {
    let fake = Arc::new(Fake::default());
    let (_, body) = get(&fake, "/api/v1/format_query?query=sum(up)by(job)").await;
    same(&body, r#"{"status":"success","data":"sum by (job) (up)"}"#);
    let (_, body) = get(&fake, "/api/v1/parse_query?query=1").await;
    same(&body, r#"{"status":"success","data":{"type":"numberLiteral","val":"1"}}"#);
    let (status, body) = get(&fake, "/api/v1/format_query?query=sum(").await;
    assert_eq!(status, 400);
    assert!(body.contains("invalid parameter \\\"query\\\": 1:5: parse error:"), "{body}");
}

#[tokio::test]
async fn a_panic_is_a_500_and_everything_is_counted() {
    let fake = Arc::new(Fake::default());
    let (app, metrics) = app_of(&fake);
    let router = router(app);
    let ask = |path: &str| Request::get(path.to_owned()).header("x-request-id", "mine").body(Body::empty()).unwrap();
    let response = router.clone().oneshot(ask("/api/v1/query?query=panic")).await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    assert_eq!(response.headers()["x-request-id"], "mine");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    same(std::str::from_utf8(&body).unwrap(), &error("internal", "internal error, see this node's log"));
    let response = router.oneshot(Request::get("/no/such").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "0-0");
    let text = metrics.encode();
    for line in [
        "engram_http_requests_total{route=\"/api/v1/query\",method=\"GET\",code=\"500\"} 1",
        "engram_http_requests_total{route=\"other\",method=\"GET\",code=\"404\"} 1",
        "engram_http_request_duration_seconds_count{route=\"/api/v1/query\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn answers_are_compressed_when_asked_and_large_ones_come_whole() {
    let fake = Arc::new(Fake::default());
    let series = RangeSeries {
        labels: Labels::from_pairs([("a", "b")]),
        floats: (0..20_000).map(|i| (i, i as f64)).collect(),
        histograms: Vec::new(),
    };
    for zipped in [false, true] {
        *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series.clone()]))));
        let encoding = if zipped { "gzip" } else { "identity" };
        let request =
            Request::get("/api/v1/query?query=up").header("accept-encoding", encoding).body(Body::empty()).unwrap();
        let (_, headers, body) = send(&fake, request).await;
        assert_eq!(headers.contains_key("content-encoding"), zipped);
        if !zipped {
            let tree: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(tree["data"]["result"][0]["values"].as_array().unwrap().len(), 20_000);
        }
    }
}

proptest! {
    /// Nobody may get a 500 or a text of another shape out of the API by what they send.
    #[test]
    fn no_request_breaks_the_api(
        method in prop_oneof!["GET", "POST", "PUT"],
        path in prop_oneof![
            "query", "query_range", "series", "labels", "metadata", "query_exemplars", "format_query", "parse_query", "write",
            "label/[a-zA-Z0-9_%]{1,12}/values", "[a-z/%]{0,12}",
        ],
        parameters in "((query|time|start|end|step|limit|timeout|match\\[\\])=[a-z0-9%+.:\\[\\](){}_-]{0,12}&){0,5}[a-z=&;%]{0,6}",
        tenant in proptest::option::of("[ -~]{0,12}"),
        body in proptest::collection::vec(any::<u8>(), 0..40),
        is_form: bool,
    ) {
        let mut request = Request::builder().method(method.as_str()).uri(format!("/api/v1/{path}?{parameters}"));
        if let Some(tenant) = &tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        if is_form {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        let Ok(request) = request.body(Body::from(body)) else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (status, _, text) = runtime.block_on(send(&Arc::new(Fake::default()), request));
        prop_assert!([200, 204, 400, 401, 404, 405, 415].contains(&status.as_u16()), "{status} {text}");
        if status.as_u16() != 204 {
            let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
            let want = if status.is_success() { "success" } else { "error" };
            prop_assert_eq!(&tree["status"], want);
        }
    }
}

#[tokio::test]
async fn remote_read_negotiates_and_refuses_precisely() {
    let fake = Arc::new(Fake::default());
    let snappy = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    let mut query = vec![0x0a, 13, 0x08, 1, 0x10, 2, 0x1a, 7, 0x12, 1, b'a', 0x1a, 2, b'b', b'c'];
    let good = snappy(&query);
    query.extend_from_slice(&[0x10, 7]);
    for (kind, encoding, body, status, want) in [
        (Some("application/x-protobuf"), Some("snappy"), good.clone(), 200, ""),
        (None, None, good.clone(), 200, ""),
        (Some("application/json"), Some("snappy"), good.clone(), 415, "application/json"),
        (None, Some("gzip"), good.clone(), 415, "gzip"),
        (None, None, b"\x05hello".to_vec(), 400, "snappy"),
        (None, None, snappy(b"\xff"), 400, "protobuf"),
        (None, None, snappy(&query), 400, "response types"),
        (None, None, vec![0xff, 0xff, 0xff, 0x7f], 413, "larger than"),
        (None, None, vec![0; 2 << 20], 413, "larger than"),
    ] {
        let mut request = Request::post("/prometheus/api/v1/read").header("X-Scope-OrgID", "acme");
        request = kind.into_iter().fold(request, |r, kind| r.header("content-type", kind));
        request = encoding.into_iter().fold(request, |r, encoding| r.header("content-encoding", encoding));
        let (have, headers, text) = send(&fake, request.body(Body::from(body)).unwrap()).await;
        assert_eq!(have.as_u16(), status, "{text}");
        assert!(text.contains(want), "{text}");
        if status == 200 {
            assert_eq!(
                (&headers["content-type"], &headers["content-encoding"]),
                (&"application/x-protobuf".parse().unwrap(), &"snappy".parse().unwrap())
            );
        }
    }
    let asked = fake.asked.lock();
    assert_eq!(asked.len(), 2);
    assert!(
        asked[0].starts_with("acme reads Request { queries: [Query { range: TimeRange { start: 1, end: 3 }"),
        "{}",
        asked[0]
    );
    assert!(asked[0].contains("a=\"bc\""), "{}", asked[0]);
}

#[tokio::test]
async fn blocks_are_imported_by_name() {
    let fake = Arc::new(Fake::default());
    let send_to = async |path: &str, body: Body| {
        let request = Request::post(path).header("X-Scope-OrgID", "acme").body(body).unwrap();
        let (status, _, text) = send(&fake, request).await;
        (status.as_u16(), text)
    };
    let id = BlockId(7);
    let path = format!("/api/v1/admin/import/{id}");
    let pieces = ["ab", "", "cde"].map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
    let (status, text) = send_to(&path, Body::from_stream(futures::stream::iter(pieces))).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("\"samples\":9") && text.contains("\"bytes\":5"), "{text}");
    assert_eq!(*fake.asked.lock(), [format!("acme imports {id}, 5 bytes")]);
    let broken = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
    let (status, text) = send_to(&path, Body::from_stream(broken)).await;
    assert!(status == 400 && text.contains("broke off"), "{status} {text}");
    assert_eq!(send_to("/api/v1/admin/import/x", Body::empty()).await.0, 400);
    assert!(get(&fake, &path).await.1.contains("within"), "it is a part of another one");
    assert!(get(&fake, &format!("/api/v1/admin/import/{}", BlockId(1))).await.1.contains("\"known\":\"no\""));
}

#[tokio::test]
async fn a_survey_is_answered_line_by_line() {
    let fake = Arc::new(Fake::default());
    let post = async |path: &str| {
        let (status, headers, body) = send(&fake, Request::post(path).body(Body::empty()).unwrap()).await;
        (status.as_u16(), headers["content-type"].to_str().unwrap().to_owned(), body)
    };
    let want = "{\"event\":\"block\"}\n{\"event\":\"end\"}\n";
    assert_eq!(
        post("/api/v1/admin/verify?deep=1&tenant=acme").await,
        (200, "application/x-ndjson".into(), want.into())
    );
    assert_eq!(post("/api/v1/admin/verify").await.0, 200);
    assert_eq!(fake.asked.lock().join(" "), "verify Some(acme) Deep verify None Objects");
    assert_eq!(post("/api/v1/admin/verify?deep=x").await.0, 400);
    assert_eq!(post("/api/v1/admin/verify?tenant=a%2Fb").await.0, 400);
}
