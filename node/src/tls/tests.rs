//! Goal: only members of the cluster get through, both ways, and whoever does not is told why; new files are taken,
//! bad ones are not. Method: certificates issued here, a door and a dialer on a loopback port.

use std::path::Path;

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::issue::{Wanted, init_ca, issue};
use super::*;

const DAY_MS: i64 = 24 * 3600 * 1000;

fn wanted(name: &str, node: &str, days: u32) -> Wanted {
    Wanted { name: name.to_owned(), node: node.to_owned(), hosts: vec!["10.1.2.3".to_owned()], days }
}

fn files(dir: &Path, name: &str) -> Files {
    Files {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.pem"),
        name: NAME_DEFAULT.to_owned(),
    }
}

/// A cluster's directory with a CA and a certificate each of the given names.
fn cluster(names: &[&str]) -> tempfile::TempDir {
    let (dir, now) = (tempfile::tempdir().unwrap(), Clock::real().now());
    init_ca(dir.path(), 100, now).unwrap();
    for name in names {
        issue(dir.path(), &wanted(name, NAME_DEFAULT, 10), now).unwrap();
    }
    dir
}

fn open(dir: &Path, name: &str) -> Tls {
    Tls::open(files(dir, name), &Clock::real()).unwrap()
}

/// One connection from `client` to `server`: what came back, or why nothing did, on the client's side.
async fn talk(server: &Tls, client: &Tls) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Ok(incoming) = server.incoming(listener) else { panic!("plain text") };
    let serving = async {
        let mut incoming = std::pin::pin!(incoming);
        while let Some(Ok(mut stream)) = incoming.next().await {
            stream.write_all(b"welcome").await.unwrap();
            let _gone = stream.shutdown().await;
        }
    };
    let calling = async {
        let mut connector = outgoing::Connector(client.0.clone().unwrap());
        let uri = format!("http://{address}").parse().unwrap();
        let stream = tower::Service::call(&mut connector, uri).await.map_err(|e| e.to_string())?;
        let mut text = String::new();
        match stream.into_inner().read_to_string(&mut text).await {
            Ok(_) => Ok(text),
            Err(error) => Err(error.get_ref().map_or_else(|| error.to_string(), why)),
        }
    };
    tokio::select! {
        () = serving => panic!("the door ended"),
        said = calling => said,
    }
}

#[tokio::test]
async fn members_hear_each_other_and_strangers_are_told_why() {
    let (ours, theirs) = (cluster(&["a", "b"]), cluster(&["x"]));
    let (a, b, x) = (open(ours.path(), "a"), open(ours.path(), "b"), open(theirs.path(), "x"));
    assert_eq!(talk(&a, &b).await, Ok("welcome".to_owned()));
    let refused = talk(&a, &x).await.unwrap_err();
    assert!(refused.contains("its certificate is not signed by the CA of this node's cluster.tls.ca"), "{refused}");
    // A stranger that believes our CA: refused by the door.
    let both = tempfile::tempdir().unwrap();
    let cas = [ours.path(), theirs.path()].map(|dir| std::fs::read_to_string(dir.join("ca.pem")).unwrap()).concat();
    std::fs::write(both.path().join("ca.pem"), cas).unwrap();
    let files = Files { ca: both.path().join("ca.pem"), ..files(theirs.path(), "x") };
    let refused = talk(&a, &Tls::open(files, &Clock::real()).unwrap()).await.unwrap_err();
    assert!(refused.contains("has not signed this node's certificate"), "{refused}");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused() {
    let dir = cluster(&["a"]);
    issue(dir.path(), &wanted("web", "www.example.org", 10), Clock::real().now()).unwrap();
    let own = Files { name: "www.example.org".to_owned(), ..files(dir.path(), "web") };
    let web = Tls::open(own, &Clock::real()).unwrap();
    let refused = talk(&open(dir.path(), "a"), &web).await.unwrap_err();
    assert!(refused.contains("does not bear the name of cluster.tls.name"), "{refused}");
    let refused = Tls::open(files(dir.path(), "web"), &Clock::real()).err().unwrap();
    assert!(refused.contains("other nodes would refuse") && refused.contains("does not bear the name"), "{refused}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_others_and_at_start() {
    let dir = cluster(&["a"]);
    let long_ago = Clock::real().now() - 5 * DAY_MS;
    issue(dir.path(), &wanted("old", NAME_DEFAULT, 1), long_ago).unwrap();
    let refused = Tls::open(files(dir.path(), "old"), &Clock::real()).err().unwrap();
    assert!(refused.contains("its certificate has expired"), "{refused}");
    // As a node whose certificate ended while it ran.
    let material = Material::load(&files(dir.path(), "old"), long_ago).unwrap();
    let files = files(dir.path(), "old");
    let old = Tls(Some(Arc::new(Mutual { files, now: ArcSwap::from_pointee(material) })));
    let refused = talk(&open(dir.path(), "a"), &old).await.unwrap_err();
    assert!(refused.contains("it says that this node's certificate has expired"), "{refused}");
    let refused = talk(&old, &open(dir.path(), "a")).await.unwrap_err();
    assert!(refused.contains("its certificate has expired"), "{refused}");
}

#[tokio::test]
async fn new_files_are_taken_and_bad_ones_are_not() {
    let (dir, other, now) = (cluster(&["a", "b"]), cluster(&["a"]), Clock::real().now());
    let (a, b) = (open(dir.path(), "a"), open(dir.path(), "b"));
    let mutual = a.0.clone().unwrap();
    assert_eq!(mutual.look(now), Ok(false));
    // Another CA's certificate with our CA: nobody would take it.
    for end in ["pem", "key"] {
        std::fs::copy(other.path().join(format!("a.{end}")), dir.path().join(format!("a.{end}"))).unwrap();
    }
    assert!(mutual.look(now).unwrap_err().contains("other nodes would refuse"));
    std::fs::write(dir.path().join("a.pem"), "half a fi").unwrap();
    assert!(mutual.look(now).unwrap_err().contains("no certificate"));
    assert_eq!(talk(&a, &b).await, Ok("welcome".to_owned()));
    for end in ["pem", "key"] {
        std::fs::remove_file(dir.path().join(format!("a.{end}"))).unwrap();
    }
    issue(dir.path(), &wanted("a", NAME_DEFAULT, 99), now).unwrap();
    assert_eq!(mutual.look(now), Ok(true));
    assert!(a.ends_at().unwrap() > now + 98 * DAY_MS);
    assert_eq!(talk(&a, &b).await, Ok("welcome".to_owned()));
}

#[tokio::test]
async fn who_speaks_plain_text_or_nothing_holds_up_nobody() {
    let dir = cluster(&["a", "b"]);
    let (a, b) = (open(dir.path(), "a"), open(dir.path(), "b"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Ok(incoming) = a.incoming(listener) else { panic!("plain text") };
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut connector = outgoing::Connector(b.0.clone().unwrap());
    let calling = tower::Service::call(&mut connector, format!("http://{address}").parse().unwrap());
    let mut incoming = std::pin::pin!(incoming);
    let (accepted, called) = tokio::join!(incoming.next(), calling);
    assert!(accepted.unwrap().is_ok() && called.is_ok());
}

#[test]
fn a_ca_is_never_written_over_and_names_are_checked() {
    let (dir, now) = (cluster(&["a"]), Clock::real().now());
    assert!(init_ca(dir.path(), 1, now).unwrap_err().contains("is there already"));
    assert!(issue(dir.path(), &wanted("a", NAME_DEFAULT, 1), now).unwrap_err().contains("is there already"));
    for name in ["", "ca", "../b", ".b", "b/c"] {
        assert!(issue(dir.path(), &wanted(name, NAME_DEFAULT, 1), now).unwrap_err().contains("no name for a node"));
    }
    assert!(issue(dir.path(), &wanted("b", "no name", 1), now).is_err());
    assert!(issue(dir.path(), &wanted("b", NAME_DEFAULT, 0), now).is_err());
    let empty = tempfile::tempdir().unwrap();
    let missing = issue(empty.path(), &wanted("b", NAME_DEFAULT, 1), now).unwrap_err();
    assert!(missing.contains("engram tls init-ca"), "{missing}");
    use std::os::unix::fs::PermissionsExt;
    for key in ["ca.key", "a.key"] {
        let mode = std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}
