//! Connections: clients that leave, dawdle or hang, and the stop.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::super::server::{ServeOptions, serve};
use super::*;

/// A server on a port of its own, and how to stop it.
async fn serving(
    fake: &Arc<Fake>,
    options: ServeOptions,
) -> (std::net::SocketAddr, CancellationToken, Metrics, impl Future<Output = std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (app, all) = app_of(fake);
    let (metrics, stop) = (app.metrics.clone(), CancellationToken::new());
    (address, stop.clone(), all, serve(listener, router(app), options, metrics, stop))
}

const GET: &[u8] = b"GET /api/v1/query?query=up HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_client_that_leaves_stops_its_query() {
    let fake = Arc::new(Fake::default());
    fake.hangs.store(true, Ordering::SeqCst);
    let (address, stop, metrics, server) = serving(&fake, ServeOptions::default()).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        while fake.asked.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!fake.left.load(Ordering::SeqCst));
        drop(stream);
        while !fake.left.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the query goes on without its client").0.unwrap();
    assert!(metrics.encode().contains("route=\"/api/v1/query\",method=\"GET\",code=\"499\"} 1"));
}

/// What a client gets that closes its half as soon as it has said all.
async fn answer_of_the_half_closed(fake: &Arc<Fake>, request: &[u8], options: ServeOptions) -> Vec<u8> {
    let (address, stop, _, server) = serving(fake, options).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        stop.cancel();
        answer
    };
    let both = futures::future::join(server, client);
    let (served, answer) =
        tokio::time::timeout(Duration::from_secs(30), both).await.expect("the connection stays open");
    served.unwrap();
    answer
}

#[tokio::test]
async fn a_client_that_has_said_all_gets_what_is_ready() {
    let fake = Arc::new(Fake::default());
    // Long enough that the end is seen in between.
    *fake.takes.lock() = Duration::from_millis(20);
    let patient = ServeOptions { answer_within: Duration::from_secs(30), ..ServeOptions::default() };
    let answer = answer_of_the_half_closed(&fake, GET, patient.clone()).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    let floats = (0..200_000).map(|i| (i, 0.1)).collect();
    let series = RangeSeries { labels: Labels::empty(), floats, histograms: Vec::new() };
    *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series]))));
    let long = answer_of_the_half_closed(&fake, GET, patient.clone()).await;
    assert!(long.len() > 2 << 20 && long.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", long.len());
    let both = answer_of_the_half_closed(&fake, &[GET, GET].concat(), patient.clone()).await;
    assert_eq!(both.windows(12).filter(|w| w == b"HTTP/1.1 200").count(), 2);
    let posted = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
        content-length: 8\r\n\r\nquery=up";
    assert!(answer_of_the_half_closed(&fake, posted, patient).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_client_that_has_said_all_waits_for_nothing_that_is_at_work() {
    let fake = Arc::new(Fake::default());
    fake.hangs.store(true, Ordering::SeqCst);
    let hasty = ServeOptions { answer_within: Duration::from_millis(20), ..ServeOptions::default() };
    let answer = answer_of_the_half_closed(&fake, GET, hasty).await;
    assert!(answer.starts_with(b"HTTP/1.1 499 "), "{}", String::from_utf8_lossy(&answer));
    assert!(fake.left.load(Ordering::SeqCst));
}

#[tokio::test]
async fn half_a_body_is_no_request() {
    let fake = Arc::new(Fake::default());
    let half = b"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
        content-length: 9\r\n\r\nquery=up";
    let answer = answer_of_the_half_closed(&fake, half, ServeOptions::default()).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    assert!(fake.asked.lock().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_shown_out() {
    let fake = Arc::new(Fake::default());
    let floats = (0..2_000_000).map(|i| (i, 0.1)).collect();
    let series = RangeSeries { labels: Labels::empty(), floats, histograms: Vec::new() };
    *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series]))));
    let options = ServeOptions { write_stall_max: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, metrics, server) = serving(&fake, options).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let open = |count: u8| metrics.encode().contains(&format!("engram_http_connections {count}"));
        while !open(1) {
            tokio::task::yield_now().await;
        }
        while !open(0) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        stream
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("a client that does not read is kept").0.unwrap();
}

#[tokio::test]
async fn clients_that_send_nothing_or_half_a_header_are_shown_out() {
    let fake = Arc::new(Fake::default());
    let options = ServeOptions { header_within: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, _, server) = serving(&fake, options).await;
    let client = async {
        for beginning in [&b""[..], b"G", b"GET /api/v1/query?query=up HTTP/1.1\r\nhost: x\r\nhalf"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            let mut rest = Vec::new();
            let _broken = stream.read_to_end(&mut rest).await;
        }
        stop.cancel();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("a silent client is kept").0.unwrap();
    assert!(fake.asked.lock().is_empty());
}

#[tokio::test]
async fn a_stop_lets_answers_finish_and_cuts_what_hangs() {
    let fake = Arc::new(Fake::default());
    let options = ServeOptions { stop_within: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, _, server) = serving(&fake, options).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        fake.hangs.store(true, Ordering::SeqCst);
        let mut hanging = TcpStream::connect(address).await.unwrap();
        hanging.write_all(GET).await.unwrap();
        while fake.asked.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the stop hangs").0.unwrap();
    assert!(fake.left.load(Ordering::SeqCst));
    assert!(TcpStream::connect(address).await.is_err());
}
