//! Blocks and the deletion of series, as requests.

use super::*;

async fn ask(fake: &Arc<Fake>, method: &str, path: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("X-Scope-OrgID", "t").body(Body::empty()).unwrap();
    let (status, _, body) = send(fake, request).await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn series_are_deleted_under_every_prefix() {
    for prefix in ["/api/v1", "/prometheus/api/v1"] {
        for method in ["POST", "PUT"] {
            let fake = Arc::new(Fake::default());
            let path = format!("{prefix}/admin/tsdb/delete_series?match[]=up%7Ba%3D%22b%22%7D&match[]=x&start=1&end=2");
            assert_eq!(ask(&fake, method, &path).await, (204, String::new()));
            let want = r#"delete ["up{a=\"b\"}", "x"] of t from 1000 until 2001"#;
            assert_eq!(*fake.asked.lock(), [want]);
        }
    }
    let fake = Arc::new(Fake::default());
    for (query, part) in [
        ("", "no match[] parameter provided"),
        ("?match[]=%7B", "invalid parameter"),
        ("?match[]=%7Ba%3D%22%22%7D", "non-empty matcher"),
        ("?match[]=up&start=x", "start"),
    ] {
        let (status, body) = ask(&fake, "POST", &format!("/api/v1/admin/tsdb/delete_series{query}")).await;
        assert!(status == 400 && body.contains(part), "{query}: {status} {body}");
    }
    assert_eq!(ask(&fake, "GET", "/api/v1/admin/tsdb/delete_series?match[]=up").await.0, 405);
    assert!(fake.asked.lock().is_empty());
}

#[tokio::test]
async fn tombstones_are_cleaned_and_blocks_looked_at() {
    let fake = Arc::new(Fake::default());
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for (method, path, status) in [
        ("POST", "/api/v1/admin/tsdb/clean_tombstones".to_owned(), 204),
        ("POST", "/api/v1/admin/tsdb/clean_tombstones?wait=true".to_owned(), 204),
        ("POST", "/api/v1/admin/tsdb/clean_tombstones?wait=maybe".to_owned(), 400),
        ("GET", "/api/v1/admin/blocks".to_owned(), 200),
        ("GET", "/api/v1/admin/blocks/plan".to_owned(), 200),
        ("GET", format!("/api/v1/admin/blocks/{id}"), 404),
        ("POST", format!("/api/v1/admin/blocks/{id}/verify"), 200),
        ("GET", "/api/v1/admin/blocks/nonsense".to_owned(), 400),
    ] {
        assert_eq!(ask(&fake, method, &path).await.0, status, "{method} {path}");
    }
    let verified = format!("verify {id} of t");
    let block = format!("block {id} of t");
    let want = ["clean t false", "clean t true", "blocks of t", "plan of t", &block, &verified];
    assert_eq!(*fake.asked.lock(), want);
}

#[tokio::test]
async fn orphans_are_removed_only_when_that_is_confirmed() {
    let fake = Arc::new(Fake::default());
    let remove = "/api/v1/admin/blocks/orphans/remove";
    for (method, path, status) in [
        ("GET", "/api/v1/admin/blocks/orphans".to_owned(), 200),
        ("GET", "/api/v1/admin/blocks/orphans?older_than=-1s".to_owned(), 400),
        ("GET", format!("{remove}?confirm=true"), 405),
        ("POST", remove.to_owned(), 400),
        ("POST", format!("{remove}?confirm=yes"), 400),
        ("POST", format!("{remove}?confirm=true&block=x"), 400),
        ("POST", format!("{remove}?confirm=true&older_than=2d&block=01ARZ3NDEKTSV4RRFFQ69G5FAV"), 200),
    ] {
        assert_eq!(ask(&fake, method, &path).await.0, status, "{method} {path}");
    }
    assert_eq!(*fake.asked.lock(), ["orphans of t older than 0", "remove 1 orphans of t older than 172800000"]);
}
