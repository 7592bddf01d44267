//! Remote write: what is negotiated, what is refused, what is promised.

use super::*;

#[tokio::test]
async fn remote_write_negotiates_its_version() {
    let fake = Arc::new(Fake::default());
    let v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
    for (content_type, encoding, status) in [
        (None, None, 204),
        (Some("application/x-protobuf"), Some("snappy"), 204),
        (Some("application/x-protobuf; proto=prometheus.WriteRequest"), Some("Snappy"), 204),
        (Some(v2), Some("snappy"), 204),
        (Some("application/x-protobuf;proto=other"), Some("snappy"), 415),
        (Some("application/x-protobuf;x"), Some("snappy"), 415),
        (Some("application/json"), Some("snappy"), 415),
        (Some(v2), Some("gzip"), 415),
        (Some(v2), Some("zstd"), 415),
    ] {
        let headers: Vec<_> = content_type
            .map(|t| ("content-type", t))
            .into_iter()
            .chain(encoding.map(|e| ("content-encoding", e)))
            .collect();
        let (have, answer, body) = push(&fake, &headers, "abc").await;
        assert_eq!(have, status, "{headers:?}: {body}");
        let counted = answer.get("x-prometheus-remote-write-samples-written").is_some();
        assert_eq!(counted, status == 204 && content_type == Some(v2), "{headers:?}");
    }
    let versions: Vec<_> = fake.asked.lock().iter().filter(|a| a.starts_with("anonymous")).cloned().collect();
    assert_eq!(versions, ["anonymous V1 3", "anonymous V1 3", "anonymous V1 3", "anonymous V2 3"]);
}

#[tokio::test]
async fn a_write_is_a_promise_or_says_who_must_act() {
    let fake = Arc::new(Fake::default());
    let v2 = [("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request")];
    let refused = Some(Refusal { class: Class::Invalid, message: "one is bad".to_owned() });
    *fake.written.lock() = Some(Ok(Written { samples: 3, histograms: 2, exemplars: 1, refused }));
    let (status, headers, body) = push(&fake, &v2, "x").await;
    assert_eq!(status, 400);
    same(&body, &error("bad_data", "one is bad"));
    for (name, want) in [("samples", "3"), ("histograms", "2"), ("exemplars", "1")] {
        assert_eq!(headers[format!("x-prometheus-remote-write-{name}-written").as_str()], want);
    }
    for (class, want, retry) in [
        (Class::Limited, 429, true),
        (Class::Unavailable, 503, true),
        (Class::Timeout, 503, true),
        (Class::Internal, 500, false),
    ] {
        *fake.written.lock() = Some(Err(Error::new(class, "why")));
        let (status, headers, body) = push(&fake, &[], "x").await;
        assert_eq!((status, headers.contains_key("retry-after")), (want, retry), "{body}");
        assert!(!headers.contains_key("x-prometheus-remote-write-samples-written"));
    }
}

#[tokio::test]
async fn large_bodies_are_refused_before_they_are_read() {
    let fake = Arc::new(Fake::default());
    let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/api/prom/push").header("content-length", "101").body(never).unwrap();
    let (status, _, body) = send(&fake, request).await;
    assert_eq!(status.as_u16(), 413, "{body}");
    assert!(fake.asked.lock().is_empty());
    let endless =
        Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789"))));
    let request = Request::post("/api/v1/push").body(endless).unwrap();
    assert_eq!(send(&fake, request).await.0.as_u16(), 413);
    fake.full.store(true, Ordering::SeqCst);
    let (status, headers, _) = push(&fake, &[], "x").await;
    assert_eq!((status, &headers["retry-after"]), (503, &http::HeaderValue::from(1)));
}
